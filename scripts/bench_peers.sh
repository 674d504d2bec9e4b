#!/usr/bin/env bash
# How fast haul is beside other ways to run YOLOv8 on a CPU, all in one run and in turns.
#
#     scripts/bench_peers.sh                     all sections: about 25 minutes
#     scripts/bench_peers.sh --quick             a look, in about 5; results into the target folder
#     scripts/bench_peers.sh --only model        one section (--only may be given again):
#         model, latency      the network alone, yolov8n at 640x640, on all workers and on one core
#         small, medium       the same for yolov8s and m with weights made by formula
#         files               JPEG files to boxes, square letterbox, beside an OpenVINO pipeline
#         predict, whole      JPEG files to boxes in the default form, beside `yolo predict`, without
#                             and with the start of the program
#
#     --rounds N          rounds, in each of which everybody takes a turn (7)
#     --seconds S         of each turn (4)
#     --workers N         pictures at a time, one core each (2)
#     --patience S        of the whole run, for waiting until others are quiet and measuring again (300)
#     --haul PATH         the binary (that of `cargo build --release`); `none` leaves haul out
#     --out DIR           where results go (benches/results)
#     --no-install        work with what is there
#
# HAUL_PARITY_DATA must name a folder with weights/yolov8n.pt, weights/yolov8n.onnx (its export, static
# 1x3x640x640) and JPEG photographs in coco/images/. For figures that mean something nothing else should
# run; what others used meanwhile is measured and reported.
#
# What it needs is python3 3.11 or newer with venv, and a C compiler (without one the peaks of the
# machine are left out). What it installs, by pip into a virtual environment in the target folder, is
# scripts/peers/requirements.txt and Ultralytics: OpenVINO, ONNX Runtime, PyTorch, OpenCV, simplejpeg
# (libjpeg-turbo). They are measured and are no part of haul; Ultralytics is AGPL-3.0 and runs as a
# program of its own. With PyPI's PyTorch, which carries CUDA, this is 6.3 GB; HAUL_TORCH_INDEX may name
# an index of smaller wheels, such as https://download.pytorch.org/whl/cpu.
#
# Results are a Markdown table, a plot (SVG) and all figures (JSON), named after the processor.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
said="scripts/bench_peers.sh" haul="" out="" install=yes quick=no
options=()
need() { [ $# -ge 2 ] || { echo "$1 needs a value (try --help)" >&2; exit 2; }; }
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    --no-install) install=no ;;
    --quick) quick=yes said+=" $1" ;;
    --haul)
        need "$@"
        haul=$2
        [ "$haul" = none ] && said+=" --haul none"
        shift
        ;;
    --out)
        need "$@"
        mkdir -p "$2"
        out=$(cd "$2" && pwd)
        shift
        ;;
    --rounds | --seconds | --workers | --patience | --only)
        need "$@"
        options+=("$1" "$2") said+=" $1 $2"
        shift
        ;;
    *)
        echo "unknown argument: $1 (try --help)" >&2
        exit 2
        ;;
    esac
    shift
done

data=${HAUL_PARITY_DATA:-}
[ -n "$data" ] || { echo "HAUL_PARITY_DATA is not set (try --help)" >&2; exit 2; }
data=$(cd "$data" && pwd)
for needed in weights/yolov8n.pt weights/yolov8n.onnx coco/images; do
    [ -e "$data/$needed" ] || { echo "there is no $needed in HAUL_PARITY_DATA" >&2; exit 2; }
done

# Relative paths are those of the caller, but a relative target folder is the repository's, as for cargo.
[ -z "$haul" ] || [ "$haul" = none ] || haul=$(realpath "$haul")
cd "$repository"
target=${CARGO_TARGET_DIR:-target}
work=$target/peers
mkdir -p "$work"
target=$(cd "$target" && pwd)
work=$target/peers
haul=${haul:-$target/release/haul}
if [ "$haul" != none ] && ! [ -x "$haul" ]; then
    echo "no binary at $haul: cargo build --release first, or --haul none" >&2
    exit 2
fi

venv=$target/peers-venv
python=$venv/bin/python
wanted=$(cat scripts/peers/requirements.txt && echo 'ultralytics==8.4.190 ultralytics-thop==2.2.3')
if [ "$install" = yes ] && [ "$wanted" != "$(cat "$venv/wanted.txt" 2>/dev/null)" ]; then
    echo "installing by pip into $venv: scripts/peers/requirements.txt and ultralytics" >&2
    python3 -m venv "$venv"
    pip=("$python" -m pip install --quiet --disable-pip-version-check)
    index=()
    [ -z "${HAUL_TORCH_INDEX:-}" ] || index=(--extra-index-url "$HAUL_TORCH_INDEX")
    "${pip[@]}" ${index[@]+"${index[@]}"} -r scripts/peers/requirements.txt
    read -ra last <<<"${wanted##*$'\n'}"
    "${pip[@]}" --no-deps "${last[@]}"
    printf '%s\n' "$wanted" >"$venv/wanted.txt"
fi
[ -x "$python" ] || { echo "there is no $venv; leave out --no-install" >&2; exit 2; }
# Its settings stay in the work folder, and it looks nothing up.
export YOLO_CONFIG_DIR=$work YOLO_OFFLINE=true YOLO_AUTOINSTALL=false

# Made again when the script that makes them is newer.
for scale in s m; do
    if ! [ "$work/$scale.safetensors" -nt scripts/peers/onnx_synthetic.py ]; then
        "$python" scripts/peers/onnx_synthetic.py $scale --onnx "$work/$scale.onnx" \
            --safetensors "$work/$scale.safetensors"
    fi
done
if command -v cc >/dev/null; then
    cc -O2 -pthread -o "$work/peak" scripts/peers/peak.c || rm -f "$work/peak"
fi

defaults=(--rounds 7 --seconds 4 --patience 300)
out=${out:-$repository/benches/results}
if [ $quick = yes ]; then
    defaults=(--rounds 2 --seconds 1.5 --patience 0 --whole-count 40)
    [ "$out" != "$repository/benches/results" ] || out=$work/quick
fi
"$python" scripts/peers/rounds.py --data "$data" --work "$work" --haul "$haul" --peak "$work/peak" \
    --out "$out" --said "$said" "${defaults[@]}" ${options[@]+"${options[@]}"}
