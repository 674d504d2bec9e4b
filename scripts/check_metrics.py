#!/usr/bin/env python3
"""What /metrics says after requests of every kind is what happened, and Prometheus has nothing to
say against it.

    scripts/check_metrics.py [--haul BINARY]

It needs promtool (Debian: prometheus) for the second half, and returns 77 without."""

import argparse
import pathlib
import shutil
import subprocess
import time

from served import MODEL, PICTURES, ROOT, Served, check, in_threads, skip

# The names that CloudWatch has, in Prometheus's spelling and units.
EXPECTED = ["invocations_total", "invocation_4xx_errors_total", "invocation_5xx_errors_total",
            "model_latency_seconds_count", "overhead_latency_seconds_count",
            "model_setup_time_seconds_count", "concurrent_requests", "queue_depth", "workers",
            "workers_busy", "worker_idle_seconds_total", "model_loaded", "shed_total"]


def requests(server):
    """Requests of every kind; how many there were, and how many of them had which class of status."""
    picture = (PICTURES / "pond.jpg").read_bytes()
    codes = []

    def ask(path, body, **headers):
        codes.append(server.ask("POST", path, body, headers.items())[0])

    for path in ("/invocations", "/endpoints/shapes/invocations"):
        ask(path, picture)
        ask(path, picture, Accept="image/png")
        ask(path, b"This is a text.")
        ask(path, picture, Accept="text/csv")
        ask(path, bytes(300_001))
        ask(path, b'{"location": "nothing.jpg"}', **{"Content-Type": "application/json"})
    crowd = in_threads(24, lambda _: server.ask("POST", "/invocations", picture)[0])
    check(503 in crowd and 200 in crowd, f"no overload: {crowd}")
    return codes + crowd, crowd.count(503)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--haul", default=ROOT / "target/release/haul", type=pathlib.Path)
    options = parser.parse_args()
    if not options.haul.exists():
        skip(f"there is no {options.haul}")
    settings = ["--max-requests", "3", "--max-payload", "300000", "--root", PICTURES]
    with Served(options.haul, "--model", MODEL, *settings) as server:
        codes, shed = requests(server)
        for path in ("/ping", "/status", "/execution-parameters", "/", "/nothing"):
            server.ask("GET", path)
        # A worker is counted as busy for a moment after its client has the answer.
        until = time.monotonic() + 30
        while server.json("/status")["requests"]["workers_busy"]:
            check(time.monotonic() < until, "a worker is busy, and nobody asks")
        status, headers, text = server.ask("GET", "/metrics")
        check(status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4"),
              f"{status} {headers['Content-Type']}")
        values = server.metrics()
        state = server.json("/status")
    names = {name.split("{")[0] for name in values}
    missing = [name for name in EXPECTED if f"haul_{name}" not in names]
    check(not missing, f"/metrics lacks {missing}")
    check(all('endpoint="shapes"' in name for name in values), "a metric does not say whose it is")

    def value(name):
        return sum(value for full, value in values.items() if full.split("{")[0] == f"haul_{name}")

    ok = sum(code < 400 for code in codes)
    bad = {first: sum(code // 100 == first for code in codes) for first in (4, 5)}
    seen = {"invocations_total": len(codes), "invocation_4xx_errors_total": bad[4],
            "invocation_5xx_errors_total": bad[5], "model_latency_seconds_count": ok,
            "overhead_latency_seconds_count": ok, "model_setup_time_seconds_count": 1,
            "shed_total": shed, "model_loaded": 1, "concurrent_requests": 0, "queue_depth": 0,
            "workers_busy": 0}
    for name, number in seen.items():
        check(value(name) == number, f"haul_{name} is {value(name)}, and it was {number}")
    check(state["real_time"]["invocations"] == len(codes), f"/status: {state['real_time']}")
    check(value("model_latency_seconds_sum") > 0, "no time was spent")
    print(f"{len(codes)} requests, {bad[4]} with 4xx and {bad[5]} with 5xx, are counted as such")
    if not shutil.which("promtool"):
        skip("there is no promtool (Debian: prometheus), so its findings are not known")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    said = (done.stdout + done.stderr).decode().strip()
    check(done.returncode == 0 and not said, f"promtool: {done.returncode} {said}")
    print(f"promtool has nothing to say against {len(names)} names")


main()
