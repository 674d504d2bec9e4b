#!/usr/bin/env bash
# Builds the CUDA that runs on the CPU (tests/cuda/emulator), for tests without GPU.
#
#   scripts/cuda/emulator.sh OUT            into the folder OUT
#   scripts/cuda/emulator.sh OUT --test     and tests it
#
#   CUDA_LIB_PATH=OUT target/debug/haul doctor
#
# A binary that was linked by scripts/cuda/toolkit.sh finds it so; one that was linked with shared
# libraries needs LD_LIBRARY_PATH=OUT instead. For this machine alone: it uses what the CPU has.
# Needs g++ 12 or newer, and the sources of dependencies (cargo fetch).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/libraries.sh"

[ $# = 1 ] || [ "${2:-}" = --test ] || { echo "usage: scripts/cuda/emulator.sh OUT [--test]" >&2; exit 2; }
fail() { echo "emulator.sh: $*" >&2; exit 1; }
root=$(cd "$here/../.." && pwd)
from=$root/tests/cuda/emulator
kernels=$root/src/engine/candle/cuda/kernels.cu
cxx=${CXX:-g++}
command -v "$cxx" > /dev/null || fail "no $cxx (apt-get install g++)"
[ -f "$kernels" ] || fail "no kernels at $kernels"
source=$(cudarc "$root")
mkdir -p "$1"
out=$(cd "$1" && pwd)
# Nothing to do where nothing changed since it was built (and tested).
what=$(cat "$from"/* "$here"/{emulator,libraries}.sh "$kernels" "$root/Cargo.lock" | sha256sum | cut -d' ' -f1)
stamp=$out/built${2:-}
[ "$(cat "$stamp" 2> /dev/null)" != "$what" ] || { echo "emulator: $out"; exit; }
build=$(mktemp -d "$out/build.XXXXXX")
trap 'rm -rf "$build"' EXIT

# The names of the kernels: those that are written out, and those of each kind of element.
names=$(sed -nE 's/.*extern "C" __global__ void ([a-zA-Z0-9_]+(##name)?)\(.*/\1/p' "$kernels")
[ -n "$names" ] || fail "$kernels has no line with extern \"C\" __global__ void NAME("
{
    echo '#define EACH(name, element) \'
    for name in $names; do
        case $name in *'##name') echo "KERNEL($name) \\" ;; esac
    done
    echo
    for name in $names; do
        case $name in *'##name') ;; *) echo "KERNEL($name)" ;; esac
    done
    case $names in *'##name'*) echo 'KERNELS(EACH)' ;; esac
} > "$build/names.h"
flags=(-std=c++20 -O2 -g -fPIC -march=native -Wall -Wextra -Wno-psabi)
jobs=()
compile() { # FILE FLAGS
    local file=$1
    shift
    "$cxx" "${flags[@]}" "$@" -c "$from/$file.cpp" -o "$build/$file.o" &
    jobs+=($!)
}
for file in settings memory stream driver curand; do compile $file; done
for file in cudnn cublas; do compile $file -O3; done
# As nvcc compiles them: without fused multiply-add. What kernels leave unset is theirs.
compile kernels -ffp-contract=off -ftls-model=initial-exec -Wno-unused -Wno-unknown-pragmas -Wno-maybe-uninitialized \
    "-I$from" "-DKERNELS_SOURCE=\"$kernels\"" "-DKERNELS_LIST=\"$build/names.h\""
for job in "${jobs[@]}"; do wait "$job" || fail "the emulator does not compile"; done

refused() { case $1 in cuda) echo 801 ;; cudnn) echo 3000 ;; curand) echo 999 ;; nvrtc) echo 11 ;; *) echo 15 ;; esac; }
for library in $libraries; do
    symbols "$source" $library |
        awk '{ printf "FUNCTION(%d, %s, %s)\n", NR - 1, $1, $2 }' > "$build/$library.h"
    gcc -O1 -fPIC -c "$from/refused.c" -o "$build/refused-$library.o" \
        "-DSYMBOLS=\"$build/$library.h\"" "-DREFUSED=$(refused $library)"
    objects=("$build/refused-$library.o")
    case $library in
        cuda) for file in settings memory stream driver kernels; do objects+=("$build/$file.o"); done ;;
        cudnn | cublas | curand) objects+=("$build/$library.o") ;;
    esac
    # The others share what the driver knows.
    [ $library = cuda ] || objects+=("$build/$(soname cuda)" '-Wl,-rpath,$ORIGIN')
    "$cxx" -shared -pthread -Wl,-z,defs "-Wl,-soname,$(soname $library)" -o "$build/$(soname $library)" "${objects[@]}"
done
if [ "${2:-}" = --test ]; then
    "$cxx" "${flags[@]}" "$from/selftest.cpp" -o "$build/selftest" -pthread \
        "$build/$(soname cuda)" "$build/$(soname cudnn)" "$build/$(soname cublas)" "-Wl,-rpath,$build"
    "$build/selftest"
fi
# At last, and each at once: a test that starts meanwhile finds the old one or the new one.
for library in $libraries; do mv -f "$build/$(soname $library)" "$out/"; done
echo "$what" > "$build/stamp" && mv -f "$build/stamp" "$stamp"
echo "emulator: $out"
