#!/usr/bin/env bash
# Every check that haul has, the same here as in CI.
#
#     scripts/test.sh                 install what is missing, then check
#     scripts/test.sh --no-install    check with what is here
#
# What it needs is cargo (by rustup, with rustfmt and clippy) and a C compiler. What it installs,
# and only where it is missing:
#   by apt-get    build-essential (a C compiler), python3 3.11 or newer, python3-venv
#   by rustup     the components rustfmt and clippy
#   by apt-get    valgrind, where it can be had; its stage is skipped elsewhere
#   by apt-get    radosgw, ceph-osd and ceph-mon (an S3 server), slurmctld, slurmd, slurm-client and
#                 munge, where they can be had; 0.4 GB. scripts/servers starts them in a temporary
#                 folder and on 127.0.0.1, and they are ended with this script
#   by apt-get    chromium and chromium-driver (the page), prometheus (promtool) and wrk (load), where
#                 they can be had; their stages are skipped elsewhere
#   by cargo      s3s-fs, another S3 server, into the target folder
#   by pip        numpy, pycocotools and megadetector (for its validator alone, without what it
#                 depends on), botocore and kubernetes-validate (schemas), boto3 (clients of the
#                 server), moto (a queue service), into a virtual environment in the target folder;
#                 cargo-lambda's emulator into another
#
# Tests find the S3 server by HAUL_TEST_S3_* (scripts/servers/radosgw.sh lists them) and skip without.
# AWS_* is left alone, so that nothing else begins to depend on it.
#
# HAUL_PARITY_DATA      a folder with real weights, pictures and goldens; without it some tests skip
# HAUL_TEST_CUDA        1: also compile the feature `cuda`, and test it on emulated GPUs (half an hour)
# HAUL_ACCEPT_COUNT     how many kills scripts/accept.sh tries (25)
# CARGO_TARGET_DIR      as cargo knows it
#
# The last line is "N passed, N failed, N skipped": tests, and one for each other stage. A stage that
# fails does not keep the later ones from running, but those that need what it makes are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install=yes
for argument in "$@"; do
    case $argument in
    --no-install) install=no ;;
    -h | --help)
        sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *)
        echo "unknown argument: $argument (try --help)" >&2
        exit 2
        ;;
    esac
done

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
haul=$target/release/haul
venv=$target/test-venv
work=$(mktemp -d)
end_servers() {
    scripts/servers/slurm.sh down "$work/slurm" || true
    scripts/servers/radosgw.sh down "$work/radosgw" || true
}
trap 'end_servers; rm -rf "$work"' EXIT
PATH=$PATH:/usr/sbin:/sbin # where Debian has daemons
accept_count=${HAUL_ACCEPT_COUNT:-25}
export HAUL_PYTHON=$venv/bin/python # for tests that ask pycocotools

passed=0 failed=0 skipped=0
failures=()
table=()
SKIP=77 # what a stage returns to say that it could not be done here

# stage NAME COMMAND...: runs it, times it, counts it.
stage() {
    local name=$1 before=$SECONDS code said
    shift
    printf '\n== %s\n' "$name"
    set +e
    (
        set -e
        "$@"
    )
    code=$?
    set -e
    case $code in
    0) said=passed passed=$((passed + 1)) ;;
    "$SKIP") said=skipped skipped=$((skipped + 1)) ;;
    *)
        said="FAILED ($code)" failed=$((failed + 1))
        failures+=("$name")
        ;;
    esac
    table+=("$(printf '%-28s %6d s  %s' "$name" $((SECONDS - before)) "$said")")
    return 0
}

skip() {
    echo "skipped: $*"
    exit $SKIP
}

# --- stages ------------------------------------------------------------------------------------

python_is_new_enough() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

packages_missing() {
    command -v cc >/dev/null || echo build-essential
    command -v python3 >/dev/null || echo python3
    python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
}

# Program and package of the servers for tests.
SERVERS="radosgw:radosgw ceph-osd:ceph-osd ceph-mon:ceph-mon
slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge"

# The same of what asks a server: a browser, a load, and who reads its metrics.
CLIENTS="chromium:chromium chromedriver:chromium-driver promtool:prometheus wrk:wrk"

servers_missing() {
    local pair
    for pair in $SERVERS $CLIENTS; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
    done
}

# Those of some packages that apt-get knows here.
to_be_had() {
    local package
    command -v apt-get >/dev/null || return 0
    for package in "$@"; do
        # Not -q, which hangs up on apt-cache: with pipefail that is a no.
        if apt-cache policy "$package" | grep 'Candidate: [0-9]' >/dev/null; then
            echo "$package"
        fi
    done
}

# install_packages NAMES...: by apt-get, whose lists are new.
install_packages() {
    local as_root=()
    echo "installing by apt-get: $*"
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@"
}

install_missing() {
    local packages servers component as_root=()
    mapfile -t packages < <(packages_missing)
    mapfile -t servers < <(servers_missing)
    if [ ${#packages[@]} -gt 0 ] && ! command -v apt-get >/dev/null; then
        echo "missing: ${packages[*]}" >&2
        echo "there is no apt-get here; install them yourself and use --no-install" >&2
        return 1
    fi
    if [ $((${#packages[@]} + ${#servers[@]})) -gt 0 ] && command -v apt-get >/dev/null; then
        [ "$(id -u)" = 0 ] || as_root=(sudo)
        "${as_root[@]}" apt-get update -qq
        mapfile -t servers < <(to_be_had "${servers[@]}")
        packages+=("${servers[@]}")
        [ ${#packages[@]} = 0 ] || install_packages "${packages[@]}"
    fi
    if ! command -v cargo >/dev/null; then
        echo "there is no cargo; see https://rustup.rs" >&2
        return 1
    fi
    for component in rustfmt clippy; do
        if ! cargo "${component/rust/}" --version >/dev/null 2>&1; then
            echo "installing by rustup: $component"
            rustup component add "$component"
        fi
    done
    if ! "$HAUL_PYTHON" -c 'import numpy, pycocotools' 2>/dev/null; then
        echo "installing by pip into $venv: numpy, pycocotools"
        python3 -m venv "$venv"
        "$HAUL_PYTHON" -m pip install --quiet --disable-pip-version-check \
            'numpy>=2,<3' 'pycocotools==2.0.11'
    fi
    if ! "$HAUL_PYTHON" -c 'import megadetector' 2>/dev/null; then
        echo "installing by pip into $venv: megadetector, without what it depends on"
        "$HAUL_PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps \
            'megadetector==10.0.28'
    fi
    if ! "$HAUL_PYTHON" -c 'import botocore, kubernetes_validate' 2>/dev/null; then
        echo "installing by pip into $venv: botocore, kubernetes-validate"
        "$HAUL_PYTHON" -m pip install --quiet --disable-pip-version-check \
            'botocore==1.44.5' 'kubernetes-validate==1.37.0'
    fi
    if ! "$HAUL_PYTHON" -c 'import boto3, moto, flask, flask_cors' 2>/dev/null; then
        echo "installing by pip into $venv: boto3, moto"
        "$HAUL_PYTHON" -m pip install --quiet --disable-pip-version-check \
            'boto3==1.44.5' 'moto==5.2.5' 'flask>=3,<4' 'flask-cors>=6,<7'
    fi
    echo "everything is there"
}

# A server that is skipped although it could have been installed is a failure.
server() { # PACKAGE COMMAND...
    local package=$1 code=0
    shift
    "$@" || code=$?
    if [ $code = $SKIP ] && [ $install = yes ] && [ -n "$(to_be_had "$package")" ]; then
        echo "$package can be had here, and its server did not start" >&2
        return 1
    fi
    return $code
}

# An S3 server, for the tests and for what comes after them. Its keys are not for logs.
test_servers() {
    python_is_new_enough || skip "Python 3.11 or newer is not here"
    server radosgw scripts/servers/radosgw.sh up "$work/radosgw" >"$work/radosgw.said" || {
        local code=$?
        cat "$work/radosgw.said"
        return $code
    }
    grep ENDPOINT "$work/radosgw/env"
}

# The proxy that spoils requests to it, by which tests see how haul takes that.
fault_proxy() {
    [ -f "$work/radosgw/env" ] || skip "there is no S3 server"
    set -a
    # shellcheck source=/dev/null
    . "$work/radosgw/env"
    set +a
    timeout --kill-after=30 5m python3 scripts/servers/check_proxy.py
}

# A job array on two nodes of a Slurm of our own, over S3 where haul and a server are there.
slurm_array() {
    [ -x "$haul" ] || skip "there is no release build"
    python_is_new_enough || skip "Python 3.11 or newer is not here"
    server slurmctld scripts/servers/slurm.sh up "$work/slurm"
    set -a
    # shellcheck source=/dev/null
    . "$work/slurm/env"
    # shellcheck source=/dev/null
    if [ -f "$work/radosgw/env" ]; then . "$work/radosgw/env"; fi
    set +a
    timeout --kill-after=30 10m scripts/slurm_array.sh "$haul"
    scripts/servers/slurm.sh down "$work/slurm"
}

# Another S3 server, small and from crates.io, which checks what radosgw does not know: the newer
# checksums of what is written, and gives them with what is read.
checksums() {
    local root=$target/s3s-fs port server code=0
    [ -x "$haul" ] || skip "there is no release build"
    if ! [ -x "$root/bin/s3s-fs" ]; then
        [ $install = yes ] || skip "s3s-fs is not here"
        cargo install s3s-fs --version 0.14.1 --locked --features binary --debug --quiet \
            --root "$root" --target-dir "$root/build"
        rm -rf "$root/build"
    fi
    port=$(python3 scripts/servers/ports.py 1)
    mkdir "$work/s3s-fs"
    "$root/bin/s3s-fs" --host 127.0.0.1 --port "$port" --access-key access --secret-key secret \
        "$work/s3s-fs" >"$work/s3s-fs.log" 2>&1 &
    server=$!
    export AWS_ENDPOINT_URL_S3=http://127.0.0.1:$port AWS_REGION=us-east-1 \
        AWS_ACCESS_KEY_ID=access AWS_SECRET_ACCESS_KEY=secret AWS_EC2_METADATA_DISABLED=true
    unset HAUL_TEST_S3_PID
    sleep 1
    timeout --kill-after=30 5m python3 scripts/accept_s3.py --haul "$haul" --pictures 30 \
        --only equal,kills --kills 2 || code=$?
    kill $server
    return $code
}

# Jobs from bucket to bucket: killed, through a proxy that spoils requests, sharded, and all wrong.
accept_s3() {
    [ -x "$haul" ] || skip "there is no release build"
    [ -f "$work/radosgw/env" ] || skip "there is no S3 server"
    set -a
    # shellcheck source=/dev/null
    . "$work/radosgw/env"
    set +a
    timeout --kill-after=30 10m python3 scripts/accept_s3.py --haul "$haul" \
        --kills $(((accept_count + 4) / 5))
}

job_files() {
    [ -x "$HAUL_PYTHON" ] || skip "there is no $HAUL_PYTHON"
    if [ -x "$haul" ]; then
        "$HAUL_PYTHON" scripts/job_files.py "$haul"
    else
        "$HAUL_PYTHON" scripts/job_files.py
    fi
}

licences() {
    python_is_new_enough || skip "Python 3.11 or newer is not here"
    python3 scripts/licences.py
}

# Links lead somewhere, every flag is written down, and every job file can be read.
documents() {
    local page link flag key job wrong=0
    while IFS=: read -r page link; do
        if ! [ -e "$(dirname "$page")/$link" ]; then
            echo "$page: there is no $link"
            wrong=1
        fi
    done < <(find ./*.md docs scripts -name '*.md' -exec grep -oHE '\]\([^)#:]+[)#]' {} + | sed 's/](//; s/.$//')
    [ $wrong = 0 ] || return 1
    [ -x "$haul" ] || skip "the links are right; there is no release build for the rest"
    for flag in $("$haul" run --help | grep -oE '^ +(-[a-z], )?--[a-z0-9-]+' | grep -oE '[a-z0-9-]{3,}$'); do
        flag=${flag#--} key=${flag//-/_}
        case $flag in help | new | print-config | json | quiet | verbose) continue ;; esac
        if ! grep -q "^| \`$key\`" docs/job-file.md; then
            echo "docs/job-file.md: \`$key\` is missing"
            wrong=1
        fi
    done
    for flag in $({ "$haul" serve --help; "$haul" lambda --help; } |
        grep -oE '^ +(-[a-z], )?--[a-z0-9-]+' | grep -oE '[a-z0-9-]{3,}$' | sort -u); do
        flag=${flag#--}
        # The model's and its detections' flags are those of run.
        case $flag in help) continue ;; esac
        if ! grep -q -- "--$flag\b" docs/serve.md && ! grep -q "^| \`${flag//-/_}\`" docs/job-file.md; then
            echo "docs/serve.md: --$flag is missing"
            wrong=1
        fi
    done
    for job in jobs/*.toml jobs/transform.json; do
        # What is printed is a job file again, and means the same.
        "$haul" run "$job" --print-config >"$work/config.toml" || wrong=1
        "$haul" run "$work/config.toml" --print-config | diff "$work/config.toml" - || wrong=1
    done
    return $wrong
}

rustdoc() {
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked
}

release_build() {
    rm -f "$haul" # so that a failed build leaves no old one to be tried
    cargo build --release --locked
}

# What is left to the compiler is still vectorised.
vectorised() {
    [ -x "$haul" ] || skip "there is no release build"
    command -v python3 >/dev/null || skip "Python is not here"
    python3 scripts/vectorised.py "$haul"
}

# The first command of the README, into a folder of its own, and what it must leave behind.
quickstart() {
    local out=$work/quickstart pictures lines seen
    [ -x "$haul" ] || skip "there is no release build"
    cargo run --release --locked -- run jobs/quickstart.toml \
        --output "$out" --annotate "$work/annotated"
    "$haul" verify "$out"
    pictures=$("$haul" status "$out" --json | sed -n 's/.*"planned": \([0-9]*\).*/\1/p')
    lines=$(cat "$out"/part-*.jsonl | wc -l)
    seen=$(find "$work/annotated" -name '*.annotated.jpg' -size +0 | wc -l)
    echo "$pictures pictures, $lines lines, $seen annotated"
    [ "$pictures" -gt 0 ]
    [ "$lines" = "$pictures" ]
    [ "$seen" = "$pictures" ]
    [ -f "$out/_SUCCESS.json" ]
    # A second run has nothing to do, and says so with the same code.
    "$haul" run jobs/quickstart.toml --output "$out" --annotate "$work/annotated"
    "$haul" export "$out" --to coco --dest "$work/coco.json"
    "$haul" export "$out" --to csv --dest "$work/boxes.csv"
    "$haul" export "$out" --to yolo --dest "$work/labels"
    "$haul" export "$out" --to megadetector --dest "$work/megadetector.json"
    head -n 1 "$work/boxes.csv" | grep -q '^image,'
    [ "$(find "$work/labels" -name '*.txt' | wc -l)" = "$pictures" ]
}

# pycocotools loads what `export --to coco` writes, as ground truth and as results.
coco() {
    [ -f "$work/coco.json" ] || skip "the first command left no export"
    "$HAUL_PYTHON" -c 'import pycocotools' 2>/dev/null || skip "pycocotools is not here"
    "$HAUL_PYTHON" - "$work/coco.json" <<'PYTHON'
import json, sys
from pycocotools.coco import COCO
coco = COCO(sys.argv[1])
annotations = json.load(open(sys.argv[1]))["annotations"]
results = coco.loadRes(annotations)
assert len(results.anns) == len(annotations) > 0
assert {a["image_id"] for a in annotations} <= set(coco.imgs)
assert {a["category_id"] for a in annotations} <= set(coco.cats)
print(len(coco.imgs), "images,", len(annotations), "annotations,", len(coco.cats), "categories")
PYTHON
}

# MegaDetector's validator has nothing to say against `export --to megadetector`. What it imports and
# does not need for that is stood in for: the real things bring torch and OpenCV.
megadetector() {
    [ -f "$work/megadetector.json" ] || skip "the first command left no export"
    "$HAUL_PYTHON" -c 'import megadetector' 2>/dev/null || skip "megadetector is not here"
    "$HAUL_PYTHON" - "$work/megadetector.json" <<'PYTHON'
import json, sys, types
def stand_in(name, **values):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(values)
stand_in("tqdm", tqdm=lambda items, **_: items)
stand_in("megadetector.utils.ct_utils", args_to_object=None, is_list_sorted=None)
stand_in("megadetector.detection.video_utils", is_video_file=lambda name: name.endswith(".mp4"))
from megadetector.postprocessing.validate_batch_results import validate_batch_results as validate
def said(results):
    verdict = validate(results)["validation_results"]
    return verdict["errors"] + verdict["warnings"]
results = json.load(open(sys.argv[1]))
assert said(results) == [], said(results)
failed = {"file": "x.jpg", "failure": "image access failure: truncated", "detections": None}
assert said({**results, "images": [*results["images"], failed]}) == []
assert said({**results, "images": [{**failed, "detections": []}]}) != [] # it does look
print(len(results["images"]), "images,", len(results["detection_categories"]), "categories")
PYTHON
}

# The accuracy of yolov8n on real photographs is that of the program it was made with.
photographs() {
    local out=$work/photographs data=${HAUL_PARITY_DATA:-}
    [ -n "$data" ] || skip "HAUL_PARITY_DATA is not set"
    [ -x "$haul" ] || skip "there is no release build"
    "$HAUL_PYTHON" -c 'import pycocotools' 2>/dev/null || skip "pycocotools is not here"
    local precision within
    for precision in f32 bf16; do
        # bf16 rounds more, and may cost a little.
        [ $precision = f32 ] && within=0.003 || within=0.006
        if [ $precision = bf16 ] && "$haul" doctor --json | grep -q '"bf16": null'; then
            echo "this CPU has no bf16; its mAP is not measured"
            continue
        fi
        "$haul" run --model "$data/weights/yolov8n.pt" --input "$data/coco/images" \
            --output "$out/$precision" --conf 0.001 --precision $precision
        "$haul" export "$out/$precision" --to coco --dest "$work/photographs-$precision.json"
        echo "$precision:"
        "$HAUL_PYTHON" scripts/coco_map.py "$work/photographs-$precision.json" \
            "$data/coco/instances.json" --near 0.419 --within $within
    done
}

# All features but `cuda`, for which CUDA's compiler is needed: scripts/cuda/test.sh has that.
FEATURES=failpoints,otel

# The binary with these features: killed, failing and crashing at each of its failpoints, the
# asynchronous door's too, and traced.
failpoints() {
    cargo test --locked --features $FEATURES --test failpoints --test serve_async --test serve_otel \
        --no-run
    timeout --kill-after=30 15m cargo test --locked --features $FEATURES --no-fail-fast \
        --test failpoints --test serve_async --test serve_otel
}

# GPUs, emulated.
cuda() {
    [ "${HAUL_TEST_CUDA:-}" = 1 ] || skip "HAUL_TEST_CUDA is not 1 (it takes half an hour)"
    scripts/cuda/test.sh "$target/cuda"
}

# The scripts that are run on GPU machines, on this CPU: whether they work, not whether haul does there.
gpu_scripts() {
    [ -x "$haul" ] || skip "there is no release build"
    [ -x "$HAUL_PYTHON" ] || skip "there is no virtual environment"
    OUT=$work/gpu-scripts PYTHON=$HAUL_PYTHON scripts/gpu/accept.sh "$haul" \
        testdata/model/shapes.safetensors testdata/pictures --dry --imgsz 320 \
        --only neighbours --only killed --only absent
}

memcheck() {
    if [ $install = no ]; then
        scripts/valgrind.sh --no-install
    else
        scripts/valgrind.sh
    fi
}

accept() {
    [ -x "$haul" ] || skip "there is no release build"
    [ -x scripts/accept.sh ] || skip "there is no scripts/accept.sh"
    timeout --kill-after=30 $((10 + accept_count / 5))m scripts/accept.sh "$accept_count"
}

# `cargo test`, counted from what it prints. A test that has nothing to work on here prints a line
# that begins with "skipped:" and passes; it is counted as skipped.
tests() {
    local before=$SECONDS code=0 log=$work/tests.log ok bad quiet said=passed
    printf '\n== tests\n'
    : >"$log"
    cargo test --locked --no-run && # compiling may take its time; a test that hangs may not
        timeout --kill-after=30 25m \
            cargo test --locked --no-fail-fast -- --show-output 2>&1 | tee "$log" || code=$?
    read -r ok bad quiet < <(awk '
        /^test result:/ {
            for (i = 1; i < NF; i++) {
                # "test result: ok. 12 passed; 0 failed; 1 ignored; ..."
                if ($(i + 1) == "passed;") ok += $i
                if ($(i + 1) == "failed;") bad += $i
                if ($(i + 1) == "ignored;") ignored += $i
            }
        }
        /^---- .* ----$/ { counted = 0 }
        /^skipped:/ && !counted { counted = 1; skipped++ }
        END { print ok - skipped, bad + 0, ignored + skipped }' "$log")
    if [ "$code" != 0 ]; then
        said="FAILED ($code)"
        failures+=("tests")
        [ "$bad" != 0 ] || bad=1 # it did not compile, or the process of a test ended
    fi
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + quiet))
    table+=("$(printf '%-28s %6d s  %s' tests $((SECONDS - before)) \
        "$said: $ok passed, $bad failed, $quiet skipped")")
}

# The fuzz targets are for a nightly compiler and by hand; that they compile is seen to here.
fuzz_targets() {
    command -v c++ >/dev/null || skip "a C++ compiler is not here (libfuzzer is in C++)"
    cargo check --manifest-path fuzz/Cargo.toml --target-dir "$target/fuzz"
}

# Things that ask the server, each by its own program. What could be had here and is not is a failure.
asked_by() { # PACKAGE COMMAND...
    local package=$1
    shift
    [ -x "$haul" ] || skip "there is no release build"
    python_is_new_enough || skip "Python 3.11 or newer is not here"
    if [ -f "$work/radosgw/env" ]; then
        set -a
        # shellcheck source=/dev/null
        . "$work/radosgw/env"
        set +a
    fi
    server "$package" timeout --kill-after=30 10m "$@"
}

page() { asked_by chromium-driver python3 scripts/check_page.py --haul "$haul"; }

metrics() { asked_by prometheus python3 scripts/check_metrics.py --haul "$haul"; }

load() { asked_by wrk python3 scripts/load.py --haul "$haul" --seconds 3; }

boto3() { asked_by python3 "$HAUL_PYTHON" scripts/check_boto3.py --haul "$haul"; }

signed() {
    asked_by python3 "$HAUL_PYTHON" scripts/check_auth.py "$haul" testdata/model/shapes.safetensors \
        testdata/pictures/pond.jpg
}

# The function behind the emulator of AWS Lambda that cargo-lambda has.
lambda() { asked_by python3 scripts/check_lambda.sh "$target/lambda" "$haul"; }

# Requests whose results are fetched later, while the server is killed: in folders, then in a bucket
# and with a queue to be told.
asynchronous() {
    local port queue code=0
    asked_by python3 "$HAUL_PYTHON" scripts/accept_async.py --haul "$haul"
    [ -f "$work/radosgw/env" ] || skip "in folders it is right; there is no S3 server"
    port=$(python3 scripts/servers/ports.py 1)
    "${HAUL_PYTHON%/*}/moto_server" -H 127.0.0.1 -p "$port" >"$work/moto.log" 2>&1 &
    queue=$!
    for _ in $(seq 100); do
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
        sleep 0.2
    done
    asked_by python3 "$HAUL_PYTHON" scripts/accept_async.py --haul "$haul" --s3 \
        --sqs "http://127.0.0.1:$port" || code=$?
    kill $queue
    return $code
}

# --- all of it ---------------------------------------------------------------------------------

[ $install = no ] || stage "install" install_missing
stage "licences" licences
stage "cargo fmt" cargo fmt --check
stage "cargo clippy" cargo clippy --all-targets --locked -- -D warnings
stage "clippy with features" cargo clippy --all-targets --locked --features $FEATURES -- -D warnings
stage "cargo doc" rustdoc
stage "test servers" test_servers
# In this shell, for all that follows.
while IFS= read -r line; do
    case $line in HAUL_TEST_*) export "${line?}" ;; esac
done < <(cat "$work/radosgw/env" 2>/dev/null)
stage "fault proxy" fault_proxy
tests
stage "failpoints and traces" failpoints # after `tests`: it builds the binary anew, with the features
stage "kernels under valgrind" memcheck
stage "fuzz targets" fuzz_targets
stage "release build" release_build
stage "vectorised kernels" vectorised
stage "first command" quickstart
stage "export to pycocotools" coco
stage "export to megadetector" megadetector
stage "documents" documents
stage "job files" job_files
stage "page in Chromium" page
stage "boto3" boto3
stage "signed requests" signed
stage "Lambda's emulator" lambda
stage "metrics" metrics
stage "load" load
stage "asynchronous" asynchronous
stage "slurm array" slurm_array
stage "mAP on photographs" photographs
stage "crash and resume" accept
stage "scripts for GPU machines" gpu_scripts
stage "GPUs, emulated" cuda
stage "S3 to S3" accept_s3
stage "S3 with checksums" checksums

printf '\n== time\n'
printf '%s\n' "${table[@]}"
printf '%-28s %6d s\n' "all" $SECONDS
if [ ${#failures[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failures[@]}"
fi
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" = 0 ]
