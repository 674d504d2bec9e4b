# The CUDA libraries that haul calls, and the functions of each. Sourced by the scripts beside it.
#
# The lists are those of the crate cudarc, which declares what is called: so they need its source,
# of the version that Cargo.lock names.

libraries="cuda cublas cublasLt curand nvrtc cudnn"

# soname LIBRARY: the file that the loader looks for.
soname() {
    case $1 in
        cuda) echo libcuda.so.1 ;;
        cublas | cublasLt | nvrtc) echo "lib$1.so.13" ;;
        curand) echo libcurand.so.10 ;;
        cudnn) echo libcudnn.so.9 ;;
    esac
}

# cudarc ROOT: the folder of its source. ROOT is the repository's.
cudarc() {
    local version folder
    version=$(awk '$0 == "name = \"cudarc\"" { found = 1 }
        found && $1 == "version" { gsub(/"/, "", $3); print $3; exit }' "$1/Cargo.lock")
    [ -n "$version" ] || { echo "Cargo.lock names no cudarc" >&2; return 1; }
    for folder in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"cudarc-$version"; do
        [ -d "$folder/src" ] && { echo "$folder/src"; return; }
    done
    echo "the source of cudarc $version is not here: cargo fetch first" >&2
    return 1
}

# symbols CUDARC LIBRARY: a line for each function, what it returns (a status, a size or a text) and
# its name. The few that return nothing are among those that return a status, which does no harm.
symbols() {
    local module prefix=$2
    module=$(echo "$2" | tr '[:upper:]' '[:lower:]')
    [ "$2" != cuda ] || { module=driver prefix=cu; }
    awk -v prefix="$prefix" '
        $1 == "pub" && $2 == "unsafe" && $3 == "fn" && index($4, prefix) == 1 {
            name = $4
            sub(/\(.*/, "", name)
            kind = "status"
            if ($0 ~ /-> usize \{/) kind = "size"
            if ($0 ~ /-> \*const ::core::ffi::c_char \{/) kind = "text"
            if (!seen[name]++) print kind, name
        }' "$1/$module/sys/mod.rs" | sort
}
