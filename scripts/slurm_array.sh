#!/usr/bin/env bash
# A job array of Slurm does a job together, while its tasks are interrupted, killed and requeued.
#
#     scripts/slurm_array.sh HAUL [INPUT OUTPUT]
#
# Four shards on the nodes that SLURM_CONF leads to (scripts/servers/slurm.sh starts some; without, it
# says so and returns 77), submitted with jobs/slurm.sbatch as it is shipped. INPUT and OUTPUT are
# folders or s3://BUCKET/PREFIX, are filled here and must be empty; without them they are made, in
# S3 where AWS_ENDPOINT_URL_S3 is set and HAUL knows about it, in a temporary folder elsewhere.
#
# While it runs: one task is requeued by scontrol, which sends SIGTERM; one haul is killed by SIGKILL,
# and its task requeued; one haul gets SIGTERM, ends with 75, and Slurm requeues it by itself.
# At the end: every mini-batch has one part and one record, each part is the one of a run without
# Slurm, shards and interruptions, `haul verify` finds nothing, and there is one _SUCCESS.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

SKIP=77
SHARDS=4
COPIES=100 # of each of our pictures: more than a task finishes within its grace, once told to stop
LONGEST=240 # seconds, for all of it

if [ -z "${SLURM_CONF:-}" ]; then
    echo "skipped: SLURM_CONF is not set"
    exit $SKIP
fi
if ! command -v sbatch >/dev/null; then
    echo "skipped: there is no sbatch"
    exit $SKIP
fi
[ $# = 1 ] || [ $# = 3 ] || {
    echo "usage: $0 HAUL [INPUT OUTPUT]" >&2
    exit 2
}
haul=$(readlink -f "$1")
work=$(mktemp -d)
array=
finish() {
    [ -z "$array" ] || scancel --quiet "$array" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

if [ $# = 3 ]; then
    input=$2 output=$3
elif [ -n "${AWS_ENDPOINT_URL_S3:-}" ] &&
    "$haul" run --help | grep -A 2 -e '--output <' | grep -q s3://; then
    input=s3://slurm-$$/in output=s3://slurm-$$/out
else
    input=$work/in output=$work/out
fi
# To haul a prefix without its slash is the beginning of names, and these would begin with it.
input=${input%/} output=${output%/}
case $input in s3://*) input=$input/ ;; esac

fail() {
    echo "FAILED: $*" >&2
    tail -n 20 "$work"/log-*.txt >&2 || true
    exit 1
}

# --- the job, and what it should come to ---------------------------------------------------------

pictures=$work/pictures
[ "$input" != "$work/in" ] || pictures=$input
mkdir -p "$pictures"
count=0
for picture in testdata/pictures/*.jpg; do
    for copy in $(seq -w $COPIES); do
        ln "$picture" "$pictures/$copy-${picture##*/}" 2>/dev/null ||
            cp "$picture" "$pictures/$copy-${picture##*/}"
        count=$((count + 1))
    done
done
case $input in
s3://*)
    python3 scripts/servers/s3.py make "$input" 2>/dev/null || true # it may be there
    python3 scripts/servers/s3.py up "$pictures" "$input"
    ;;
*) [ "$input" = "$pictures" ] || cp -r "$pictures/." "$input" ;;
esac
job() { # INPUT OUTPUT
    cat <<TOML
model = "$root/testdata/model/shapes.safetensors"
input = "$1"
output = "$2"
max_images = 1      # many commits, so that there is always something between two of them
imgsz = 960
progress = "none"
TOML
}
job "$input" "$output" >"$work/job.toml"
echo "workers = 1" >>"$work/job.toml" # two tasks at once, beside other tests
job "$pictures" "$work/alone" >"$work/alone.toml"
echo "alone: $count pictures"
before=$SECONDS
"$haul" run "$work/alone.toml" --quiet || [ $? = 3 ]
echo "alone: $((SECONDS - before)) s"

# --- the array, and its misfortunes --------------------------------------------------------------

array=$(JOB=$work/job.toml HAUL=$haul sbatch --parsable --array=1-$SHARDS \
    --output="$work/log-%a.txt" --chdir="$work" jobs/slurm.sbatch)
started=$SECONDS
echo "array $array: $input -> $output"

# One line for each task: number, state, how often it was requeued.
tasks() {
    # While all of them wait they are one record, with a range for its number.
    scontrol show job -o "$array" | sed -nE \
        's/.* ArrayTaskId=([0-9]+) .* JobState=([A-Z_]+) .* Restarts=([0-9]+) .*/\1 \2 \3/p'
}

state() { # TASK
    tasks | awk -v task="$1" '$1 == task { print $2 }'
}

# haul's process of a task: the batch step's own, since the script execs it.
process() { # TASK
    local at pid
    for at in /proc/[0-9]*; do
        pid=${at#/proc/}
        if [ "$(readlink "$at/exe" 2>/dev/null)" = "$haul" ] &&
            tr '\0' '\n' 2>/dev/null <"$at/environ" | grep -qx "SLURM_ARRAY_JOB_ID=$array" &&
            tr '\0' '\n' 2>/dev/null <"$at/environ" | grep -qx "SLURM_ARRAY_TASK_ID=$1"; then
            echo "$pid"
            return 0
        fi
    done
    return 1
}

# Results and what is around them, in a folder here.
fetch() {
    case $output in
    s3://*) python3 scripts/servers/s3.py down "$output" "$1" ;;
    *) cp -r "$output" "$1" ;;
    esac
}

# How many mini-batches of a task's share are committed: shard i of N has those whose number is
# i - 1 modulo N.
committed() { # TASK
    case $output in
    s3://*) python3 scripts/servers/s3.py ls "$output/_manifest/done" ;;
    *) ls "$output/_manifest/done" 2>/dev/null || true ;;
    esac | sed -nE 's/^(.*\/)?0*([0-9]+)\.json$/\2/p' |
        awk -v task="$1" -v shards=$SHARDS '$1 % shards == task - 1 { n++ } END { print n + 0 }'
}

wait_for() { # WHAT COMMAND...: until the command succeeds
    local what=$1
    shift
    until "$@"; do
        [ $((SECONDS - started)) -lt $LONGEST ] || fail "waited too long for $what: $(tasks | tr '\n' ';')"
        sleep 0.2
    done
}

in_the_middle() { # TASK
    [ "$(state "$1")" = RUNNING ] && [ "$(committed "$1")" -ge 3 ] && process "$1" >/dev/null
}
waits_or_failed() { [[ $(state "$1") =~ ^(PENDING|FAILED|REQUEUED)$ ]]; }
requeued() { tasks | awk -v task="$1" '$1 == task { found = $3 >= 1 } END { exit !found }'; }
all_done() { [ "$(tasks | awk '$2 == "COMPLETED"' | wc -l)" = $SHARDS ]; }

say() { echo "$((SECONDS - started)) s: $*"; }
all=$((count / SHARDS))
spared() { # what is left to do for a task, or the test has tested nothing
    local so_far
    so_far=$(committed "$1")
    [ "$so_far" -lt $all ] || fail "task $1 was through before it could be interrupted"
    say "task $1 $2 after $so_far of $all mini-batches"
}

wait_for "task 1 to be in the middle" in_the_middle 1
scontrol requeue "${array}_1"
spared 1 "requeued"

wait_for "task 2 to be in the middle" in_the_middle 2
kill -KILL "$(process 2)"
spared 2 "killed"
wait_for "Slurm to notice" waits_or_failed 2
scontrol requeue "${array}_2"

wait_for "task 3 to be in the middle" in_the_middle 3
kill -TERM "$(process 3)"
spared 3 "told to stop"
wait_for "task 3 to be requeued by Slurm" requeued 3

wait_for "all tasks" all_done
say "all tasks are done"
tasks
for task in 1 2 3; do
    requeued $task || fail "task $task was not started again"
done
array=

# --- what it came to -----------------------------------------------------------------------------

"$haul" verify "$output"
fetch "$work/together"
python3 - "$work/alone" "$work/together" <<'PYTHON'
import hashlib, json, pathlib, re, sys
alone, together = map(pathlib.Path, sys.argv[1:])

def numbers(folder, pattern):
    """The mini-batches of the files in a folder, and how many files each has."""
    found = {}
    for path in folder.iterdir():
        if match := re.fullmatch(pattern, path.name):
            found.setdefault(int(match[1]), []).append(path)
    return found

def read(output):
    parts = numbers(output, r"part-(\d+)\b.*")
    records = numbers(output / "_manifest/done", r"(\d+)\b.*")
    assert len(parts) > 0 and parts.keys() == records.keys(), "parts and records differ"
    assert all(len(files) == 1 for files in [*parts.values(), *records.values()])
    digests = {}
    for number, (path,) in parts.items():
        digests[number] = hashlib.sha256(path.read_bytes()).hexdigest()
        said = json.loads(records[number][0].read_text())
        assert said["sha256"] == digests[number], f"{path}: not what its record says"
    marker = [path for path in output.rglob("*") if path.name.startswith("_SUCCESS")]
    assert [path.name for path in marker] == ["_SUCCESS.json"], marker
    success = json.loads(marker[0].read_text())
    assert success["parts"] == len(parts), success
    return digests, success["parts_sha256"]

(one, _), (other, _) = read(alone), read(together)
differ = sorted(number for number in one.keys() | other.keys() if one.get(number) != other.get(number))
if differ:
    print(f"{len(differ)} of {len(one)} parts differ from those of one run, the first is {differ[0]}:")
    for output in alone, together:
        part = next(output.glob(f"part-{differ[0]:08}*"), None)
        print(f"  {part.read_bytes()[:300]}" if part else f"  {output} has none")
    sys.exit(1)
assert read(alone) == read(together), "the markers differ"
jobs = {json.loads(path.read_text())["job"] for path in (together / "_manifest/done").iterdir()}
assert len(jobs) == 1, jobs
print(len(one), "mini-batches, each committed once, the same bytes as alone")
PYTHON
