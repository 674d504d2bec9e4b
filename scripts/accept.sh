#!/usr/bin/env bash
# The crash loop: SIGKILL at random moments and run again, until the job ends; then compare.
#
#   scripts/accept.sh [COUNT]      COUNT jobs (default 5), each killed until it is through
#
# Every job has 36 mini-batches on the model that comes with haul; workers take turns at 1, 2, 4.
# Fails unless parts and digests equal those of a run that nobody disturbed. HAUL names the binary.
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:-5}
haul=${HAUL:-${CARGO_TARGET_DIR:-target}/release/haul}
[ -x "$haul" ] || { echo "no binary at $haul: cargo build --release first" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/photos"
for n in $(seq -w 0 107); do
    set -- testdata/pictures/*.jpg
    shift $((10#$n % $#))
    ln "$1" "$work/photos/$n.jpg" 2>/dev/null || cp "$1" "$work/photos/$n.jpg"
done
run() { # OUT WORKERS
    "$haul" run --model testdata/model/shapes.safetensors --input "$work/photos" --output "$1" \
        --imgsz 160 --max-images 3 --workers "$2" --quiet
}
digests() { sed -E 's/"job":"[0-9a-f]*"/"job":""/' "$1/_SUCCESS.json"; }

start=$(date +%s%N)
run "$work/whole" 2
span=$((($(date +%s%N) - start) / 1000000))
echo "an undisturbed run takes $span ms: $(find "$work/whole" -name 'part-*' | wc -l) parts"

# The same bytes for any number of workers, and for any mini-batch size once parts are one.
cat "$work"/whole/part-* > "$work/whole.jsonl"
for workers in 1 4; do
    run "$work/w$workers" $workers
    diff -rq "$work/whole" "$work/w$workers" -x _manifest -x _SUCCESS.json
    cmp <(digests "$work/whole") <(digests "$work/w$workers")
done
for images in 1 7 1000; do
    "$haul" run --model testdata/model/shapes.safetensors --input "$work/photos" \
        --output "$work/b$images" --imgsz 160 --max-images "$images" --quiet
    cat "$work/b$images"/part-* | cmp - "$work/whole.jsonl"
done
echo "bytes are equal for 1, 2 and 4 workers, and for mini-batches of 1, 3, 7 and 1000"

kills=0
# The seed is printed so that a failure can be had again.
seed=${HAUL_SEED:-$RANDOM}
RANDOM=$seed
for job in $(seq "$count"); do
    out="$work/job"
    rm -rf "$out"
    workers=$((1 << job % 3))
    while :; do
        run "$out" $workers & pid=$!
        # Half of the kills fall anywhere in a run, half into its start.
        if ((RANDOM % 2)); then wait_ms=$((RANDOM % (span + span / 4 + 1))); else wait_ms=$((RANDOM % 60)); fi
        sleep "$(printf '%d.%03d' $((wait_ms / 1000)) $((wait_ms % 1000)))"
        kill -KILL $pid 2>/dev/null && kills=$((kills + 1))
        code=0
        wait $pid 2>/dev/null || code=$?
        case $code in
            0) break ;;
            137) ;;
            *) echo "job $job ended with $code (seed $seed)" >&2; exit 1 ;;
        esac
    done
    diff -rq "$work/whole" "$out" -x _manifest -x _SUCCESS.json || { echo "seed $seed" >&2; exit 1; }
    cmp <(digests "$work/whole") <(digests "$out") || { echo "seed $seed" >&2; exit 1; }
    "$haul" verify "$out" > /dev/null
done
echo "$count jobs killed $kills times: every part and digest equal (seed $seed)"
