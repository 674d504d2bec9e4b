#!/usr/bin/env bash
# What manifest and plan cost: small mini-batches against one that holds everything.
#
#   scripts/overhead.sh MODEL PHOTOS [ROUNDS [PICTURES]]     (5 rounds of 1,000 pictures)
#
# The photographs are linked until there are enough. Rounds take turns between mini-batches of 1 MB
# and a single one, which is committed once; medians and the ratio of the pairs are printed, and the
# time that listing, planning, publishing and syncing took. HAUL names the binary, and
# HAUL_OVERHEAD_DIR where the outputs go (disks differ; the default is the temporary folder).
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
haul=${HAUL:-${CARGO_TARGET_DIR:-target}/release/haul}
model=$1 photos=$2 rounds=${3:-5} pictures=${4:-1000}

work=$(mktemp -d "${HAUL_OVERHEAD_DIR:-${TMPDIR:-/tmp}}/haul-overhead.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/photos"
mapfile -t files < <(find "$photos" -type f -name '*.jpg' | sort)
for ((n = 0; n < pictures; n++)); do
    file=${files[n % ${#files[@]}]} name=$work/photos/$(printf '%06d.jpg' $n)
    ln "$file" "$name" 2>/dev/null || cp "$file" "$name"
done
for ((round = 0; round < rounds; round++)); do
    for kind in small whole; do
        case $kind in
        small) caps=(--max-payload-mb 1 --max-images 1000000) ;;
        whole) caps=(--max-payload-mb 1000000 --max-images 1000000) ;;
        esac
        "$haul" run --model "$model" --input "$work/photos" --output "$work/out" \
            "${caps[@]}" --quiet --json >"$work/$kind-$round.json"
        rm -rf "$work/out"
    done
done
python3 - "$work" "$rounds" <<'PYTHON'
import json, statistics, sys
folder, rounds = sys.argv[1], int(sys.argv[2])
load = lambda kind, n: json.load(open(f"{folder}/{kind}-{n}.json"))
pairs = [(load("small", n), load("whole", n)) for n in range(rounds)]
median = statistics.median
for name, index in ("mini-batches of 1 MB", 0), ("one mini-batch", 1):
    runs = [pair[index] for pair in pairs]
    print(
        f"{name}: {runs[0]['batches']} mini-batches, {median(r['seconds'] for r in runs):.2f} s, "
        f"{median(r['images_per_second'] for r in runs):.1f} images/s; "
        f"list {median(r['stages']['list'] for r in runs) * 1e3:.0f} ms, "
        f"write {median(r['stages']['write'] for r in runs) * 1e3:.0f} ms, "
        f"workers idle {median(r['stages']['idle'] for r in runs) * 1e3:.0f} ms"
    )
ratios = sorted(small["seconds"] / whole["seconds"] for small, whole in pairs)
print(
    f"small / one: median {median(ratios):.4f}, from {ratios[0]:.4f} to {ratios[-1]:.4f} "
    f"({pairs[0][0]['numeric_class']}, {pairs[0][0]['workers']} workers)"
)
PYTHON
