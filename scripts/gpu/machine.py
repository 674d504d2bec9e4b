"""What these scripts know of the machine they run on, and how they start haul there."""

import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

# Read only: nothing here changes a setting of the card.
CARD = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,power.draw,power.limit,temperature.gpu"


def library_folders():
    """Where CUDA's libraries are inside Python's wheels, which is where machines without a toolkit have them."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    return [str(folder) for root in roots for folder in sorted(Path(root).glob("*/lib"))]


def environment():
    """The environment for haul. Its loader reads CUDA_LIB_PATH; cuDNN finds its own parts by LD_LIBRARY_PATH."""
    env = dict(os.environ)
    folders = env.get("CUDA_LIB_PATH", "").split(":") + library_folders()
    folders = list(dict.fromkeys(folder for folder in folders if folder))
    if folders:
        env["CUDA_LIB_PATH"] = ":".join(folders)
        env["LD_LIBRARY_PATH"] = ":".join([*folders, *filter(None, [env.get("LD_LIBRARY_PATH")])])
    return env


def said(*command):
    """What a program prints, or why it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"({error})"
    return (done.stdout + done.stderr).strip()


def card():
    """The first card's state as nvidia-smi tells it, or an empty dictionary where there is none."""
    text = said("nvidia-smi", f"--query-gpu={CARD}", "--format=csv,noheader,nounits", "--id=0")
    values = [value.strip() for value in text.splitlines()[0].split(",")] if text else []
    names = CARD.split(",")
    return dict(zip(names, values)) if len(values) == len(names) else {}


def cores():
    return len(os.sched_getaffinity(0))


def about():
    """For reports: what was it measured on?"""
    model = [line.split(":", 1)[1].strip() for line in said("cat", "/proc/cpuinfo").splitlines()
             if line.startswith("model name")]
    return {"card": card(), "cpu": model[0] if model else platform.processor(), "cores": cores(),
            "python": platform.python_version(), "system": platform.platform(),
            "when": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}


class Done:
    """How a run of haul ended."""

    def __init__(self, code, seconds, out, err):
        self.code, self.seconds, self.out, self.err = code, seconds, out, err

    @property
    def report(self):
        """Its JSON summary; empty if it wrote none."""
        try:
            return json.loads(self.out)
        except ValueError:
            return {}

    def last_words(self):
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else "(it said nothing)"


class Haul:
    """The binary. Older ones know neither --device nor --batch: those are left out for them on the CPU."""

    def __init__(self, binary, log):
        self.binary, self.log, self.env = str(Path(binary).resolve()), log, environment()
        try:
            version = subprocess.run([self.binary, "--version"], env=self.env, capture_output=True, text=True,
                                     timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            sys.exit(f"{binary} does not start here: {error}")
        if version.returncode:
            sys.exit(f"{binary} does not start here (exit {version.returncode}): {version.stderr.strip()}\n"
                     f"CUDA_LIB_PATH was {self.env.get('CUDA_LIB_PATH', 'not set')}")
        self.version = version.stdout.strip()
        self.knows_devices = "--device" in said(self.binary, "run", "--help")

    def where(self, device, batch=None):
        """The arguments for a device."""
        if not self.knows_devices:
            if device and device != "cpu":
                sys.exit(f"{self.binary} has no --device: it was built before haul knew GPUs")
            return []
        arguments = ["--device", device] if device else []
        return arguments + (["--batch", str(batch)] if batch and device != "cpu" else [])

    def run(self, arguments, timeout, env=None):
        """Runs it to its end; everything goes to the log. Ended by SIGKILL after `timeout` seconds, with code -9."""
        command = [self.binary, *map(str, arguments)]
        start = time.monotonic()
        child = subprocess.Popen(command, env=env or self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 stdin=subprocess.DEVNULL, text=True)
        try:
            out, err = child.communicate(timeout=max(timeout, 0.1))
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            err += f"\nended by SIGKILL after {timeout:.0f} s"
        done = Done(child.returncode, time.monotonic() - start, out, err)
        self.write(f"$ {shlex.join(command)}\n{out}{err}\n(exit {done.code}, {done.seconds:.2f} s)\n")
        return done

    def write(self, text):
        print(text, file=self.log, flush=True)
