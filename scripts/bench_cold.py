#!/usr/bin/env python3
"""How long it takes from exec to the first answer of `haul serve`, and what that consists of.

    scripts/bench_cold.py MODEL PICTURE [--runs 20] [--json] [-- SERVE FLAGS]

    scripts/bench_cold.py yolov8n.pt street.jpg

It copies the model into folders of its own, once beside a pack (`haul model pack`) and once without,
and starts the server in two ways: on a port, where a client connects as soon as somebody listens,
and with a listening socket handed over, as systemd does, where the client's request waits before the
server is started. Each start answers one picture, with 200, and is ended. The times are from just
before the process is made to the last byte of the answer: medians of so many starts of each kind, in
turn, after one of each that does not count. The files are in the page cache.
The phases are the server's own, from its log line `first answer`, since its `main` began.

HAUL is the binary (target/release/haul).
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

PHASES = ["arguments", "listening", "model", "first_request", "first_answer"]


def request(picture):
    return (
        b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
    ) + picture


def connected(address, process):
    while True:
        try:
            return socket.create_connection(address)
        except ConnectionRefusedError:
            if process.poll() is not None:
                sys.exit(f"the server ended: {process.stderr.read().decode()}")
            time.sleep(0.0002)


def answer(stream):
    """The answer's status and the time of its last byte."""
    response = http.client.HTTPResponse(stream)
    response.begin()
    body = response.read()
    end = time.perf_counter()
    if response.status != 200 or b'"detections"' not in body:
        sys.exit(f"status {response.status}: {body.decode(errors='replace')}")
    return end


def log_line(process):
    for line in process.stderr:
        try:
            line = json.loads(line)
        except ValueError:
            continue
        # The message may lie beside the fields or above them.
        fields = line.get("fields", line)
        if fields.get("message") == "first answer":
            return fields
    sys.exit("the server has not logged its first answer")


def on_a_port(command, picture):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    start = time.perf_counter()
    process = subprocess.Popen(command + ["--port", str(address[1])], stderr=subprocess.PIPE)
    stream = connected(address, process)
    stream.sendall(request(picture))
    return process, stream, start


def on_a_socket(command, picture):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = socket.create_connection(listener.getsockname())
        sender = threading.Thread(target=stream.sendall, args=(request(picture),))
        # LISTEN_PID must be the server's own, which only it knows before it is there; the shell that
        # says so is part of the time.
        script = 'exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        start = time.perf_counter()
        sender.start()
        process = subprocess.Popen(
            ["sh", "-c", script, "sh"] + command, stdin=listener, stderr=subprocess.PIPE
        )
        sender.join()
    return process, stream, start


def once(begin, command, picture):
    process, stream, start = begin(command, picture)
    with stream:
        end = answer(stream)
    fields = log_line(process)
    process.send_signal(signal.SIGTERM)
    threading.Thread(target=process.stderr.read).start()
    process.wait()
    phases = {name: fields[f"{name}_ms"] for name in PHASES}
    phases["before_main_cpu"] = fields["before_main_cpu_ms"]
    return (end - start) * 1e3, phases


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("picture")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    given = sys.argv[1:]
    flags = []
    if "--" in given:
        cut = given.index("--")
        given, flags = given[:cut], given[cut + 1 :]
    arguments = parser.parse_args(given)
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(here, "target"))
    haul = os.environ.get("HAUL", os.path.join(target, "release", "haul"))
    # What `haul model pack` understands of them.
    precision = []
    for index, flag in enumerate(flags):
        if flag == "--precision":
            precision = flags[index : index + 2]
    with open(arguments.picture, "rb") as file:
        picture = file.read()
    with open("/proc/loadavg") as load:
        result = {"runs": arguments.runs, "flags": flags, "load_before": load.read().split()[0]}
    ways = {"port": on_a_port, "socket": on_a_socket}
    with tempfile.TemporaryDirectory() as folder:
        commands = {}
        for weights in "checkpoint", "pack":
            place = os.path.join(folder, weights)
            os.mkdir(place)
            model = shutil.copy2(arguments.model, place)
            if weights == "pack":
                packing = [haul, "model", "pack", model] + precision
                subprocess.run(packing, check=True, stderr=subprocess.DEVNULL)
            commands[weights] = [haul, "serve", "--model", model] + flags
        seen = {(way, weights): [] for weights in commands for way in ways}
        for turn in range(arguments.runs + 1):
            for way, weights in seen:
                run = once(ways[way], commands[weights], picture)
                if turn > 0:
                    seen[way, weights].append(run)
    with open("/proc/loadavg") as load:
        result["load_after"] = load.read().split()[0]
    result["milliseconds"] = {}
    for (way, weights), runs in seen.items():
        whole = [run[0] for run in runs]
        names = ["before_main_cpu"] + PHASES
        phases = {name: statistics.median(run[1][name] for run in runs) for name in names}
        result["milliseconds"].setdefault(way, {})[weights] = {
            "median": round(statistics.median(whole), 2),
            "min": round(min(whole), 2),
            "max": round(max(whole), 2),
            "phases": {name: round(value, 2) for name, value in phases.items()},
        }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"milliseconds from exec to the first answer, medians of {arguments.runs} (least .. most); "
        f"load {result['load_before']} .. {result['load_after']}"
    )
    head = ["before main", "arguments", "listening", "model", "request", "answer"]
    print(f"{'started':<8} {'weights':<11} {'whole':>24}   since main: " + " ".join(f"{h:>11}" for h in head))
    for way, kinds in result["milliseconds"].items():
        for weights, f in kinds.items():
            whole = f"{f['median']:.1f} ({f['min']:.1f} .. {f['max']:.1f})"
            cells = " ".join(f"{value:>11.1f}" for value in f["phases"].values())
            print(f"{way:<8} {weights:<11} {whole:>24}   {'':>12}{cells}")


main()
