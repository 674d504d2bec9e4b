#!/usr/bin/env bash
# The feature `cuda`, compiled and tested without a GPU.
#
#     scripts/cuda/test.sh DIR
#
# CUDA's compiler and what is linked go into DIR (scripts/cuda/toolkit.sh), the emulator into DIR/emulator
# (scripts/cuda/emulator.sh). What is tested is haul: what it launches, in which order, with which memory,
# and what becomes of a job when a GPU gives out. Nothing here says what a GPU computes, or how fast.
# Takes about a quarter of an hour of two cores for candle's kernels, once, and as long again for haul.
set -euo pipefail
[ $# = 1 ] || { echo "usage: scripts/cuda/test.sh DIR" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mkdir -p "$1"
dir=$(cd "$1" && pwd)

cargo fetch --locked
scripts/cuda/toolkit.sh "$dir"
# Makes nvcc known, by its own path.
. "$dir/cuda.env"
scripts/cuda/emulator.sh "$dir/emulator" --test
cargo clippy --all-targets --locked --features cuda -- -D warnings
tests=(--test cuda --test gpu_jobs --test device)
cargo test --locked --features cuda --lib "${tests[@]}" --no-run
# In-process: whatever answers as a GPU.
for dnn in 1 0; do
    HAUL_EMULATED_CUDNN=$dnn CUDA_LIB_PATH=$dir/emulator LD_LIBRARY_PATH=$dir/emulator \
        timeout --kill-after=30 10m cargo test --locked --features cuda --lib engine::candle::cuda
done
timeout --kill-after=30 20m cargo test --locked --features cuda --no-fail-fast "${tests[@]}"
