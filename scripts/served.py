"""What the scripts that talk to `haul serve` share: starting it on a free port, and asking it."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "testdata/model/shapes.safetensors"
PICTURES = ROOT / "testdata/pictures"


def fail(what):
    raise SystemExit(f"FAILED: {what}")


def check(truth, what):
    if not truth:
        fail(what)


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def quiet_environment(**more):
    """Ours, without what would change how haul serves or where it looks for a bucket."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("HAUL_", "SAGEMAKER_", "AWS_"))}
    return kept | {name: str(value) for name, value in more.items()}


def listening(pid):
    """The ports on which a process listens, as the kernel says."""
    inodes = set()
    for link in pathlib.Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
            inodes.update(found.groups() if found else ())
    ports = []
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.append(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


class Served:
    """A `haul serve` that answers, until the end of the block."""

    def __init__(self, haul, *arguments, environment=None, port=0, patience=120):
        environment = quiet_environment() if environment is None else environment
        command = [str(haul), "serve", *map(str, arguments)]
        if port is not None:
            command += ["--port", str(port)]
        # A file and no pipe: nobody reads while it works.
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log)
        self.pid = self.process.pid
        try:
            self._wait(patience)
        except BaseException:
            self.process.kill()
            raise

    def _wait(self, patience):
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if self.process.poll() is not None:
                fail(f"haul serve ended with {self.process.returncode}: {self.said()}")
            ports = listening(self.pid)
            if ports:
                self.port = ports[0]
                self.url = f"http://127.0.0.1:{self.port}"
                if self.ask("GET", "/ping")[0] == 200:
                    return
            time.sleep(0.05)
        fail(f"haul serve did not answer /ping with 200 in {patience} s: {self.said()}")

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def ask(self, method, path, body=None, headers=(), timeout=120):
        """Status, headers and body of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def json(self, path):
        status, _, body = self.ask("GET", path)
        check(status == 200, f"{path}: {status} {body!r}")
        return json.loads(body)

    def infer(self, body, path="/invocations", headers=(), **query):
        """The raw bytes of an answer, which must be 200."""
        if query:
            path += "?" + urllib.parse.urlencode(query)
        status, _, answer = self.ask("POST", path, body, headers)
        check(status == 200, f"POST {path}: {status} {answer!r}")
        return answer

    def metrics(self):
        """The values of /metrics by name with labels."""
        _, _, text = self.ask("GET", "/metrics")
        lines = (line for line in text.decode().splitlines() if line and line[0] != "#")
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "no end after SIGTERM"
        said = self.said()
        self.log.close()
        if kind is not None:
            print(f"--- haul serve said:\n{said[-4000:]}", file=sys.stderr)
        else:
            check(code == 0, f"haul serve ended with {code}: {said}")


def from_width(line):
    """What follows the picture's name in a line or in the line of an error."""
    at = min((line.find(word) for word in (b'"width"', b'"error"') if word in line), default=-1)
    check(at > 0, f"no line: {line!r}")
    return line[at:]


def in_threads(count, work):
    """What `work(number)` returns, for so many threads that begin together."""
    gate, results = threading.Barrier(count), [None] * count

    def one(number):
        gate.wait()
        try:
            results[number] = work(number)
        except Exception as error:  # Handed on: the caller looks at each.
            results[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
