#!/usr/bin/env python3
"""See on a GPU what can only be seen on one; accept.sh starts this.

Steps, in this order: doctor, parity, neighbours, absent, killed, files, memory. README.md says what each proves.
Every run of haul has a time limit, and so has the whole; what there was no time for is SKIPped by name.
Needs python3 with numpy, and torch for a part of `memory`.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from pathlib import Path

import numpy as np

import compare
from machine import Haul, about, cores, said

HERE = Path(__file__).resolve().parent
# Means. Single precision in another order differs by 1e-6 and 1e-5 px, TF32 by 1e-3 and 1e-2 px.
F32_SCORE, F32_BOX = 5e-5, 1e-3


class Late(Exception):
    """There is no time left for what comes."""


class Accept:
    """A run of all steps: what it works with, and what it found."""

    def __init__(self, args, work, log):
        self.args, self.work, self.log = args, work, log
        self.haul = Haul(args.binary, log)
        self.end = time.monotonic() + args.budget
        self.results, self.numbers = [], {}
        self.model = str(Path(args.model).resolve())
        given = Path(args.pictures).resolve()
        self.names = sorted(p.name for p in given.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
        if not self.names:
            sys.exit(f"no JPEG files in {args.pictures}")
        # These alone, in one folder: what else lies there, below it too, would be in some runs only.
        self.pictures = self.work / "pictures"
        self.pictures.mkdir()
        for name in self.names:
            link(given / name, self.pictures / name)
        self.gpu = args.device != "cpu"
        doctor = self.haul.run(["doctor"], 60)
        self.doctor = doctor.out + doctor.err
        self.knows_cuda = self.haul.knows_devices and "built without CUDA" not in self.doctor

    # What was found.

    def say(self, mark, name, words):
        self.results.append((mark, name, words))
        line = f"{mark:<5} {name}: {words}"
        print(line, flush=True)
        self.haul.write(line)

    def check(self, name, good, words):
        """On a CPU nothing passes: it was only tried."""
        self.say("FAIL" if not good else "PASS" if self.gpu else "TRIED", name, words)
        return good

    # Running haul.

    def left(self):
        return self.end - time.monotonic()

    def run(self, *arguments, device=None, batch=None, limit=180, env=None):
        """A verb of haul, its other arguments, and where it runs."""
        if self.left() < 5:
            raise Late
        device = self.args.device if device is None else device
        done = self.haul.run([*arguments, *self.haul.where(device, batch)], min(limit, self.left()), env)
        if done.code == -9 and self.left() <= 0:
            raise Late
        return done

    def job(self, name, *arguments, source=None, code=0, **where):
        """A job into a new folder of this name. Raises where it does not end with `code`."""
        out = self.work / name
        done = self.run("run", "--model", self.model, "--input", source or self.pictures, "--output", out, "--json",
                        *arguments, **where)
        if done.code != code:
            raise RuntimeError(f"the job {name} ended with exit {done.code}: {done.last_words()}")
        return out, done

    def many(self):
        """A folder with each picture again and again, by hard links where the file system has them."""
        folder = self.work / "many"
        if not folder.exists():
            folder.mkdir()
            for n in range(self.args.count):
                link(self.pictures / self.names[n % len(self.names)], folder / f"{n:06}.jpg")
        return folder

    # Steps.

    def doctor_step(self):
        print(self.doctor)
        state = about()
        self.numbers["machine"] = state | {"haul": self.haul.version}
        name = state["card"].get("name")
        self.haul.write(said("nvidia-smi"))
        if not self.gpu:
            return self.say("NOTE", "doctor", f"{self.haul.version} on {state['cpu']}, no GPU asked for")
        named = bool(name) and name in self.doctor
        self.check("the card is named", named,
                   f"nvidia-smi has {name or 'no card'}; `haul doctor` names {'it' if named else 'it NOT'}")
        done = self.run("run", "--model", self.model, "--input", self.pictures, "--output", self.work / "cuda99",
                        device="cuda:99")
        self.check("a card that is not there is refused", done.code == 2 and "cuda:99" in done.err,
                   f"exit {done.code}: {done.last_words()}")

    def parity_step(self):
        everything = ["--iou", "1", "--max-det", "8400"]  # no suppression: each cell's box stands for itself
        exact, _ = self.job("cpu-f32", "--precision", "f32", device="cpu")
        cells, _ = self.job("cpu-f32-cells", "--precision", "f32", *everything, "--conf", "0.25", device="cpu")
        exact, cells = compare.lines(exact), compare.lines(cells)
        golden = compare.lines(self.args.golden) if self.args.golden else None
        if golden is None:
            self.say("SKIP", "parity with the goldens", "none were given")
        for precision in ["f32", "f16", "bf16"] if self.gpu else ["f32", "bf16"]:
            out, done = self.job(f"gpu-{precision}", "--precision", precision)
            ours = compare.lines(out)
            both = compare.pairs(exact, ours)
            all_cells, _ = self.job(f"gpu-{precision}-cells", "--precision", precision, *everything, "--conf", "0.001")
            off = compare.errors(compare.pairs(cells, compare.lines(all_cells)), self.args.imgsz)
            share, count = compare.partners(both)
            name = done.report.get("numeric_class", "?")
            self.numbers[f"parity {precision}"] = off | {"class": name, "partners": share, "detections": count}
            words = (f"class {name}: {off['candidates']} candidates ({off['lost']} lost), boxes off by mean "
                     f"{off['box_mean']:.4f} px, p99 {off['box_p99']:.3f}, most {off['box_max']:.2f}; scores by mean "
                     f"{off['score_mean']:.6f}; {share:.2%} of {count} detections with a partner at IoU 0.90")
            enough = off["candidates"] >= 100 or self.args.dry
            lost = off["lost"] * 100 <= off["candidates"]
            if precision == "f32":
                self.one_percent("f32 detections are those of the CPU", both, 1)
                self.check("f32 is single precision, no TF32", enough and off["score_mean"] <= F32_SCORE
                           and off["box_mean"] <= F32_BOX and lost, words)
            else:
                good = (off["box_mean"] <= compare.BOX_MEAN and off["box_p99"] <= compare.BOX_P99
                        and off["score_mean"] <= compare.SCORE_MEAN and share >= compare.PARTNERS)
                self.check(f"{precision} is close to f32", enough and lost and good, words)
            if golden:
                mine = {name: line for name, line in golden.items() if name in ours}
                if mine.keys() != ours.keys():
                    self.say("NOTE", "goldens", f"{len(ours) - len(mine)} of {len(ours)} pictures have none")
                ours = {name: line for name, line in ours.items() if name in mine}
                percent = 1 if precision == "f32" else 4
                self.one_percent(f"{precision} detections are the goldens'", compare.pairs(mine, ours), percent)

    def one_percent(self, name, both, percent):
        """At most so many of a hundred detections may have no partner, both ways."""
        (missing, theirs), (extra, ours) = compare.parity(both)
        good = missing * 100 <= percent * theirs and extra * 100 <= percent * ours and theirs > 0
        self.check(name, good, f"{missing} of {theirs} have no partner here, {extra} of our {ours} none there "
                               f"(allowed: {percent} %)")

    def neighbours_step(self):
        batch = 8
        whole, done = self.job("whole", batch=batch)
        cls, truth = done.report.get("numeric_class"), told(whole)
        shuffled = list(self.names)
        random.Random(7).shuffle(shuffled)
        (self.work / "shuffled.txt").write_text("".join(f"{self.pictures / name}\n" for name in shuffled))
        crowd = self.work / "crowd"
        crowd.mkdir()
        for name in self.names:
            link(self.pictures / name, crowd / name)
        noise(crowd, self.names, json_lines=compare.lines(whole))
        shapes = {}
        for name, line in compare.lines(whole).items():
            shapes.setdefault((line.get("width"), line.get("height")), name)
        alone = list(shapes.values())[: 2 if self.args.dry else 4]
        cases = [("in another order", self.work / "shuffled.txt", []), ("among other pictures", crowd, []),
                 ("one worker", None, ["--workers", "1"]), ("the same again", None, [])]
        cases += [(f"alone: {name}", self.pictures / name, []) for name in alone]
        for number, (what, source, more) in enumerate(cases):
            out, done = self.job(f"neighbours-{number}", *more, source=source, batch=batch)
            here = {name: line for name, line in told(out).items() if name in truth}
            expected = 1 if what.startswith("alone") else len(truth)
            other = [name for name in here if here[name] != truth[name]]
            same_class = done.report.get("numeric_class") == cls
            self.check(f"answers do not depend on neighbours, {what}",
                       same_class and len(here) == expected and not other,
                       f"{len(here) - len(other)} of {expected} lines equal, class {done.report.get('numeric_class')}"
                       + (f"; {other[0]} differs" if other else ""))
        if self.gpu:
            for batch in (1, 32):
                out, done = self.job(f"batch-{batch}", batch=batch)
                here = told(out)
                equal = sum(here.get(name) == truth[name] for name in truth)
                self.say("NOTE", f"batch {batch} beside batch 8", f"{equal} of {len(truth)} lines equal (they need "
                         f"not be: the batch is part of the class), class {done.report.get('numeric_class')}")

    def killed_step(self):
        count, seed = self.args.count, self.args.seed
        rnd = random.Random(seed)
        size = max(1, count // 50)
        common = ["--max-images", size]
        whole, done = self.job("undisturbed", *common, source=self.many())
        start = max(done.seconds - done.report.get("seconds", 0), 0)
        parts = len(list(whole.glob("part-*")))
        kills, inside, finished, broken = 0, 0, 0, None
        out = self.work / "killed"
        command = [self.haul.binary, "run", "--model", self.model, "--input", self.many(), "--output", out, "--quiet",
                   *common, *self.haul.where(self.args.device)]
        self.haul.write(f"killed again and again: {' '.join(map(str, command))}")
        # The last job is let go to its end, so its time is kept back.
        while (kills < self.args.kills or out.exists()) and not broken:
            if self.left() < done.seconds + 15 and not (out.exists() and self.left() > done.seconds + 5):
                break
            # A third falls anywhere, also into the start; the others into the work.
            low = 0 if rnd.random() < 0.33 else start
            delay = low + rnd.random() * max(done.seconds - low, 0.05)
            last = kills >= self.args.kills or self.left() < 2 * done.seconds + 15
            child = subprocess.Popen(list(map(str, command)), env=self.haul.env, stdout=self.log, stderr=self.log)
            try:
                code = child.wait(timeout=max(self.left(), 1) if last else delay)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                code = -9
            if code == -9:
                kills += 1
                have = len(list(out.glob("part-*"))) if out.exists() else 0
                inside += 0 < have < parts
                self.haul.write(f"killed after {delay:.2f} s with {have} of {parts} parts")
                if last:
                    break
            elif code == 0:
                finished += 1
                broken = difference(whole, out)
                shutil.rmtree(out)
            else:
                broken = f"a run ended with exit {code}"
        words = (f"{kills} SIGKILLs over {finished} finished jobs of {count} pictures in {parts} parts, {inside} of "
                 f"them with some parts there and some not; seed {seed}")
        self.numbers["killed"] = {"kills": kills, "inside": inside, "finished": finished, "seed": seed}
        if broken:
            return self.check("killed and resumed, bytes equal", False, f"{broken} ({words})")
        if not finished or not inside:
            return self.say("SKIP", "killed and resumed, bytes equal", f"too few kills hit the work to say: {words}")
        self.check("killed and resumed, bytes equal", True, words)

    def files_step(self):
        rows, parts = [], {}
        sizes = sorted({n for n in (1, 4, 8, 16) if n <= cores()} | {cores()})
        cases = [(self.args.device, workers, []) for workers in sizes]
        if self.gpu:
            cases += [(self.args.device, cores(), ["--precision", "bf16"])]
        cases += [("cpu", cores(), [])]
        for number, (device, workers, more) in enumerate(cases):
            if self.left() < 60 and not self.args.dry:
                self.say("SKIP", f"files to boxes, {device}, {workers} workers", "no time left")
                continue
            with Watch() as watch:
                out, done = self.job(f"files-{number}", "--workers", workers, *more, source=self.many(), device=device,
                                     limit=240)
            report = done.report
            n, stages = report["pictures"], report["stages"]
            ms = {name: 1000 * seconds / n for name, seconds in stages.items() if seconds > 0}
            used = watch.mean(report["seconds"])
            row = {"device": device, "workers": workers, "class": report["numeric_class"],
                   "images_per_second": report["images_per_second"], "seconds": report["seconds"],
                   "start_seconds": done.seconds - report["seconds"], "stages_ms": ms,
                   "waiting": report.get("waiting"), "gpu": used, "bound": report.get("bound")}
            rows.append(row)
            where = ", ".join(f"{name} {value:.2f}" for name, value in ms.items() if value >= 0.005)
            gpu = f"; GPU busy {used['busy']:.0f} %, {used['watts']:.0f} W" if used else ""
            self.say("RATE", f"files to boxes, {device}, {workers} workers, {row['class']}",
                     f"{row['images_per_second']:.0f} images/s over {row['seconds']:.1f} s ({n} pictures; start and "
                     f"warm-up {row['start_seconds']:.1f} s beside); ms of a thread per picture: {where}{gpu}. "
                     f"{row['bound'] or ''}")
            success = json.loads((out / "_SUCCESS.json").read_text())
            parts.setdefault(row["class"], set()).add(success["parts_sha256"])
            shutil.rmtree(out)
        self.numbers["files"] = rows
        if rows:
            self.check("bytes do not depend on workers", all(len(digests) == 1 for digests in parts.values()),
                       "; ".join(f"{name}: {len(digests)} digest(s)" for name, digests in parts.items()))

    def absent_step(self):
        if not self.knows_cuda:
            self.say("SKIP", "without a GPU", "this binary was built without CUDA: what follows says nothing")
        bare = {key: value for key, value in os.environ.items() if key not in ("CUDA_LIB_PATH", "LD_LIBRARY_PATH")}
        for what, env in [("no GPU to be seen", self.haul.env | {"CUDA_VISIBLE_DEVICES": ""}),
                          ("no CUDA libraries named", bare)]:
            slug = what.replace(" ", "-")
            alike, cpu = self.job(f"{slug}-cpu", "--limit", "8", device="cpu", env=env)
            out, done = self.job(slug, "--limit", "8", device="auto" if self.haul.knows_devices else "", env=env)
            self.haul.write(done.err)
            gpu = done.report.get("numeric_class", "").startswith("cuda-")
            if gpu and "libraries" in what:
                self.say("NOTE", what, "libraries were found all the same (by the system's own paths); it ran there")
                continue
            said_so = not self.knows_cuda or "on the CPU" in done.err
            self.check(f"auto with {what}", not gpu and said_so and told(out) == told(alike),
                       f"class {done.report.get('numeric_class')}, it said: {first(done.err)}")
            if self.haul.knows_devices:
                done = self.run("run", "--model", self.model, "--input", self.pictures, "--output",
                                self.work / f"{slug}-cuda", device="cuda:0", env=env)
                self.check(f"cuda:0 with {what}", done.code == 2 and "cuda:0" in done.err,
                           f"exit {done.code}: {done.last_words()}")

    def memory_step(self):
        # Many pictures and large ones; nothing is wrong where a large card takes them all.
        few = ["--imgsz", "1280", "--limit", "40"] if self.gpu else ["--limit", "2"]
        try:
            out, done = self.job("large", *few, batch=1024, limit=240)
            self.halved("batch 1024 at 1280", done, 1024, must=False)
        except RuntimeError as error:  # What comes next does not need it.
            self.check("batch 1024 at 1280", False, str(error))
        # A neighbour that holds nearly everything forces it on any card.
        leave = 4
        with Hog(self.args.device, leave, self.log) as hog:
            if not hog.take():
                return self.say("SKIP", "a full card", "torch could not take its memory away (see the log)")
            self.say("NOTE", "a full card", f"a neighbour {hog.words}")
            tight, done = self.job("tight", *few, batch=256, limit=240)
            self.halved(f"batch 256 at 1280 with {leave} GiB free", done, 256, must=True)
        again, done = self.job("tight", *few, limit=240)  # the same output, with room now
        self.say("NOTE", "the finished job, with room again",
                 f"exit {done.code}, class {done.report.get('numeric_class')}")
        self.squeezed()

    def squeezed(self):
        """Memory that goes away during a job. Whether that hurts is not ours to say: an engine that took all it
        needs at its warm-up never asks again. If it hurts, the job must end with 75 and be there to go on with."""
        name, more = "memory that goes away later", ["--max-images", max(1, self.args.count // 50)]
        whole, undisturbed = self.job("roomy", *more, source=self.many())
        out = self.work / "squeezed"
        command = ["run", "--model", self.model, "--input", self.many(), "--output", out, "--json", *more]
        ended = []
        with Hog(self.args.device, 0.05, self.log) as hog:
            thread = threading.Thread(target=lambda: ended.append(self.run(*command)))
            thread.start()
            while thread.is_alive() and not list(out.glob("part-*")):  # until the warm-up is over
                time.sleep(0.02)
            hog.take()
            in_time = thread.is_alive()
            thread.join()
        if not ended:
            return self.say("SKIP", name, "no time left")
        code = ended[0].code
        if code == 75:
            self.job("squeezed", *more, source=self.many())
        broken = difference(whole, out) if code in (0, 75) else f"exit {code}: {ended[0].last_words()}"
        if not broken and not (hog.words and in_time):
            return self.say("SKIP", name, f"the job was over before a neighbour {hog.words or 'could take it'}")
        self.check(name, not broken, broken or f"exit {code} while a neighbour {hog.words}" + (
            "; gone on with afterwards, bytes equal" if code == 75 else
            "; bytes equal: everything was taken at warm-up, so exit 75 was NOT seen"))

    def halved(self, name, done, asked, must):
        cls = done.report.get("numeric_class", "")
        size = re.search(r"-b(\d+)-", cls)
        if not size:
            return self.say("FAIL" if self.gpu else "NOTE", name, f"class {cls or '?'} names no batch")
        size = int(size[1])
        words = f"asked for {asked}, got {size} (class {cls}); {done.report.get('pictures')} pictures, exit {done.code}"
        if size == asked and not must:
            return self.say("NOTE", name, f"it fitted, nothing had to be halved: {words}")
        power = asked % size == 0 and (asked // size).bit_count() == 1
        self.check(name, size < asked and power, words)


def told(out):
    """What each line says beside the picture's own name."""
    return {name: {key: value for key, value in line.items() if key != "image"}
            for name, line in compare.lines(out).items()}


def first(text):
    return next((line for line in text.splitlines() if line.strip()), "(nothing)")


def link(old, new):
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def noise(folder, names, json_lines):
    """Pictures of noise (24-bit BMP) beside the others, of their sizes, sorted between them."""
    rng = np.random.default_rng(1)
    for name in names[::3]:
        width, height = json_lines[name]["width"], json_lines[name]["height"]
        row = width * 3 + 3 & ~3
        head = b"BM" + (54 + row * height).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
        head += (40).to_bytes(4, "little") + width.to_bytes(4, "little") + height.to_bytes(4, "little")
        head += (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + bytes(24)
        pixels = rng.integers(0, 256, row * height, np.uint8).tobytes()
        (folder / f"{Path(name).stem}-noise.bmp").write_bytes(head + pixels)


def difference(whole, out):
    """What differs between two outputs of the same job, but for the job's own number; empty if nothing does."""
    def results(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
                if path.is_file() and "_manifest" not in path.parts and path.name != "_SUCCESS.json"}

    def success(folder):
        return {key: value for key, value in json.loads((folder / "_SUCCESS.json").read_text()).items()
                if key != "job"}

    a, b = results(whole), results(out)
    differs = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    if differs:
        return f"{len(differs)} files differ, {differs[0]} first"
    if not a:
        return "there are no results"
    return "" if success(whole) == success(out) else "_SUCCESS.json differs"


class Watch:
    """Asks nvidia-smi five times a second how busy the card is, where there is one."""

    def __enter__(self):
        self.samples, self.child = [], None
        command = ["nvidia-smi", "--query-gpu=utilization.gpu,power.draw", "--format=csv,noheader,nounits", "--id=0",
                   "--loop-ms=200"]
        try:
            self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return self
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()
        return self

    def read(self):
        for line in self.child.stdout:
            try:
                busy, watts = (float(value) for value in line.split(","))
            except ValueError:
                continue
            self.samples.append((time.monotonic(), busy, watts))

    def __exit__(self, *_):
        self.end = time.monotonic()
        if self.child:
            self.child.terminate()
            self.child.wait()
            self.thread.join(5)

    def mean(self, seconds):
        """Over the last so many seconds: without the start and the warm-up."""
        last = [sample for sample in self.samples if self.end - seconds <= sample[0] <= self.end]
        if not last:
            return None
        return {"busy": sum(s[1] for s in last) / len(last), "watts": sum(s[2] for s in last) / len(last),
                "samples": len(last)}


class Hog:
    """A program that is ready to take a card's memory; hog.py."""

    def __init__(self, device, leave, log):
        command = [sys.executable, str(HERE / "hog.py"), device, str(leave)]
        self.words, self.child = "", subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                      stderr=log, text=True)

    def __enter__(self):
        self.ready = self.child.stdout.readline().strip() == "ready"
        return self

    def take(self):
        """Says what it took; nothing where it could not even start."""
        if self.ready:
            self.child.stdin.write("take\n")
            self.child.stdin.flush()
            self.words = self.child.stdout.readline().strip()
        return self.words

    def __exit__(self, *_):
        self.child.stdin.close()
        try:
            self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


STEPS = ["doctor", "parity", "neighbours", "absent", "killed", "files", "memory"]


def arguments():
    parser = argparse.ArgumentParser(prog="accept.sh", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("pictures", help="a folder of JPEG files")
    parser.add_argument("golden", nargs="?", help="what another implementation says, as lines of boxes")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dry", action="store_true",
                        help="on the CPU, with few pictures: tries the script, proves nothing of a GPU")
    parser.add_argument("--only", action="append", choices=STEPS, help="this step (may be given again)")
    parser.add_argument("--count", type=int, help="pictures of the large jobs (5000)")
    parser.add_argument("--kills", type=int, help="SIGKILLs at least (10)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the moments of the kills")
    parser.add_argument("--imgsz", type=int, default=640, help="the model's input, to scale errors by")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything (540)")
    parser.add_argument("--out", default=os.environ.get("OUT") or "gpu-results")
    parser.add_argument("--name", default="accept", help="of the files with the results")
    args = parser.parse_args()
    if args.dry:
        args.device = "cpu"
    args.count = args.count or (60 if args.dry else 5000)
    args.kills = args.kills or (3 if args.dry else 10)
    return args


def main():
    args = arguments()
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    log_path = out / f"{args.name}-log.txt"
    with tempfile.TemporaryDirectory(prefix="haul-accept-") as work, open(log_path, "w") as log:
        run = Accept(args, Path(work), log)
        for step in args.only or STEPS:
            print(f"\n== {step} ({run.left():.0f} s left)", flush=True)
            try:
                getattr(run, f"{step}_step")()
            except Late:
                run.say("SKIP", step, f"the rest of it: the {args.budget:.0f} s were used up (--only {step} does it alone)")
            except Exception as error:  # One broken step must not hide the others.
                run.haul.write(traceback.format_exc())
                run.say("FAIL", step, f"{error} (see the log)")
    counts = {mark: sum(result[0] == mark for result in run.results) for mark in ("PASS", "TRIED", "FAIL", "SKIP")}
    title = "DRY RUN on the CPU: it tries the script and says NOTHING about a GPU" if not run.gpu else \
        f"on {run.numbers.get('machine', about())['card'].get('name', args.device)}"
    text = "\n".join([f"haul acceptance, {title}", f"binary {args.binary} ({run.haul.version}), model {args.model}, "
                      f"device {args.device}, {len(run.names)} pictures", "",
                      *(f"{mark:<5} {name}: {words}" for mark, name, words in run.results), "",
                      f"{counts['PASS']} passed, {counts['TRIED']} tried, {counts['FAIL']} failed, "
                      f"{counts['SKIP']} skipped: {title}", ""])
    (out / f"{args.name}-summary.txt").write_text(text)
    numbers = {"dry": not run.gpu, "arguments": vars(args), "results": run.results, "numbers": run.numbers}
    (out / f"{args.name}.json").write_text(json.dumps(numbers, indent=1, default=float) + "\n")
    # One small file, also where thousands of lines were logged.
    with tarfile.open(out / f"{args.name}-log.tar.gz", "w:gz") as archive:
        archive.add(log_path, log_path.name)
    log_path.unlink()
    print(f"\n{text}results in {out}")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
