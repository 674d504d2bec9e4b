#!/usr/bin/env bash
# Collect what a GPU machine without network, cargo or checkout needs, and say what to run there.
#
#     scripts/gpu/carry.sh BINARY MODEL PICTURES DEST [GOLDEN]
#
#     BINARY     haul, built with the feature `cuda`; it is stripped here
#     MODEL      a checkpoint; a .pt becomes .safetensors here (BINARY does that, and starts without CUDA)
#     PICTURES   a folder of JPEG files; as many as fit, in the order of their names
#     DEST       a folder that is not there yet
#     GOLDEN     what another implementation says of them: lines of boxes
#
# All of it is at most 60 MiB (HAUL_CARRY_MIB says another limit).
set -euo pipefail

if [ $# -lt 4 ] || [ $# -gt 5 ]; then
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
binary=$1 model=$2 pictures=$3 dest=$4 golden=${5:-}
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
limit=$((${HAUL_CARRY_MIB:-60} * 1024 * 1024))
for needed in "$binary" "$model" ${golden:+"$golden"}; do
    [ -f "$needed" ] || { echo "there is no file $needed" >&2; exit 2; }
done
[ -d "$pictures" ] || { echo "there is no folder $pictures" >&2; exit 2; }
[ ! -e "$dest" ] || { echo "$dest is there already" >&2; exit 2; }
size() { du -sb "$1" | cut -f1; }

mkdir -p "$dest/pictures" "$dest/scripts/gpu" "$dest/scripts/train" "$dest/scripts/peers"
strip -o "$dest/haul" "$binary"
chmod 755 "$dest/haul"
name=$(basename "$model")
case $model in
*.safetensors) cp "$model" "$dest/$name" ;;
*)
    name=${name%.*}.safetensors
    "$dest/haul" model convert "$model" --dest "$dest/$name" >&2
    ;;
esac
# The same places beside each other as in the repository, so that imports find them.
cp "$scripts"/gpu/*.py "$scripts"/gpu/*.sh "$scripts/gpu/README.md" "$dest/scripts/gpu/"
cp "$scripts/train/yolov8.py" "$dest/scripts/train/"
cp "$scripts/peers/peer.py" "$dest/scripts/peers/"
cp "$scripts/formula.py" "$dest/scripts/"
[ -z "$golden" ] || cp "$golden" "$dest/golden.jsonl"

used=$(size "$dest")
[ "$used" -lt "$limit" ] || { echo "without any picture it is $used bytes already, more than $limit" >&2; exit 1; }
taken=0 left=0
while IFS= read -r -d '' picture; do
    bytes=$(size "$picture")
    if [ $((used + bytes)) -le "$limit" ]; then
        cp -L "$picture" "$dest/pictures/"
        used=$((used + bytes)) taken=$((taken + 1))
    else
        left=$((left + 1))
    fi
done < <(find -L "$pictures" -maxdepth 1 -type f \( -iname '*.jpg' -o -iname '*.jpeg' \) -print0 | sort -z)
[ $taken -gt 0 ] || { echo "no JPEG file of $pictures fits" >&2; exit 1; }

cat <<END
$dest: $((used / 1024 / 1024 + 1)) MiB: haul ($("$dest/haul" --version)), $name, $taken pictures${golden:+, golden.jsonl}$([ $left = 0 ] || echo "; $left pictures did not fit")

There, in that folder; each takes less than ten minutes and leaves its results in \$OUT (or gpu-results):
    scripts/gpu/accept.sh haul $name pictures${golden:+ golden.jsonl} --only doctor --only parity --only neighbours --only absent --name first
    scripts/gpu/accept.sh haul $name pictures${golden:+ golden.jsonl} --only killed --only files --only memory --name second
    python3 scripts/gpu/bench.py haul $name --pictures pictures --batches 32,64,8,1 --name bench-model
    python3 scripts/gpu/bench.py haul synthetic-m --pictures pictures --batches 32,64,8,1 --name bench-m
END
