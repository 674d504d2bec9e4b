#!/usr/bin/env bash
# Sets up what `cargo build --features cuda` needs, on a Debian machine without GPU or CUDA.
#
#   scripts/cuda/toolkit.sh DIR
#   . DIR/cuda.env
#   cargo build --release --features cuda
#
# The compiler for kernels comes from NVIDIA's wheels on PyPI (about 100 MB to load, 300 MB in DIR).
# What is linked are stubs (shim.c says how they work): the binary starts with CUDA libraries and
# without, and finds them through CUDA_LIB_PATH or as the loader does. The CUDA runtime is NVIDIA's
# static one. Its licence (and that of the compiler) lets you use what you build, but read it before
# you give binaries to others.
#
# Needs python3 with venv, gcc, ar, and the sources of dependencies (cargo fetch). May be run again: it
# does what is missing, and makes the stubs anew.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/libraries.sh"

[ $# = 1 ] || { echo "usage: scripts/cuda/toolkit.sh DIR" >&2; exit 2; }
fail() { echo "toolkit.sh: $*" >&2; exit 1; }
[ "$(uname -sm)" = "Linux x86_64" ] || fail "this is for Linux on x86-64; use NVIDIA's installer here"
for tool in python3 gcc ar awk; do
    command -v $tool > /dev/null || fail "no $tool (apt-get install python3-venv gcc binutils)"
done
source=$(cudarc "$here/../..")
mkdir -p "$1"
dir=$(cd "$1" && pwd)

# All of one release, which the driver of a machine that runs this must be no older than. cudarc asks
# nvcc for its version, and declares functions accordingly.
wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96)
[ -x "$dir/venv/bin/pip" ] || python3 -m venv "$dir/venv" || fail "python3 -m venv failed (apt-get install python3-venv)"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check "${wheels[@]}" ||
    fail "the wheels of the CUDA compiler could not be installed (is PyPI reached?)"
toolkit=$("$dir/venv/bin/python" -c 'import nvidia; print(list(nvidia.__path__)[0])')/cu13
[ -x "$toolkit/bin/nvcc" ] || fail "the wheels brought no $toolkit/bin/nvcc"
[ -f "$toolkit/lib/libcudart_static.a" ] || fail "the wheels brought no static CUDA runtime"

# nvcc links with what is in lib64.
ln -sfn lib "$toolkit/lib64"
# A linker prefers NAME.so to NAME.a, so none may be left where it looks (as earlier stubs were).
for library in $libraries cudart; do
    rm -f "$toolkit/lib/lib$library.so" "$toolkit/lib/stubs/lib$library.so"
done
cp "$toolkit/lib/libcudart_static.a" "$toolkit/lib/libcudart.a"

# What a library's functions return where it is missing, and where it is too old for one: statuses that
# cudarc knows, since it has no room for others.
statuses() {
    case $1 in
        cuda) echo 34 36 ;;            # STUB_LIBRARY, CALL_REQUIRES_NEWER_DRIVER
        cublas | cublasLt) echo 1 15 ;; # NOT_INITIALIZED, NOT_SUPPORTED
        curand) echo 203 999 ;;        # INITIALIZATION_FAILED, INTERNAL_ERROR
        nvrtc) echo 11 11 ;;           # INTERNAL_ERROR
        cudnn) echo 1001 3000 ;;       # NOT_INITIALIZED, NOT_SUPPORTED
    esac
}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
for library in $libraries; do
    symbols "$source" "$library" |
        awk '{ printf "FUNCTION(%d, %s, %s)\n", NR - 1, $1, $2 }' > "$build/$library.h"
    count=$(wc -l < "$build/$library.h")
    [ "$count" -gt 0 ] || fail "no functions of $library in $source"
    before=
    # cuDNN opens these by name, and CUDA_LIB_PATH is nothing to the loader.
    [ $library != cudnn ] || before="\"$(soname cublasLt)\", \"$(soname cublas)\", \"$(soname nvrtc)\","
    [ $library != cublas ] || before="\"$(soname cublasLt)\","
    read -r absent lacking < <(statuses $library)
    gcc -O2 -fPIC -Wall -c "$here/shim.c" -o "$build/$library.o" \
        "-DSONAME=\"$(soname $library)\"" "-DBEFORE=$before" "-DSYMBOLS=\"$build/$library.h\"" \
        "-DABSENT=$absent" "-DLACKING=$lacking"
    rm -f "$toolkit/lib/lib$library.a"
    ar rcs "$toolkit/lib/lib$library.a" "$build/$library.o"
    echo "lib$library.a: $count functions of $(soname $library)"
done

# Kernels for 9.0 (H100) are what candle builds; any other number works, and makes cargo build anew.
cat > "$dir/cuda.env" <<ENV
export CUDA_HOME='$toolkit'
export NVCC='$toolkit/bin/nvcc'
export PATH='$toolkit/bin':"\$PATH"
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-90}"
ENV
echo "now: . $dir/cuda.env && cargo build --features cuda"
