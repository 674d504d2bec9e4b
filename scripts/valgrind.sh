#!/usr/bin/env bash
# The kernels' tests under valgrind's memcheck.
#
#     scripts/valgrind.sh                 install valgrind if it is missing, then run
#     scripts/valgrind.sh --no-install    run with what is here
#
# Valgrind knows AVX2 and not AVX-512, and says so by CPUID: the tests find and run avx2, portable
# and the reference, and no others. What takes long there and shows nothing more is left out. It
# takes about two minutes; returns 77 where valgrind is not to be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

skip() {
    echo "skipped: $*"
    exit 77
}

case ${1:-} in
'') install=yes ;;
--no-install) install=no ;;
*)
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac

if ! command -v valgrind >/dev/null; then
    [ $install = yes ] || skip "valgrind is not here"
    command -v apt-get >/dev/null || skip "there is neither valgrind nor apt-get"
    echo "installing by apt-get: valgrind"
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    {
        "${as_root[@]}" apt-get update -qq &&
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends valgrind
    } || skip "apt-get could not install valgrind"
fi

tests=$(cargo test --lib --locked --no-run 2>&1 | tee >(cat >&2) |
    sed -n 's/^ *Executable unittests src\/lib.rs (\(.*\))$/\1/p')
[ -x "$tests" ] || {
    echo "the tests were not built" >&2
    exit 1
}

# Not --quiet, so that the summary says that memcheck was at work; output of both, for the log.
memcheck() {
    timeout --kill-after=10 10m valgrind --error-exitcode=9 "$tests" --test-threads=1 "$@" 2>&1
}

tiers=$(memcheck --exact kernels::tests::tiers_of_this_cpu --nocapture | sed -n 's/.*tiers: //p')
echo "$(valgrind --version): $tiers"
case $tiers in
*avx512*) echo "this valgrind knows AVX-512: those kernels are tested, too" ;;
*portable*) ;;
*)
    echo "the tests do not run under valgrind" >&2
    exit 1
    ;;
esac

export PROPTEST_CASES=24
memcheck kernels:: engine::fused::custom_op::tests::threads_share_it \
    --skip every_width_of_a_3x3 --skip every_width_of_a_1x1 --skip silu --skip hard_numbers \
    --skip both_ends_are_guarded --skip threads_change_no_bit
