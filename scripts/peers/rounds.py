#!/usr/bin/env python3
"""Times haul and its peers in turns, and writes what came out.

scripts/bench_peers.sh prepares what this needs and calls it; that script's header says what is
measured. In every round each contestant of a section works once for some seconds, so that what else
happens on the machine hits all of them alike; ratios are taken within a round, and their
median is reported. Python peers stay alive through a section and wait in between; haul
warms itself each time. The engines' own words go to a log in the work folder.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import report

HERE = Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")


class NotRun(Exception):
    """Why a contestant has no figure."""


# --- the machine -------------------------------------------------------------------------------


def busy_seconds():
    """Seconds that all processors have worked, or were kept from it by the hypervisor."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


class Others:
    """How many processors the rest of the machine used meanwhile."""

    def __init__(self):
        self.busy, self.since = busy_seconds(), time.monotonic()

    def cores(self, ours):
        return max(0.0, (busy_seconds() - self.busy - ours) / (time.monotonic() - self.since))


class Patience:
    """Waits for a quiet moment, and measures again what was disturbed, for so many seconds in all.

    Neighbours that share a core with a virtual machine do not show in its own counters. They show in
    what the core can do at most, which `gauge` tells.
    """

    def __init__(self, seconds, gauge=None):
        self.left, self.gauge, self.best = seconds, gauge, 0.0

    def steady(self):
        """Whether the cores can do what they could at their best."""
        rate = self.gauge() if self.gauge else None
        if not rate:
            return True
        self.best = max(self.best, rate)
        return rate >= report.STEADY * self.best

    def measure(self, contestant, seconds, log):
        """What `contestant` answers, the cores that others used meanwhile, and whether ours were steady."""
        while True:
            before = self.wait()
            others, start = Others(), time.monotonic()
            said = contestant.go(seconds, log)
            used = others.cores(said["cpu_seconds"])
            steady = self.steady() and before
            if (used <= report.QUIET and steady) or self.left <= 0:
                return said, used, steady
            self.left -= time.monotonic() - start

    def wait(self):
        while self.left > 0:
            others = Others()
            time.sleep(0.3)
            quiet = others.cores(0) <= report.QUIET
            if self.steady() and quiet:
                return True
            self.left -= 0.5
        return self.steady()


def machine():
    said = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)", said, re.M)
    family = [re.search(rf"^{key}\s*: (\d+)", said, re.M) for key in ("cpu family", "model")]
    flags = set(said.partition("flags")[2].partition("\n")[0].split())
    return {
        "cpu": model[1].strip() if model else os.uname().machine,
        "family": "/".join(f[1] for f in family if f),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [f for f in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16") if f in flags],
    }


# --- contestants -------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of a table: how to get its figures, and those it got."""

    name: str
    contestant: object
    key: str = "images_per_second"
    gflop: float | None = None  # of one picture
    precision: str = "f32"
    base: bool = False  # the ratios of the section are taken to this row
    rates: list = field(default_factory=list)  # None where a round gave nothing
    others: list = field(default_factory=list)
    steady: list = field(default_factory=list)
    per_core_second: list = field(default_factory=list)  # hardly changes when others are busy
    why: str | None = None


class Python:
    """A peer that stays alive and answers "go"."""

    def __init__(self, script, *arguments):
        self.command = [sys.executable, str(HERE / script), *map(str, arguments)]
        self.process = None

    def start(self, log):
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1)
        return self.hear()

    def hear(self):
        # Libraries greet on their first start; an answer is one object in one line.
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise NotRun(f"it ended with code {self.process.wait()}; its log says why")

    def go(self, seconds, _log):
        try:
            self.process.stdin.write(f"go {seconds}\n")
        except BrokenPipeError:
            raise NotRun("it has ended") from None
        said = self.hear()
        said["images_per_second"] = said["images"] / said["seconds"]
        said["images_per_core_second"] = said["images"] / said["cpu_seconds"]
        return said

    def stop(self):
        if self.process:
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Command:
    """A program that is started for each round and prints one JSON object."""

    def __init__(self, *command, timeout=600):
        self.command, self.timeout = [str(part) for part in command], timeout

    def start(self, _log):
        if not os.access(self.command[0], os.X_OK):
            raise NotRun(f"there is no {Path(self.command[0]).name}")
        return {}

    def go(self, seconds, log):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [part.replace("{seconds}", str(seconds)) for part in self.command]
        start = time.monotonic()
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=self.timeout)
        except subprocess.TimeoutExpired:
            raise NotRun(f"it took longer than {self.timeout} s") from None
        took = time.monotonic() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        log.write(done.stderr)
        log.flush()
        if done.returncode:
            words = done.stderr.strip().splitlines()
            raise NotRun(f"code {done.returncode}: {words[0] if words else 'it said nothing'}")
        said = self.read(done.stdout) | {"wall_seconds": took}
        said["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return said

    def read(self, text):
        return json.loads(text)

    def stop(self):
        pass


class Whole(Command):
    """A program over a folder of `images`, from its start to its end."""

    def __init__(self, images, *command):
        super().__init__(*command)
        self.images = images

    def read(self, _text):
        return {}

    def go(self, seconds, log):
        with tempfile.TemporaryDirectory() as fresh:
            kept, self.command = self.command, [part.replace("{output}", f"{fresh}/out") for part in self.command]
            try:
                said = super().go(seconds, log)
            finally:
                self.command = kept
        return said | {"images_per_second": self.images / said["wall_seconds"]}


# --- sections ----------------------------------------------------------------------------------


def gflop(path):
    """Of all convolutions of an ONNX model, a multiply-add counted as two."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.output]}
    weights = {w.name: list(w.dims) for w in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            _, c, kh, kw = weights[node.input[1]]
            _, out, h, w = shapes[node.output[0]]
            total += 2 * out * h * w * c * kh * kw
    return total * 1e-9


class Bench:
    """What the sections are made of, for one haul, one set of data and so many workers."""

    def __init__(self, args):
        self.args, data = args, args.data
        self.photos = data / "coco" / "images"
        self.onnx, self.pt = data / "weights" / "yolov8n.onnx", data / "weights" / "yolov8n.pt"
        self.cost = {}

    def haul(self, model, only, precision, workers, square=True, images=None):
        command = [self.args.haul, "bench", "--model", model, "--images", images or self.photos, "--imgsz", 640,
                   *(["--square"] if square else []), "--precision", precision, "--workers", workers,
                   "--seconds", "{seconds}", "--only", only, "--json"]
        return Command(*command)

    def model_rows(self, onnx, model, workers, ort=True):
        if onnx not in self.cost:
            self.cost[onnx] = gflop(onnx)
        cost, w = self.cost[onnx], workers
        peers = ["--model", onnx, "--images", self.photos]
        rows = [Row(f"OpenVINO {p}, {w} stream{'s' * (w > 1)}",
                    Python("model_only.py", "openvino", *peers, "--precision", p, "--workers", w), gflop=cost, precision=p)
                for p in ("f32", "bf16")]
        if ort:
            rows.append(Row(f"ONNX Runtime f32, {w} session{'s' * (w > 1)} of 1 thread",
                            Python("model_only.py", "onnxruntime", *peers, "--workers", w), gflop=cost))
        if ort and w > 1:
            rows.append(Row(f"ONNX Runtime f32, 1 session of {w} threads",
                            Python("model_only.py", "onnxruntime", *peers, "--workers", 1, "--threads", w), gflop=cost))
        for p in ("f32", "bf16"):
            haul = self.haul(model, "model", p, w)  # one run gives both rows
            rows.append(Row(f"haul {p}, every box decoded", haul, "model_dense_images_per_second", cost, p, base=True))
            rows.append(Row(f"haul {p}", haul, "model_images_per_second", cost, p))
        return rows

    def model(self):
        return self.model_rows(self.onnx, self.pt, self.args.workers)

    def latency(self):
        return self.model_rows(self.onnx, self.pt, 1)

    def small(self):
        return self.model_rows(self.args.work / "s.onnx", self.args.work / "s.safetensors", self.args.workers, ort=False)

    def medium(self):
        return self.model_rows(self.args.work / "m.onnx", self.args.work / "m.safetensors", self.args.workers, ort=False)

    def files(self):
        w, many = self.args.workers, self.args.many
        rows = [Row(f"OpenVINO pipeline {p}", Python("openvino_pipeline.py", "--model", self.onnx, "--images", many,
                                                     "--precision", p, "--workers", w), precision=p)
                for p in ("f32", "bf16")]
        return rows + [Row(f"haul {p} --square", self.haul(self.pt, "end-to-end", p, w, images=many),
                           "end_to_end_images_per_second", precision=p, base=True) for p in ("f32", "bf16")]

    def predict(self):
        w, many = self.args.workers, self.args.many
        yolo = ["yolo_predict.py", "--model", self.pt, "--images", many]
        rows = [Row("yolo predict", Python(*yolo)), Row(f"yolo predict, {w} threads", Python(*yolo, "--threads", w))]
        return rows + [Row(f"haul {p}", self.haul(self.pt, "end-to-end", p, w, square=False, images=many),
                           "end_to_end_images_per_second", precision=p, base=True) for p in ("f32", "bf16")]

    def whole(self):
        count, few = self.args.whole_count, self.args.few
        yolo = [sys.executable, HERE / "yolo_predict.py", "--model", self.pt, "--images", few, "--once"]
        haul = [self.args.haul, "run", "--model", self.pt, "--input", few, "--output", "{output}", "--quiet"]
        return [Row("yolo predict", Whole(count, *yolo))] + [
            Row(f"haul run {p}", Whole(count, *haul, "--precision", p), precision=p, base=True) for p in ("f32", "bf16")]


SECTIONS = {  # name: title, and what the reader must know
    "model": ("Network alone, yolov8n",
              "640x640, {workers} pictures at a time, one core each. From letterboxed bytes in memory to raw output; "
              "the peers' conversion to f32 is theirs to do and counted."),
    "latency": ("Network alone, yolov8n, one core", "The same with one picture at a time on one core."),
    "small": ("Network alone, a synthetic yolov8s", "Weights by formula. Nearly every anchor is a find, so that "
              "decoding only the finds saves nothing: look at the rows with every box decoded."),
    "medium": ("Network alone, a synthetic yolov8m", "As above."),
    "files": ("JPEG files to boxes, 640x640 square",
              "{pictures} photographs of COCO in a folder; conf 0.25, IoU 0.7. Without start-up."),
    "predict": ("JPEG files to boxes, default form",
                "Rectangular letterbox, conf 0.25. Without start-up. yolo predict takes one core less than there are; "
                "the second row gives it all."),
    "whole": ("JPEG files to boxes, whole process",
              "{whole_count} photographs, from the start of the program to its end; haul writes its results to disk and "
              "syncs them, yolo predict throws them away."),
}


def run_section(name, bench, args, patience, log, peaks):
    rows = [row for row in getattr(bench, name)() if row.contestant.command[0] != "none"]
    about = {}
    contestants = list({id(row.contestant): row.contestant for row in rows}.values())
    dead = {}
    try:
        for contestant in contestants:
            try:
                about |= label(contestant.start(log))
            except NotRun as why:
                dead[id(contestant)] = str(why)
        for number in range(args.rounds):
            if args.peak:
                patience.wait()
                peaks.append(Command(args.peak, args.workers, 0.2).go(0, log))
            # Every other round backwards, so that nobody always follows the same one.
            for contestant in contestants[:: 1 if number % 2 == 0 else -1]:
                said, others, steady = {}, None, None
                if id(contestant) not in dead:
                    try:
                        said, others, steady = patience.measure(contestant, args.seconds, log)
                    except NotRun as why:
                        dead[id(contestant)] = str(why)
                    about |= label(said)
                for row in (r for r in rows if r.contestant is contestant):
                    rate = said.get(row.key)
                    row.rates.append(rate)
                    row.others.append(others)
                    row.steady.append(steady)
                    row.per_core_second.append(said.get(row.key.replace("per_second", "per_core_second")))
                    row.why = dead.get(id(contestant)) or (None if rate else f"no {row.key}")
                    if rate:
                        print(f"{name} {number + 1}/{args.rounds}: {row.name}: {rate:.2f} images/s"
                              f" (others used {others:.2f} cores{'' if steady else ', and ours were not at their best'})", file=sys.stderr, flush=True)
    finally:
        for contestant in contestants:
            contestant.stop()
    title, note = SECTIONS[name]
    note = note.format(workers=args.workers, pictures=args.pictures, whole_count=args.whole_count)
    kept = ("name", "precision", "gflop", "base", "why", "rates", "others", "steady", "per_core_second")
    section = {"section": name, "title": title, "note": note,
               "rows": [{key: getattr(row, key) for key in kept} for row in rows]}
    for line in report.not_run(section):
        print(f"{name}: not run: {line}", file=sys.stderr)
    return section, about


def label(said):
    """Versions and classes that a contestant tells of itself."""
    out = {}
    if said.get("ready"):
        out[said["engine"]] = said["version"]
        if "torch" in said:
            out["torch"] = said["torch"]
    if said.get("numeric_class"):
        out[f"haul class {said['numeric_class']}"] = "used"
    return out


def links(source, target, count):
    """`count` files in a folder, all of them links to the photographs of another."""
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    target.mkdir()
    for number in range(count):
        file = files[number % len(files)]
        name = target / f"{number:05}-{file.name}"
        try:
            name.hardlink_to(file)
        except OSError:  # another filesystem
            name.write_bytes(file.read_bytes())
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with weights/ and coco/images/")
    parser.add_argument("--work", type=Path, required=True, help="where s.onnx, m.safetensors ... are, and the log goes")
    parser.add_argument("--haul", type=Path, required=True, help="the binary; none leaves it out")
    parser.add_argument("--peak", type=Path, help="the program made from peak.c")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each contestant in each round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=1000, help="in the folder of JPEG files")
    parser.add_argument("--whole-count", type=int, default=158, help="pictures for whole processes")
    parser.add_argument("--patience", type=float, default=120.0,
                        help="seconds of the whole run for waiting until others are quiet and measuring again (120)")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="a section; may be given again")
    parser.add_argument("--said", default="", help="the command to name in the report")
    args = parser.parse_args()
    args.peak = args.peak if args.peak and args.peak.exists() else None

    result = {"date": time.strftime("%Y-%m-%d"), "command": args.said, "machine": machine(), "rounds": args.rounds,
              "seconds": args.seconds, "workers": args.workers, "versions": {"Python": sys.version.split()[0]}, "sections": []}
    if os.access(args.haul, os.X_OK):
        version = subprocess.run([args.haul, "--version"], capture_output=True, text=True).stdout.split()
        result["versions"]["haul"] = version[-1] if version else "?"
    commit = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if commit.returncode == 0:
        result["versions"]["haul commit"] = commit.stdout.strip()

    # Whatever unit is shared slows down plain multiply-adds.
    gauge = Command(args.peak, args.workers, 0.05) if args.peak else None
    patience, peaks = Patience(args.patience, gauge and (lambda: gauge.go(0, sys.stderr)["f32_fma"])), []
    with tempfile.TemporaryDirectory() as folder, open(args.work / "peers.log", "w") as log:
        args.many = links(args.data / "coco" / "images", Path(folder) / "many", args.pictures)
        args.few = links(args.data / "coco" / "images", Path(folder) / "few", args.whole_count)
        bench = Bench(args)
        for name in args.only or SECTIONS:
            section, about = run_section(name, bench, args, patience, log, peaks)
            result["sections"].append(section)
            result["versions"] |= about
            result["peaks"] = {key: [p[key] for p in peaks if p[key]] for key in ("f32_fma", "bf16_dot", "bf16_tiles")}
            report.write(result, args.out)  # after each section: a long run that is stopped leaves what it has
    print(f"results in {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
