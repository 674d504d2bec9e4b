#!/usr/bin/env python3
"""How many requests `haul serve` answers, how long they take, and what it does with too many.

    scripts/load.py [--haul BINARY] [--model FILE] [--picture FILE] [--seconds 10]
                    [--connections 1,8,64] [--overload 640] [--json FILE] [-- SERVE FLAGS]

Needs wrk (Debian: wrk), and returns 77 without. Without --model and --picture it takes those of
HAUL_PARITY_DATA, or else what comes with haul. Client and server share this machine's processors:
what the client took is printed beside. Nothing here is a test of speed; only what no speed excuses
is a failure: an answer that is neither a result nor a refusal, a connection without one, memory
that goes on growing."""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import tempfile
import threading
import time

from served import MODEL, PICTURES, ROOT, Served, check, skip

CLOCK = os.sysconf("SC_CLK_TCK")

# Counts statuses, and prints what wrk has seen as JSON.
SCRIPT = """
local file = io.open(os.getenv("PICTURE"), "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "image/jpeg"
file:close()
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() ok, shed, other = 0, 0, 0 end
function response(status)
  if status == 200 then ok = ok + 1 elseif status == 503 then shed = shed + 1 else other = other + 1 end
end
function done(summary, latency)
  local sum = {ok = 0, shed = 0, other = 0}
  for _, thread in ipairs(threads) do
    for name in pairs(sum) do sum[name] = sum[name] + thread:get(name) end
  end
  local errors = summary.errors
  io.stderr:write(string.format(
    '{"seconds":%f,"requests":%d,"ok":%d,"shed":%d,"other":%d,"connect":%d,"read":%d,"write":%d,' ..
    '"timeout":%d,"p50":%f,"p99":%f,"max":%f}',
    summary.duration / 1e6, summary.requests, sum.ok, sum.shed, sum.other, errors.connect, errors.read,
    errors.write, errors.timeout, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"""


def cpu(pid):
    """Seconds of a processor that a process has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK


def memory(pid):
    """MiB that a process has in memory."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("FAILED: no VmRSS")


class Watch:
    """The most memory that a process had while this was open."""

    def __init__(self, pid):
        self.pid, self.most, self.over = pid, memory(pid), threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self):
        while not self.over.wait(0.05):
            self.most = max(self.most, memory(self.pid))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def idle(server):
    found = [value for name, value in server.metrics().items()
             if name.startswith("haul_worker_idle_seconds_total")]
    check(len(found) == 1, "there is no haul_worker_idle_seconds_total")
    return found[0]


def load(server, script, picture, connections, seconds):
    """One round: what wrk saw, and what it cost."""
    workers = server.json("/status")["model"]["workers"]
    before = idle(server), cpu(server.pid), resource.getrusage(resource.RUSAGE_CHILDREN), memory(server.pid)
    began = time.monotonic()
    with Watch(server.pid) as watch:
        done = subprocess.run(
            ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s",
             "--timeout", "60s", "--script", script, f"{server.url}/invocations"],
            capture_output=True, text=True, env=os.environ | {"PICTURE": str(picture)})
    elapsed = time.monotonic() - began
    check(done.returncode == 0, f"wrk: {done.stdout} {done.stderr}")
    said = json.loads(done.stderr)
    after = idle(server), cpu(server.pid), resource.getrusage(resource.RUSAGE_CHILDREN), memory(server.pid)
    client = sum(getattr(after[2], kind) - getattr(before[2], kind) for kind in ("ru_utime", "ru_stime"))
    return said | {
        "connections": connections,
        "per_second": said["ok"] / said["seconds"],
        "busy": 1 - (after[0] - before[0]) / (workers * elapsed),
        "server_cpu": (after[1] - before[1]) / elapsed,
        "client_cpu": client / elapsed,
        "memory_before": before[3], "memory_most": watch.most, "memory_after": after[3],
    }


def single(server, picture):
    """Milliseconds of one request alone: the median of nine."""
    body, times = picture.read_bytes(), []
    for _ in range(9):
        began = time.monotonic()
        server.infer(body)
        times.append((time.monotonic() - began) * 1e3)
    return statistics.median(times)


def settled(server):
    """Waits until nobody is in any more."""
    until = time.monotonic() + 60
    while server.json("/status")["requests"]["concurrent"]:
        check(time.monotonic() < until, "requests are still in a minute after their clients are gone")
        time.sleep(0.05)


def show(round):
    print(f"{round['connections']:11} {round['per_second']:9.1f} {round['p50']:9.1f} {round['p99']:9.1f} "
          f"{round['max']:9.1f} {round['busy']:6.1%} {round['server_cpu']:7.2f} {round['client_cpu']:7.2f} "
          f"{round['memory_before']:8.0f} {round['memory_most']:6.0f} {round['memory_after']:6.0f} "
          f"{round['ok']:8} {round['shed']:7}")


def complaints(round):
    """What no load excuses."""
    names = ("other", "connect", "read", "write", "timeout")
    return ", ".join(f"{name}: {round[name]}" for name in names if round[name])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--haul", default=ROOT / "target/release/haul", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--connections", default="1,8,64")
    parser.add_argument("--overload", type=int, default=640)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("flags", nargs="*")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        skip("there is no wrk")
    if not options.haul.exists():
        skip(f"there is no {options.haul}")
    data = os.environ.get("HAUL_PARITY_DATA")
    data = pathlib.Path(data) if data else None
    model = options.model or (data / "weights/yolov8n.pt" if data else MODEL)
    picture = options.picture or (
        sorted((data / "coco/images").glob("*.jpg"))[0] if data else PICTURES / "pond.jpg")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rounds = []
    with tempfile.TemporaryDirectory() as folder, \
            Served(options.haul, "--model", model, *options.flags) as server:
        script = pathlib.Path(folder) / "post.lua"
        script.write_text(SCRIPT)
        status = server.json("/status")
        print(f"{status['endpoint']} ({status['model']['numeric_class']}), {picture.name} of "
              f"{picture.stat().st_size} bytes, {status['model']['workers']} workers, "
              f"{os.cpu_count()} processors for server and client, {options.seconds} s each")
        alone = single(server, picture)
        print(f"{'connections':>11} {'answers/s':>9} {'p50 ms':>9} {'p99 ms':>9} {'max ms':>9} {'busy':>6} "
              f"{'server':>7} {'client':>7} {'MiB: at':>8} {'most':>6} {'end':>6} {'200':>8} {'503':>7}")
        for connections in [int(word) for word in options.connections.split(",")] + [options.overload]:
            round = load(server, script, picture, connections, options.seconds)
            rounds.append(round)
            show(round)
            check(not complaints(round), f"{connections} connections: {complaints(round)}")
            check(round["ok"], f"{connections} connections: nobody got a result")
            settled(server)
        after = single(server, picture)
        most = status["limits"]["requests"]
        if options.overload > most:
            check(rounds[-1]["shed"], f"{options.overload} connections, {most} requests at once, and no refusal")
        # What bodies may have, and as much again for connections.
        grown, room = rounds[-1]["memory_most"] - rounds[-1]["memory_before"], 2 * status["limits"]["bodies_bytes"] / 2**20
        check(grown < room, f"memory grew by {grown:.0f} MiB under overload")
        print(f"one request alone: {alone:.1f} ms before, {after:.1f} ms right after the overload")
        if options.json:
            options.json.write_text(json.dumps({"alone_before": alone, "alone_after": after, "rounds": rounds}, indent=1))


main()
