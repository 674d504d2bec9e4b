#!/usr/bin/env python3
"""scripts/servers/fault_proxy.py does what it says, in front of the server that AWS_* name.

For each kind of fault: the first request that it applies to is spoiled as it should be, the second
one works, and what was stored is what should be. Then many requests at a rate: the same seed gives
the same faults, whatever the order. Needs nothing but Python."""

import collections
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import s3

HERE = pathlib.Path(__file__).resolve().parent
BODY = bytes(range(256)) * 4096
BUCKET = f"proxy-{os.getpid()}"
CUT = (http.client.IncompleteRead, ConnectionError)

# Kind, method, what the client sees: the code of an answer, exceptions, or None for no fault seen.
EXPECTED = [
    ("internal", "GET", "InternalError"),
    ("slowdown", "PUT", "SlowDown"),
    ("empty", "GET", " 503 "),
    ("expired", "GET", "ExpiredToken"),
    ("skewed", "PUT", "RequestTimeTooSkewed"),
    ("timeout", "PUT", "RequestTimeout"),
    ("hang", "GET", ConnectionError),
    ("close", "GET", ConnectionError),
    ("latency", "GET", None),
    ("conflict", "PUT", "ConditionalRequestConflict"),
    ("lost", "PUT", ConnectionError),
    ("reset", "GET", CUT),
    ("truncate", "GET", CUT),
    ("flip", "GET", None),
]


class Proxy:
    """One proxy, and a client of it."""

    def __init__(self, folder, *options):
        self.stats = pathlib.Path(folder) / "stats"
        port = pathlib.Path(folder) / "port"
        port.unlink(missing_ok=True)
        upstream = os.environ["AWS_ENDPOINT_URL_S3"]
        self.process = subprocess.Popen(
            [sys.executable, HERE / "fault_proxy.py", "--upstream", upstream, "--port-file", port,
             "--stats", self.stats, "--hang", "0.3", "--latency", "0.3", *options],
            stderr=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while not port.exists():
            assert time.monotonic() < until and self.process.poll() is None, "no proxy"
            time.sleep(0.01)
        self.environment = os.environ | {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port.read_text().strip()}"}

    def client(self):
        return s3.S3(self.environment)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0
        self.said = json.loads(self.stats.read_text())


def one_fault(folder, direct, kind, method, expected):
    new = f"/{BUCKET}/{kind}"
    with Proxy(folder, "--rate", "1", "--only", kind, "--most", "1") as proxy:
        client, before = proxy.client(), time.monotonic()

        def ask():
            if method == "GET":
                return client("GET", f"/{BUCKET}/body")
            return client("PUT", new, body=BODY, headers={"if-none-match": "*"})

        seen, answer = None, None
        try:
            answer = ask()
        except (s3.Refused, OSError, http.client.HTTPException) as error:
            seen = error
        took = time.monotonic() - before
        if expected is None:
            assert seen is None, seen
        elif isinstance(expected, str):
            assert isinstance(seen, s3.Refused) and expected in str(seen), seen
        else:
            assert isinstance(seen, expected), repr(seen)
        assert took > 0.3 or kind not in ("hang", "latency"), took
        if kind == "flip":
            assert len(answer) == len(BODY)
            assert sum(a != b for a, b in zip(answer, BODY)) == 1
        # And then as if nothing had been, but for what was stored without an answer.
        if kind == "lost":
            assert direct("GET", new) == BODY
            try:
                ask()
                raise AssertionError("stored twice")
            except s3.Refused as error:
                assert "PreconditionFailed" in str(error), error
        else:
            answer = ask()
            assert method == "PUT" or answer == BODY
        if method == "PUT":
            assert direct("GET", new) == BODY
    assert proxy.said == {"requests": 2, "passed": 1, "faults": {kind: 1}, "upstream_lost": 0}


def many(folder, threads):
    """600 requests; what happened to each, and what the proxy says."""
    seen = collections.Counter()
    with Proxy(folder, "--rate", "0.3", "--seed", "7", "--but", "hang,latency") as proxy:
        def work(share):
            client = proxy.client()
            for key in range(share, 300, threads):
                for method, body in ("PUT", b"x" * key), ("GET", b""):
                    try:
                        client(method, f"/{BUCKET}/many/{key}", body=body)
                    except (s3.Refused, OSError, http.client.HTTPException):
                        seen[method, key] += 1

        before = time.monotonic()
        workers = [threading.Thread(target=work, args=(share,)) for share in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        took = time.monotonic() - before
    return seen, proxy.said, took


def main():
    direct = s3.S3()
    direct("PUT", f"/{BUCKET}")
    direct("PUT", f"/{BUCKET}/body", body=BODY)
    with tempfile.TemporaryDirectory() as folder:
        for kind, method, expected in EXPECTED:
            try:
                one_fault(folder, direct, kind, method, expected)
            except AssertionError:
                print(f"{kind}:", file=sys.stderr)
                raise
        for key in range(300):  # so that a GET finds something, whatever became of its PUT
            direct("PUT", f"/{BUCKET}/many/{key}", body=b"x" * 100)
        first, said, _ = many(folder, 1)
        again, twice, took = many(folder, 8)
        assert said == twice, (said, twice)
        assert first == again
        share = sum(said["faults"].values()) / said["requests"]
        assert 0.2 < share < 0.4, share
        print(f"{len(EXPECTED)} kinds of faults, each as it should be; {said['requests'] / took:.0f} "
              f"requests a second, {share:.0%} of them spoiled, the same ones with 1 and 8 clients")


if __name__ == "__main__":
    main()
