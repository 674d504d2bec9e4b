#!/usr/bin/env bash
# `haul lambda` behind a real emulator of AWS Lambda: `cargo lambda watch`, from PyPI's wheel.
#
#     scripts/check_lambda.sh DIR [HAUL]
#
# It installs cargo-lambda into DIR/venv (14 MB, without the compiler that it would bring), starts it
# and the function on 127.0.0.1, and invokes it: directly, over its URL, for a drawn picture, with
# events of AWS and with what is no picture. What is in the picture must be what `haul run` says is in
# it, byte for byte. While there is no event the emulator answers 204, which must not end the
# function; so HAUL is best a release build (the default: target/release/haul).
# Where the wheel cannot be had, it says so and returns 77.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# = 1 ] || [ $# = 2 ] || {
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
    exit 2
}
mkdir -p "$1"
dir=$(cd "$1" && pwd)
haul=$(realpath "${2:-${CARGO_TARGET_DIR:-$here/target}/release/haul}")
model=$here/testdata/model/shapes.safetensors
picture=$here/testdata/forms/jpeg-444.jpg

venv=$dir/venv
[ -x "$venv/bin/cargo-lambda" ] || {
    python3 -m venv "$venv" && "$venv/bin/pip" install -q --no-deps cargo-lambda
} || {
    echo "cargo-lambda cannot be installed here" >&2
    exit 77
}
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

pids=()
cleanup() {
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    wait
}
trap cleanup EXIT
fail() {
    echo "check_lambda: $*" >&2
    tail -n 20 "$dir/emulator.log" "$dir/function.log" >&2
    exit 1
}

# The emulator compiles nothing and only speaks, but wants a package with a binary of that name.
mkdir -p "$dir/package/src"
echo "fn main() {}" >"$dir/package/src/main.rs"
printf '[package]\nname = "haul"\nversion = "0.1.0"\n[workspace]\n' >"$dir/package/Cargo.toml"
(cd "$dir/package" && exec "$venv/bin/cargo-lambda" lambda watch --only-lambda-apis \
    -A 127.0.0.1 -P "$port") >"$dir/emulator.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    sleep 0.1
done

rm -rf "$dir/in" "$dir/out" "$dir/lines"
mkdir -p "$dir/in"
cp "$picture" "$dir/in/a.jpg"
flags=(--model "$model" --imgsz 64 --workers 2)
AWS_LAMBDA_FUNCTION_NAME=haul AWS_LAMBDA_FUNCTION_VERSION=1 AWS_LAMBDA_FUNCTION_MEMORY_SIZE=2048 \
    AWS_LAMBDA_RUNTIME_API=http://127.0.0.1:$port/.rt/haul \
    "$haul" lambda "${flags[@]}" --root "$dir/in" --output "$dir/lines" >"$dir/function.log" 2>&1 &
function=$!
pids+=("$function")

"$haul" run --quiet "${flags[@]}" --input "$dir/in" --output "$dir/out" >"$dir/run.log" 2>&1 ||
    fail "haul run failed"
cat "$dir"/out/part-* >"$dir/batch"

api=http://127.0.0.1:$port
invoke() { # of a file with an event
    curl -sS --max-time 60 --data-binary "@$1" "$api/2015-03-31/functions/haul/invocations" \
        -D "$dir/headers" -o "$dir/answer" || fail "no answer to $1"
}
same() { # the batch job's line, with or without its line feed
    cmp -s <(sed -z 's/\n$//' "$dir/batch") <(sed -z 's/\n$//' "$1") ||
        fail "$2 differs from the line of haul run: $(cat "$1")"
    echo "$2: the bytes of haul run"
}

printf '{"name":"a.jpg","bytes":"%s"}' "$(base64 -w0 "$picture")" >"$dir/event"
invoke "$dir/event"
same "$dir/answer" "direct, with bytes"
echo '{"location":"a.jpg"}' >"$dir/event"
invoke "$dir/event"
same "$dir/answer" "direct, with a location"

url=$api/lambda-url/haul
curl -sS --max-time 60 -H 'Content-Type: image/jpeg' --data-binary "@$picture" \
    "$url/invocations?name=a.jpg" -o "$dir/answer"
same "$dir/answer" "the function's URL"
curl -sS --max-time 60 -H 'Content-Type: image/jpeg' -H 'Accept: image/png' \
    --data-binary "@$picture" "$url/invocations" -o "$dir/drawn.png"
python3 - "$dir/drawn.png" <<'PYTHON' || fail "the drawn picture is no PNG of its size"
import struct, sys
data = open(sys.argv[1], "rb").read()
assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.rstrip(b"\0").endswith(b"IEND\xaeB`\x82")
width, height = struct.unpack(">II", data[16:24])
print(f"a drawn picture: PNG, {width} x {height}, {len(data)} bytes")
PYTHON
status=$(curl -sS --max-time 60 -o /dev/null -w '%{http_code}' -H 'Content-Type: image/jpeg' \
    --data-binary no-picture "$url/invocations")
[ "$status" = 400 ] || fail "what is no picture got $status"

python3 - "$here/testdata/lambda/sqs-message.json" >"$dir/event" <<'PYTHON'
import json, sys
record = json.load(open(sys.argv[1]))
record.update(messageId="one", body='{"location":"a.jpg"}')
print(json.dumps({"Records": [record, {**record, "messageId": "two", "body": "{"}]}))
PYTHON
invoke "$dir/event"
[ "$(cat "$dir/answer")" = '{"batchItemFailures":[{"itemIdentifier":"two"}]}' ] ||
    fail "the queue was told $(cat "$dir/answer")"
same "$dir/lines/a.jpg.out" "a message of a queue"

echo '{"some":"thing"}' >"$dir/event"
invoke "$dir/event"
head -n 1 "$dir/headers" | grep -q ' 500 ' || fail "an unknown event is no error"
grep -q '"errorType":"bad_event"' "$dir/answer" || fail "an unknown event: $(cat "$dir/answer")"

# Longer than the emulator waits before it says that there is nothing.
sleep "${HAUL_CHECK_IDLE:-5}"
kill -0 "$function" 2>/dev/null || fail "the function ended while there was no event"
echo '{"location":"a.jpg"}' >"$dir/event"
invoke "$dir/event"
same "$dir/answer" "after some seconds without an event"
