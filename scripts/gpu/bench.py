#!/usr/bin/env python3
"""The network alone on a GPU: haul beside PyTorch, in turns, in one run.

    python scripts/gpu/bench.py BINARY MODEL... --pictures DIR [--batches 1,8,32,64] [--out DIR]

MODEL is a checkpoint (.pt or .safetensors), or synthetic-n, -s or -m, whose weights this script makes itself.

All get the same letterboxed 640x640 photographs. For each batch size every contestant is first warmed up and
compiled, then in each round everybody takes a turn, each round beginning with another one, and the card's own matrix
rate is measured between them. Ratios are those of one round; the table has medians, with the least and the most.

What is measured:
  pictures to candidates    u8 pictures in host memory to candidates in host memory: copies, normalisation, network,
                            boxes, filter. This is what `haul bench --only model` measures. PyTorch does it with pinned
                            memory, two batches in flight and three streams (copy, compute, filter).
  device only               PyTorch alone, with the pictures on the card already and the cells' boxes left there, by
                            CUDA's events: no copy, no filter. haul has no such number; beside it haul does more.

PyTorch's network is scripts/train/yolov8.py with batch normalisation folded, in f16, channels-last, under
inference_mode with cudnn.benchmark; `compile` is torch.compile with static shapes and without graph breaks.
"""

import argparse
import contextlib
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

import network
import torch
import torch._dynamo
from machine import Haul, about, card

SIDE = 640
PICTURES = 64


def converted(haul, model, work):
    """The model as .safetensors."""
    if Path(model).suffix == ".safetensors":
        return str(Path(model).resolve())
    new = work / f"{Path(model).stem}.safetensors"
    done = haul.run(["model", "convert", model, "--dest", new], 120) if not new.exists() else None
    if done and done.code:
        sys.exit(f"haul could not convert {model}: {done.last_words()}")
    return str(new.resolve())


class Clock:
    """Seconds of work on a device, by its events where it has them."""

    def __init__(self, device):
        self.device = device

    def time(self, work):
        if self.device.type != "cuda":
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    def rate(self, once, seconds):
        """How often a second: enough turns for so many seconds, counted by a short try before."""
        tries = 3
        each = self.time(lambda: [once() for _ in range(tries)]) / tries
        count = max(1, round(seconds / max(each, 1e-6)))
        return count / self.time(lambda: [once() for _ in range(count)])


class DeviceOnly:
    """Pictures that are on the device already to rows that stay there."""

    beside = False

    def __init__(self, rows, pictures, batch, device, keep):
        self.batch, self.clock, self.rows = batch, Clock(device), rows
        self.input = pictures[:batch].to(device)

    def warm(self):
        for _ in range(4):
            self.rows(self.input)

    def turn(self, seconds):
        return self.batch * self.clock.rate(lambda: self.rows(self.input), seconds)


class Whole:
    """Pictures in host memory to candidates in host memory, with two batches in flight."""

    beside = True

    def __init__(self, rows, pictures, batch, device, keep):
        """With `keep`, rows are copied before the next batch overwrites them (CUDA graphs)."""
        self.rows, self.batch, self.cuda, self.keep = rows, batch, device.type == "cuda", keep
        starts = range(0, max(len(pictures) - batch, 0) + 1, batch)
        self.host = [pictures[start:start + batch].clone() for start in starts]
        if self.cuda:
            self.host = [pictures.pin_memory() for pictures in self.host]
            self.copying, self.computing, self.filtering = (torch.cuda.Stream() for _ in range(3))
            self.copied, self.computed = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))
        self.input = [torch.empty_like(self.host[0], device=device) for _ in range(2)]
        self.found = 0

    def stream(self, stream):
        return torch.cuda.stream(stream) if self.cuda else contextlib.nullcontext()

    def submit(self, number):
        slot = number % 2
        with self.stream(self.cuda and self.copying):
            if self.cuda:
                self.copying.wait_event(self.computed[slot])  # the batch before the last has been read
            self.input[slot].copy_(self.host[number % len(self.host)], non_blocking=True)
            if self.cuda:
                self.copied[slot].record(self.copying)
        with self.stream(self.cuda and self.computing):
            if self.cuda:
                self.computing.wait_event(self.copied[slot])
            rows = self.rows(self.input[slot])
            if self.keep:
                rows = rows.clone()
            if self.cuda:
                self.computed[slot].record(self.computing)
        return rows, slot

    def finish(self, rows, slot):
        """The candidates of a batch: (picture, row) of each. Waits for them."""
        with self.stream(self.cuda and self.filtering):
            if self.cuda:
                self.filtering.wait_event(self.computed[slot])
                rows.record_stream(self.filtering)
            picture, cell = (rows[:, 4] > network.CONF).nonzero(as_tuple=True)
            kept = torch.cat((picture[:, None].float(), rows[picture, :, cell]), 1).cpu()
        self.found += len(kept)
        return kept

    def batches(self, count):
        waiting = None
        for number in range(count):
            begun = self.submit(number)
            if waiting:
                self.finish(*waiting)
            waiting = begun
        self.finish(*waiting)

    def warm(self):
        self.batches(6)

    def turn(self, seconds):
        done, start = 0, time.perf_counter()
        while done == 0 or time.perf_counter() - start < seconds:
            count = 8 if self.cuda else 1
            self.batches(count)
            done += count * self.batch
        return done / (time.perf_counter() - start)


class HaulBench:
    """`haul bench`; a process for each turn, whose start and warm-up are in no rate."""

    beside = True

    def __init__(self, haul, model, args, batch, precision):
        self.batch, self.haul, self.last = batch, haul, {}
        self.command = ["bench", "--model", model, "--images", args.pictures, "--square", "--only", "model", "--json",
                        "--precision", precision, "--imgsz", SIDE, *haul.where(args.device, batch)]

    def warm(self):
        pass

    def turn(self, seconds):
        done = self.haul.run([*self.command, "--seconds", max(seconds, 0.1)], 120)
        self.last = done.report
        if done.code or not self.last.get("model_images_per_second"):
            raise RuntimeError(f"haul bench ended with exit {done.code}: {done.last_words()}")
        return self.last["model_images_per_second"]


def matrix_rate(device, dtype, seconds):
    """10^12 operations a second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    rate = Clock(device).rate(lambda: torch.matmul(a, b, out=out), seconds)
    return 2 * n**3 * rate / 1e12


class Bench:
    def __init__(self, args, out, work, log):
        self.args, self.out, self.work, self.log = args, out, work, log
        self.device = torch.device(args.device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.haul = Haul(args.binary, log)
        self.end = time.monotonic() + args.budget
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        torch.backends.cudnn.benchmark = True
        _, pictures, _ = network.squares(args.pictures, PICTURES, SIDE)
        # Repeated where the folder has fewer: a batch is full.
        repeats = -(-max(args.batches) // len(pictures))
        self.pictures = torch.from_numpy(pictures).repeat(max(repeats, 1), 1, 1, 1)
        self.result = {"dry": self.device.type != "cuda", "command": shlex.join(sys.argv), "about": about(),
                       "haul": self.haul.version, "torch": torch.__version__, "cuda": torch.version.cuda,
                       "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
                       "torch_dtype": str(self.dtype), "sections": []}

    def left(self):
        return self.end - time.monotonic()

    def say(self, text):
        print(text, flush=True)
        print(text, file=self.log, flush=True)

    def path(self, model):
        """The model's file; synthetic ones are made where they are not there yet."""
        if not model.startswith("synthetic-"):
            return converted(self.haul, model, self.work)
        path = self.work / f"{model}.safetensors"
        network.synthetic(model[-1], path, self.pictures[:4 if self.args.dry else 16].numpy(), self.device)
        return str(path)

    def contestants(self, path, batch):
        """Each as (row of the table, a function that makes what takes its turns)."""
        every = []

        def add(name, mode, precision, kind, make):
            every.append(({"name": name, "mode": mode, "precision": precision, "beside": kind.beside, "rates": [],
                           "why": "no time left"}, make))

        for precision in self.args.precisions:
            add(f"haul {precision}", "haul", precision, HaulBench,
                lambda precision=precision: HaulBench(self.haul, path, self.args, batch, precision))
        precision = {torch.float16: "f16", torch.float32: "f32"}[self.dtype]
        for mode in ["eager", *self.args.compile]:
            name = f"PyTorch {precision}, {mode if mode == 'eager' else f'compile ({mode})'}"
            for kind in (Whole, DeviceOnly):
                add(name, mode, precision, kind,
                    lambda mode=mode, kind=kind: kind(self.rows(path, mode), self.pictures, batch, self.device,
                                                      keep=mode in ("reduce-overhead", "max-autotune")))
        return every

    def rows(self, path, mode):
        """PyTorch's function from pictures to rows, one for both ways to measure it."""
        if mode not in self.ready:
            # Parameters are ordinary tensors, which every compiler knows.
            with torch.inference_mode(False):
                rows = network.Rows(network.load(path), SIDE, SIDE, self.dtype, self.device)
            if mode != "eager":
                rows = torch.compile(rows, mode=mode, dynamic=False, fullgraph=True)
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # other streams will read the weights
            self.ready[mode] = rows
        return self.ready[mode]

    def section(self, model, path, batch, end):
        """One batch size: everybody warmed up, then rounds until the time for it is over."""
        self.ready, running, took = {}, [], {}
        torch._dynamo.reset()  # compiled for another batch size
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        every = self.contestants(path, batch)
        for row, make in every:
            mode, start = row["mode"], time.monotonic()
            # The last time tells how long it takes to compile; the first has the time it wants.
            if mode in self.args.compile and mode not in self.ready and end - start < self.compiling.get(mode, 0):
                row["why"] = f"no time left to compile it ({self.compiling[mode]:.0f} s the last time)"
                continue
            try:
                it = make()
                it.warm()
                running.append((row, it))
            except Exception as error:  # One that cannot run must not end the others.
                row["why"] = first(error)
                self.log.write(traceback.format_exc())
            took[mode] = took.get(mode, 0) + time.monotonic() - start
        self.compiling |= {mode: seconds for mode, seconds in took.items() if mode in self.args.compile}
        self.say(f"{model}, batch {batch}: ready; {', '.join(f'{mode} {s:.1f} s' for mode, s in took.items())}")
        rates, state = [], []
        for number in range(self.args.rounds):
            if number >= 2 and time.monotonic() > end or number and self.left() < 30:
                break
            rates.append(matrix_rate(self.device, self.dtype, self.args.seconds / 2))
            turn = number % max(len(running), 1)
            for row, it in running[turn:] + running[:turn]:
                try:
                    rate = it.turn(self.args.seconds)
                except Exception as error:
                    row["why"], rate = first(error), None
                    self.log.write(traceback.format_exc())
                row["rates"].append(rate)
            state.append(card())
        for row, it in running:
            row["haul"] = getattr(it, "last", None)
        return {"model": model, "batch": batch, "gflop": self.gflop, "matrix_tflops": rates, "card": state,
                "rows": [row for row, _ in every]}

    def model(self, model, end):
        path = self.path(model)
        self.gflop = network.gflop(network.load(path), SIDE, SIDE)
        self.compiling = {}
        for index, batch in enumerate(self.args.batches):
            now = time.monotonic()
            if self.left() < 30 and not self.args.dry:
                self.say(f"{model}, batch {batch} and above: no time left")
                return
            share = (end - now) / (len(self.args.batches) - index)
            self.result["sections"].append(self.section(model, path, batch, now + share))
            self.write()

    def write(self):
        """After each section, so that a run that is cut off leaves what it has."""
        (self.out / f"{self.args.name}.json").write_text(json.dumps(self.result, indent=1, default=str) + "\n")
        (self.out / f"{self.args.name}.md").write_text(markdown(self.result))


def first(error):
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def ratios(base, row):
    """Of the same round."""
    return [a / b for a, b in zip(base["rates"], row["rates"]) if a and b]


def markdown(result):
    machine = result["about"]
    name = machine["card"].get("name", "no GPU")
    lines = [f"# The network alone: {name}", ""]
    if result["dry"]:
        lines += ["**A dry run on the CPU: it tries the script and says nothing about a GPU.**", ""]
    lines += [f"{machine['when']}; driver {machine['card'].get('driver_version', 'none')}, {machine['cpu']}, "
              f"{machine['cores']} cores; {result['haul']}; PyTorch {result['torch']} (CUDA {result['cuda']}, cuDNN "
              f"{result['cudnn']}), {result['torch_dtype']}.", "", f"    {result['command']}", "",
              "Each cell is a median over rounds, with the least and the most. Rows with `host` go from u8 pictures in "
              "host memory to candidates in host memory, as haul's do: compare those. Rows with `device` leave out "
              "copies and filter.", ""]
    for section in result["sections"]:
        matrix = [rate for rate in section["matrix_tflops"] if rate]
        lines += [f"## {Path(section['model']).name}, batch {section['batch']}", "",
                  f"{section['gflop']:.3f} GFLOP a picture. The card's matrix rate in the same rounds: "
                  f"{spread(matrix, 2)} TFLOP/s." if matrix else "No round was finished.", ""]
        bases = [row for row in section["rows"] if row["name"].startswith("haul") and any(row["rates"])]
        lines += ["| | from | images/s | ms a batch | TFLOP/s | share of the matrix rate |"
                  + "".join(f" {base['name']}, times this |" for base in bases),
                  "| --- | --- | ---: | ---: | ---: | ---: |" + " ---: |" * len(bases)]
        for row in section["rows"]:
            rates = [rate for rate in row["rates"] if rate]
            kind, title = "host" if row["beside"] else "device", row["name"]
            if not rates:
                lines.append(f"| {title} | {kind} | not run: {row['why']} |" + " |" * (3 + len(bases)))
                continue
            rate = statistics.median(rates)
            work = rate * section["gflop"] / 1000
            share = f"{work / statistics.median(matrix):.1%}" if matrix else ""
            cells = [title, kind, spread(rates, 1), f"{1000 * section['batch'] / rate:.3f}", f"{work:.2f}", share]
            cells += ["" if base is row else spread(ratios(base, row), 2) for base in bases]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--pictures", required=True, help="a folder of JPEG files")
    parser.add_argument("--batches", default="1,8,32,64")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precisions", default="f16,bf16", help="of haul")
    parser.add_argument("--compile", default="default,reduce-overhead",
                        help="modes of torch.compile, also max-autotune (minutes for each batch size), or none")
    parser.add_argument("--rounds", type=int, default=5, help="at most; two at least")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything (540)")
    parser.add_argument("--out", default=os.environ.get("OUT") or "gpu-results")
    parser.add_argument("--name", default="bench", help="of the files with the results")
    parser.add_argument("--dry", action="store_true",
                        help="on the CPU, briefly, in f32: tries the script, proves nothing of a GPU")
    args = parser.parse_args()
    if args.dry:
        args.device, args.precisions, args.rounds, args.seconds = "cpu", "f32", 2, 0.2
        if args.batches == parser.get_default("batches"):
            args.batches = "1,2"
    args.batches = [int(batch) for batch in args.batches.split(",")]
    args.precisions = args.precisions.split(",")
    args.compile = [] if args.compile == "none" else args.compile.split(",")
    args.pictures = str(Path(args.pictures).resolve())
    return args


def main():
    args = arguments()
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here (--dry tries the script on the CPU)")
    with tempfile.TemporaryDirectory(prefix="haul-bench-") as work, torch.inference_mode(), \
            open(out / f"{args.name}-log.txt", "w") as log:
        bench = Bench(args, out, Path(work), log)
        for index, model in enumerate(args.models):
            share = bench.left() / (len(args.models) - index)
            bench.model(model, time.monotonic() + share)
    print(f"\n{(out / f'{args.name}.md').read_text()}\nresults in {out}")


if __name__ == "__main__":
    main()
