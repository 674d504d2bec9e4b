#!/usr/bin/env bash
# The crash loop: SIGKILL at random moments and run again, until the job ends; then compare.
#
#   scripts/accept.sh [COUNT]      so many kills at least (default 25)
#
# Jobs of several shapes take turns, on the model that comes with haul, with 1, 2 and 4 workers:
# folders in many and in few mini-batches, annotated pictures, a table with meta, a sample, compressed
# parts, what is new since another output, and failed pictures run again. Some starts are stopped and
# continued first, some get SIGTERM instead, and some have a twin that starts at the same time. Fails
# unless every file and digest equals that of a run that nobody disturbed. HAUL names the binary.
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:-25}
haul=${HAUL:-${CARGO_TARGET_DIR:-target}/release/haul}
[ -x "$haul" ] || { echo "no binary at $haul: cargo build --release first" >&2; exit 2; }
model=$PWD/testdata/model/shapes.safetensors

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/photos"
for n in $(seq -w 0 107); do
    set -- testdata/pictures/*.jpg
    shift $((10#$n % $#))
    # Every ninth of the first forty is broken: errors must survive as well.
    if [ $((10#$n)) -lt 40 ] && [ $((10#$n % 9)) = 4 ]; then
        head -c 2000 "$1" > "$work/photos/$n.jpg"
    else
        ln "$1" "$work/photos/$n.jpg" 2>/dev/null || cp "$1" "$work/photos/$n.jpg"
    fi
done
{
    echo image,site
    for n in $(seq -w 107 -1 0); do echo "$n.jpg,\"site $((10#$n % 5)), north\""; done
    echo "200.jpg,nowhere"
} > "$work/photos/table.csv"

base=(--model "$model" --imgsz 160 --quiet)
folder=(run "${base[@]}" --input "$work/photos")
# The outputs that two of the shapes start from.
"$haul" "${folder[@]}" --output "$work/half" --include '0*' --max-images 7 || [ $? = 3 ]
"$haul" "${folder[@]}" --output "$work/all" --max-images 50 || [ $? = 3 ]

shapes=(many few annotated table sample zstd since retry)
shape() { # NAME OUT WORKERS: sets the command
    case $1 in
    many) command=("${folder[@]}" --max-images 3) ;;
    few) command=("${folder[@]}" --max-images 40) ;;
    annotated) command=("${folder[@]}" --max-images 5 --annotate "$2-seen") ;;
    table) command=(run "${base[@]}" --input "$work/photos/table.csv" --max-images 4) ;;
    sample) command=("${folder[@]}" --sample 60 --seed 7 --max-images 2) ;;
    zstd) command=("${folder[@]}" --max-payload-mb 0.1 --compress zstd --boxes normalized) ;;
    # Everything under another filter: what half has not seen is new.
    since) command=("${folder[@]}" --since "$work/half" --max-images 3) ;;
    retry) command=(retry "$work/all" --max-images 1 --quiet) ;;
    esac
    command+=(--output "$2" --workers "$3")
}
digests() { sed -E 's/"job":"[0-9a-f]*"/"job":""/' "$1/_SUCCESS.json"; }
same() { # NAME OUT: equal to the undisturbed run
    cmp <(digests "$work/whole-$1") <(digests "$2")
    diff -rq "$work/whole-$1" "$2" -x _manifest -x _SUCCESS.json
    [ ! -d "$2-seen" ] || diff -rq "$work/whole-$1-seen" "$2-seen"
    diff -q "$work/whole-$1/_manifest/plan.json" "$2/_manifest/plan.json"
    [ -z "$(ls -A "$2/_manifest/tmp")" ] || { echo "temporaries are left in $2" >&2; return 1; }
}

declare -A expected span
for name in "${shapes[@]}"; do
    shape "$name" "$work/whole-$name" 2
    start=$(date +%s%N) code=0
    "$haul" "${command[@]}" || code=$?
    [ $code = 0 ] || [ $code = 3 ] || { echo "$name ended with $code undisturbed" >&2; exit 1; }
    expected[$name]=$code
    span[$name]=$((($(date +%s%N) - start) / 1000000))
    echo "$name: $(find "$work/whole-$name" -name 'part-*' | wc -l) parts, exit $code, ${span[$name]} ms undisturbed"
done

# The same bytes for any number of workers, and for any mini-batch size once parts are one.
cat "$work"/whole-many/part-* > "$work/whole.jsonl"
for workers in 1 4; do
    shape many "$work/w$workers" $workers
    "$haul" "${command[@]}" || [ $? = 3 ]
    same many "$work/w$workers"
done
for images in 1 7 1000; do
    "$haul" "${folder[@]}" --output "$work/b$images" --max-images $images || [ $? = 3 ]
    cat "$work/b$images"/part-* | cmp - "$work/whole.jsonl"
done
echo "bytes are equal for 1, 2 and 4 workers, and for mini-batches of 1, 3, 7 and 1000"

kills=0 jobs=0 stops=0 terms=0 twins=0
pause() { sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"; }
# The seed is printed so that a failure can be had again.
seed=${HAUL_SEED:-$RANDOM}
RANDOM=$seed
while [ $kills -lt "$count" ]; do
    name=${shapes[jobs % ${#shapes[@]}]}
    out="$work/job"
    rm -rf "$out" "$out-seen"
    # Shapes come round before workers do, so that each meets all of them.
    shape "$name" "$out" $((1 << (jobs / ${#shapes[@]}) % 3))
    while :; do
        twin=
        if ((RANDOM % 10 == 0)); then
            "$haul" "${command[@]}" 2>/dev/null & twin=$!
        fi
        # Not through a function: the kill must hit haul and not a shell around it.
        "$haul" "${command[@]}" 2>"$work/said" & pid=$!
        # Half of the kills fall anywhere in a run, half into its start.
        if ((RANDOM % 2)); then pause $((RANDOM % (span[$name] + span[$name] / 4 + 1))); else pause $((RANDOM % 60)); fi
        signal=KILL
        case $((RANDOM % 10)) in
            0) signal=TERM terms=$((terms + 1)) ;;
            1)
                kill -STOP $pid 2>/dev/null || true
                pause 20
                kill -CONT $pid 2>/dev/null || true
                pause $((RANDOM % 20))
                stops=$((stops + 1))
                ;;
        esac
        kill -$signal $pid 2>/dev/null || true
        code=0
        { wait $pid || code=$?; } 2>/dev/null
        if [ -n "$twin" ]; then
            other=0 twins=$((twins + 1))
            { wait $twin || other=$?; } 2>/dev/null
            # It was the first, or second and locked out; who comes second to a finished job agrees.
            [ $other = 11 ] || [ $other = "${expected[$name]}" ] || { echo "the twin of job $jobs ($name) ended with $other (seed $seed)" >&2; exit 1; }
            [ $code != 11 ] || continue
        fi
        case $code in
            "${expected[$name]}") break ;;
            137) kills=$((kills + 1)) ;;
            # Before it listens, SIGTERM ends it as it ends any program.
            75 | 143) [ $signal = TERM ] || { echo "job $jobs ($name) ended with $code (seed $seed)" >&2; exit 1; } ;;
            *) cat "$work/said" >&2; echo "job $jobs ($name) ended with $code (seed $seed)" >&2; exit 1 ;;
        esac
    done
    same "$name" "$out" || { echo "job $jobs ($name), seed $seed" >&2; exit 1; }
    "$haul" verify "$out" > /dev/null || [ $? = "${expected[$name]}" ]
    # A kill is nobody's fault.
    [ ! -s "$out/_manifest/strikes.jsonl" ] || { echo "a kill struck a picture (seed $seed)" >&2; exit 1; }
    jobs=$((jobs + 1))
done
echo "$jobs jobs of ${#shapes[@]} shapes killed $kills times ($stops stopped and continued), $terms SIGTERMs, $twins twins: every file and digest equal (seed $seed)"
