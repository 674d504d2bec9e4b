#!/usr/bin/env bash
# How long it takes from exec to the first boxes, on one picture, before and after `haul model pack`.
#
#     scripts/cold_start.sh MODEL PICTURE [--runs N] [--json] [-- RUN FLAGS]
#
#     scripts/cold_start.sh yolov8n.pt street.jpg
#     scripts/cold_start.sh yolov8n.pt street.jpg --json -- --precision f32
#
# It copies both into folders of its own and times `haul run` on them: from exec until the mini-batch
# with the picture's line is committed ("boxes"), and until the process has ended ("exit").
# Medians of 20 runs, after two that do not count. The files are in the page cache.
# In memory (tmpfs) a sync costs nothing; so the results are written there, and once more to a disk,
# and the difference is what making them durable costs.
#
# HAUL            the binary (target/release/haul)
# HAUL_COLD_DISK  a folder on a disk (the repository's target folder)
# HAUL_COLD_TMPFS a folder in memory (/dev/shm)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
"" | -h | --help)
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
target=${CARGO_TARGET_DIR:-$here/target}
export HAUL=${HAUL:-$target/release/haul}
export HAUL_COLD_DISK=${HAUL_COLD_DISK:-$target} HAUL_COLD_TMPFS=${HAUL_COLD_TMPFS:-/dev/shm}
exec python3 - "$@" <<'PYTHON'
import json, os, shutil, statistics, subprocess, sys, tempfile, time

arguments = sys.argv[1:]
flags = []
if "--" in arguments:
    cut = arguments.index("--")
    arguments, flags = arguments[:cut], arguments[cut + 1 :]
as_json = "--json" in arguments
arguments = [a for a in arguments if a != "--json"]
runs = 20
if "--runs" in arguments:
    at = arguments.index("--runs")
    runs = int(arguments[at + 1])
    del arguments[at : at + 2]
model, picture = arguments
haul = os.environ["HAUL"]
# What `haul run` understands and `haul model pack` does too.
precision = []
for index, flag in enumerate(flags):
    if flag == "--precision":
        precision = flags[index : index + 2]


def timed(model, picture, output):
    """Milliseconds until the mini-batch is committed, and until the end."""
    command = [haul, "run", "-v", "--model", model, "--input", picture, "--output", output]
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    process = subprocess.Popen(command + flags, stderr=subprocess.PIPE)
    boxes = None
    said = []
    for line in process.stderr:
        said.append(line.decode())
        if boxes is None and b"committed" in line:
            boxes = time.perf_counter()
    code = process.wait()
    end = time.perf_counter()
    if code != 0 or boxes is None:
        sys.exit(f"{' '.join(command)}: exit {code}\n{''.join(said)}")
    packed = any(line.startswith("weights from") for line in said)
    return (boxes - start) * 1e3, (end - start) * 1e3, packed


def figures(values):
    values = sorted(values)
    return {
        "median": round(statistics.median(values), 2),
        "min": round(values[0], 2),
        "max": round(values[-1], 2),
    }


result = {"runs": runs, "flags": flags, "milliseconds": {}}
with open("/proc/loadavg") as load:
    result["load_before"] = load.read().split()[0]
with tempfile.TemporaryDirectory(dir=os.environ["HAUL_COLD_TMPFS"]) as memory, \
        tempfile.TemporaryDirectory(dir=os.environ["HAUL_COLD_DISK"]) as disk:
    picture = shutil.copy(picture, memory)
    plain = os.path.join(disk, "plain")
    packed = os.path.join(disk, "packed")
    for folder in plain, packed:
        os.mkdir(folder)
        shutil.copy(model, folder)
    name = os.path.basename(model)
    subprocess.run([haul, "model", "pack", os.path.join(packed, name)] + precision,
                   check=True, stderr=subprocess.DEVNULL)
    cases = [(form, place) for place in ("tmpfs", "disk") for form in ("checkpoint", "pack")]
    seen = {case: ([], []) for case in cases}
    # In turn, so that whatever else the machine does falls on all of them.
    for turn in range(runs + 2):
        for form, place in cases:
            folder = packed if form == "pack" else plain
            output = os.path.join(memory if place == "tmpfs" else disk, "out")
            boxes, end, mapped = timed(os.path.join(folder, name), picture, output)
            if mapped != (form == "pack"):
                sys.exit(f"{form}: the pack was {'' if mapped else 'not '}used")
            if turn >= 2:
                seen[form, place][0].append(boxes)
                seen[form, place][1].append(end)
    for (form, place), (boxes, end) in seen.items():
        result["milliseconds"].setdefault(place, {})[form] = {
            "boxes": figures(boxes), "exit": figures(end),
        }
with open("/proc/loadavg") as load:
    result["load_after"] = load.read().split()[0]

if as_json:
    print(json.dumps(result, indent=2))
else:
    print(f"milliseconds from exec, medians of {runs} (least .. most); "
          f"load {result['load_before']} .. {result['load_after']}")
    print(f"{'results in':<11} {'weights from':<13} {'first boxes':>26} {'exit':>26}")
    for place, forms in result["milliseconds"].items():
        for form, both in forms.items():
            cells = [f"{f['median']:.1f} ({f['min']:.1f} .. {f['max']:.1f})" for f in both.values()]
            print(f"{place:<11} {form:<13} {cells[0]:>26} {cells[1]:>26}")
PYTHON
