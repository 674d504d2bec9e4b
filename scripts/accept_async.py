#!/usr/bin/env python3
"""Asynchronous requests to a server that is killed: each has one object, and somebody was told.

    scripts/accept_async.py [--haul BINARY] [--requests 60] [--kills 2] [--s3] [--sqs URL]
                            [--model FILE --photos FOLDER] [--imgsz 160]

Sends requests to `haul serve`, kills it (SIGKILL) while it works, starts it again, and at the end
holds what is there against what a server answered that nobody killed: as many objects as requests,
none lost, none twice, the bytes equal, and each request's end told to a webhook at least once. Some
of the requests name pictures that are not there: these have failure objects.

--s3 has pictures and results in a bucket. It needs a server (scripts/servers/radosgw.sh up DIR) and
what DIR/env says in its environment; without, it says so and returns 77. --sqs names the server of a
queue service (moto_server, for instance) in which a queue is made and read as well.
"""

import argparse
import collections
import http.client
import http.server
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "servers"))
import s3  # noqa: E402

NAME = "accept"
ASYNC = f"/endpoints/{NAME}/async-invocations"


def fail(what):
    raise SystemExit(f"FAILED: {what}")


class Told(http.server.BaseHTTPRequestHandler):
    """A webhook that sometimes refuses, so that it must be told again."""

    protocol_version = "HTTP/1.1"
    heard = collections.Counter()
    ids = set()
    lock = threading.Lock()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fine = random.random() > 0.1
        if fine:
            with self.lock:
                Told.heard[body["inferenceId"], body["invocationStatus"]] += 1
                Told.ids.add(self.headers["x-haul-notification-id"])
        self.send_response(204 if fine else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Hook(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # a server that is killed leaves its connections as they are


class Queues:
    """As much of SQS as is needed here, unsigned, for servers for tests."""

    def __init__(self, url):
        self.url = url.rstrip("/")
        self.queue = self("CreateQueue", QueueName=f"haul-{os.getpid()}")["QueueUrl"]

    def __call__(self, action, **body):
        request = urllib.request.Request(self.url + "/", json.dumps(body).encode(), {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"AmazonSQS.{action}",
            "Authorization": "AWS4-HMAC-SHA256 Credential=test/20300101/us-east-1/sqs/aws4_request, "
                             "SignedHeaders=host, Signature=0",
        })
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"{}")

    def all(self):
        heard = collections.Counter()
        while True:
            some = self("ReceiveMessage", QueueUrl=self.queue, MaxNumberOfMessages=10)
            if not some.get("Messages"):
                return heard
            for one in some["Messages"]:
                body = json.loads(one["Body"])
                heard[body["inferenceId"], body["invocationStatus"]] += 1
                self("DeleteMessage", QueueUrl=self.queue, ReceiptHandle=one["ReceiptHandle"])


class Folder:
    """Pictures and results in folders."""

    def __init__(self, work):
        self.input, self.output = f"{work}/in", f"{work}/out"
        os.mkdir(self.input)

    def put(self, name, data):
        pathlib.Path(self.input, name).write_bytes(data)

    def results(self):
        root = pathlib.Path(self.output)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*")
                if path.is_file() and not str(path.relative_to(root)).startswith(".")}

    def count(self):
        return len(self.results())

    def tidy(self):
        pass


class Bucket:
    """Pictures and results in a bucket."""

    def __init__(self, _):
        self.name = f"accept-async-{os.getpid()}"
        self.s3("PUT", f"/{self.name}")
        self.input, self.output = f"s3://{self.name}/in", f"s3://{self.name}/out"

    @property
    def s3(self):
        """A connection anew: the server closes one that was idle for a minute."""
        return s3.S3()

    def put(self, name, data):
        self.s3("PUT", f"/{self.name}/in/{name}", body=data)

    def keys(self):
        return list(self.s3.list(self.name, "out/"))

    def results(self):
        client = self.s3
        return {key.removeprefix("out/"): client("GET", f"/{self.name}/{key}")
                for key in self.keys()}

    def count(self):
        return len(self.keys())

    def tidy(self):
        for key in list(self.s3.list(self.name, "")):
            self.s3("DELETE", f"/{self.name}/{key}")
        self.s3("DELETE", f"/{self.name}")


class Accept:
    def __init__(self, options):
        self.options = options
        self.work = tempfile.mkdtemp(prefix="haul-accept-async-")
        self.place = (Bucket if options.s3 else Folder)(self.work)
        self.queues = Queues(options.sqs) if options.sqs else None
        photos = pathlib.Path(options.photos or ROOT / "testdata/pictures")
        found = sorted(path for path in photos.rglob("*") if path.suffix in (".jpg", ".png"))
        self.pictures = found[:options.pictures]
        for number, path in enumerate(self.pictures):
            self.place.put(f"{number:03}{path.suffix}", path.read_bytes())
        hook = Hook(("127.0.0.1", 0), Told)
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        self.urls = [f"http://127.0.0.1:{hook.server_address[1]}/"]
        if self.queues:
            self.urls.append(f"sqs+{self.queues.queue}")
        self.server = None

    def location(self, number):
        """Where the picture of a request is; of one in twenty nowhere."""
        if number % 20 == 19:
            return f"{self.place.input}/missing-{number}.jpg"
        index = number % len(self.pictures)
        return f"{self.place.input}/{index:03}{self.pictures[index].suffix}"

    def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        model = self.options.model or ROOT / "testdata/model/shapes.safetensors"
        command = [str(self.options.haul), "serve", "--model", str(model), "--port", str(self.port),
                   "--endpoint-name", NAME, "--root", f"{self.place.input}/",
                   "--async-output", f"{self.place.output}/", "--state", f"{self.work}/state"]
        if self.options.imgsz:
            command += ["--imgsz", str(self.options.imgsz)]
        for url in self.urls:
            command += ["--notify-success", url, "--notify-error", url]
        log = open(f"{self.work}/log", "ab")
        self.server = subprocess.Popen(command, stdout=log, stderr=log)
        began = time.monotonic()
        while True:
            if self.server.poll() is not None:
                fail(f"the server ended with {self.server.returncode}: {self.work}/log")
            try:
                if self.ask("GET", "/ping")[0] == 200:
                    return time.monotonic() - began
            except OSError:
                pass
            if time.monotonic() - began > 120:
                fail("the server does not answer")
            time.sleep(0.02)

    def kill(self):
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()

    def ask(self, method, path, headers=None, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def describe(self, inference_id):
        return json.loads(self.ask("GET", f"{ASYNC}/{inference_id}")[2])

    def run(self):
        options = self.options
        self.start()
        asked, began = {}, time.monotonic()
        for number in range(options.requests):
            status, headers, body = self.ask(
                "POST", ASYNC, {"X-Amzn-SageMaker-InputLocation": self.location(number)})
            if status != 202:
                fail(f"request {number}: {status} {body}")
            asked[json.loads(body)["InferenceId"]] = number
        accepting = time.monotonic() - began
        print(f"{len(asked)} requests accepted in {accepting:.1f} s", flush=True)
        kills = sorted(random.sample(range(1, max(options.requests * 9 // 10, options.kills + 1)),
                                     options.kills))
        waits = []
        for at in kills:
            while (done := self.place.count()) < at:
                time.sleep(0.02)
            self.kill()
            waits.append((done, self.start()))
        said = {}
        while len(said) < len(asked):
            for one in asked:
                if one not in said:
                    found = self.describe(one)
                    if found["Status"] not in ("Completed", "Failed"):
                        break
                    said[one] = found
            else:
                break
            if time.monotonic() - began > options.patience:
                fail(f"{len(said)} of {len(asked)} were through in {options.patience} s")
            time.sleep(0.1)
        seconds = time.monotonic() - began
        again = sum(found["Attempts"] > 1 for found in said.values())
        self.check(asked, said)
        self.heard(said)
        killed = ", ".join(f"at {done} objects (up again in {up:.1f} s)" for done, up in waits)
        print(f"{len(asked)} requests in {seconds:.1f} s, killed {len(waits)} times: {killed}; "
              f"{again} were begun again", flush=True)
        self.server.send_signal(signal.SIGTERM)
        if self.server.wait(60) != 0:
            fail(f"SIGTERM: exit {self.server.returncode}")

    def check(self, asked, said):
        """One object for each request, with the bytes that the real-time door answers with."""
        objects = self.place.results()
        if len(objects) != len(asked):
            fail(f"{len(objects)} objects of {len(asked)} requests")
        expected, failed = {}, 0
        for one, number in asked.items():
            result, failure = objects.get(f"{one}.out"), objects.get(f"{one}-error.out")
            if (result is None) == (failure is None):
                fail(f"{one}: a result: {result is not None}, a failure: {failure is not None}")
            location = self.location(number)
            if "missing" in location:
                if failure is None or json.loads(failure)["error"]["code"] != "gone":
                    fail(f"{one}: there is no {location}: {failure or result}")
                failed += 1
                continue
            if failure is not None:
                fail(f"{one}: {failure}")
            if location not in expected:
                status, _, expected[location] = self.ask(
                    "POST", f"/endpoints/{NAME}/invocations", {"Content-Type": "application/json"},
                    json.dumps({"location": location}))
                if status != 200:
                    fail(f"{location}: {status}")
            if result != expected[location]:
                fail(f"{one}: not what the real-time door answers for {location}")
        print(f"{len(objects)} objects, {failed} of them failures, none twice, none lost, the bytes "
              "equal", flush=True)

    def heard(self, said):
        owed = {(one, found["Status"]) for one, found in said.items()}
        began = time.monotonic()
        while not owed <= set(Told.heard):
            if time.monotonic() - began > 120:
                fail(f"{len(owed - set(Told.heard))} of {len(owed)} were never told")
            time.sleep(0.1)
        if set(Told.heard) != owed:
            fail("something was told that did not happen")
        total = sum(Told.heard.values())
        print(f"webhook: {total} notifications of {len(owed)} ends, {total - len(Told.ids)} of them "
              "repetitions that their ids show", flush=True)
        if len(Told.ids) != len(owed):
            fail(f"{len(Told.ids)} notification ids of {len(owed)} ends")
        if self.queues:
            began, queued = time.monotonic(), collections.Counter()
            while not owed <= set(queued):
                queued += self.queues.all()
                if time.monotonic() - began > 120:
                    fail(f"SQS: {len(owed - set(queued))} of {len(owed)} are not in the queue")
            print(f"SQS: {sum(queued.values())} messages of {len(owed)} ends", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    parser.add_argument("--haul", type=pathlib.Path, default=pathlib.Path(target) / "release/haul")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--photos", type=pathlib.Path)
    parser.add_argument("--imgsz", type=int, default=160, help="0: the model's own")
    parser.add_argument("--patience", type=int, default=900, help="seconds for all requests")
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--sqs", metavar="URL")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    if options.s3 and not os.environ.get("AWS_ENDPOINT_URL_S3"):
        print("skipped: AWS_ENDPOINT_URL_S3 is not set (scripts/servers/radosgw.sh)")
        raise SystemExit(77)
    if options.sqs:
        # A server for tests takes any keys, and has a set of queues for each region. An S3 server of
        # our own does not look at the region.
        os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
        os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
        os.environ["AWS_REGION"] = "us-east-1"
    random.seed(options.seed)
    print(f"seed {options.seed}", flush=True)
    accept = Accept(options)
    try:
        accept.run()
    finally:
        if accept.server and accept.server.poll() is None:
            accept.kill()
    accept.place.tidy()
    import shutil
    shutil.rmtree(accept.work)


if __name__ == "__main__":
    main()
