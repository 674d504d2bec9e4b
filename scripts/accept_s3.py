#!/usr/bin/env python3
"""Jobs from S3 to S3, on a real server: interrupted, through a proxy that spoils requests, by many
machines at once, and with everything wrong that people get wrong.

    scripts/accept_s3.py [--haul BINARY] [--pictures 60] [--kills 4] [--rate 0.2] [--shards 4]
                         [--model FILE --photos FOLDER] [--imgsz 160] [--only NAME,NAME]

It needs a server (scripts/servers/radosgw.sh up DIR) and what DIR/env says in its environment;
without, it says so and returns 77. By default it works on what comes with haul; --model and --photos
take other ones. Every part must have the bytes of a local run that nobody disturbs.

    equal    S3 to S3, folder to S3, S3 to folder; how long workers waited for the store
    kills    SIGKILL at random times until the job is done; nobody waits for a lease to run out
    faults   through scripts/servers/fault_proxy.py
    shards   all shards at once, two of them twice without a lock
    wrong    wrong secret, missing bucket, denied prefix, read-only output, no server
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "servers"))
import s3  # noqa: E402

CLOCK = os.sysconf("SC_CLK_TCK")


def fail(what):
    raise SystemExit(f"FAILED: {what}")


def in_parallel(function, items):
    """Each thread has a connection of its own."""
    items = list(items)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        chunks = [items[i::8] for i in range(8)]

        def some(chunk):
            client = s3.S3()
            return [function(client, item) for item in chunk]

        return [value for values in pool.map(some, chunks) for value in values]


class Accept:
    def __init__(self, options):
        self.options = options
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="haul-accept-s3-"))
        self.bucket = f"accept-{os.getpid()}"
        self.model = options.model or ROOT / "testdata/model/shapes.safetensors"
        photos = pathlib.Path(options.photos or ROOT / "testdata/pictures")
        found = sorted(path for path in photos.rglob("*") if path.suffix in (".jpg", ".png"))
        self.photos = self.work / "photos"
        self.photos.mkdir()
        for number in range(options.pictures):
            path = found[number % len(found)]
            os.symlink(path, self.photos / f"{number:05}{path.suffix}")
        s3.S3()("PUT", f"/{self.bucket}")
        names = sorted(self.photos.iterdir())
        in_parallel(lambda client, path: client(
            "PUT", f"/{self.bucket}/in/{path.name}", body=path.read_bytes()), names)
        self.settings = ["--model", str(self.model), "--max-images", str(options.max_images)]
        if options.imgsz:
            self.settings += ["--imgsz", str(options.imgsz)]
        began = time.monotonic()
        self.run("run", *self.settings, "--input", str(self.photos), "--follow-symlinks",
                 "--output", str(self.work / "local"), "--quiet")
        self.local_seconds = time.monotonic() - began
        self.expected = self.local_parts(self.work / "local")
        print(f"{options.pictures} pictures in {len(self.expected)} parts, "
              f"local {self.local_seconds:.1f} s", flush=True)

    # --- helpers ---------------------------------------------------------------------------------

    def start(self, *arguments, environment=(), **keywords):
        return subprocess.Popen([str(self.options.haul), *arguments],
                                env={**os.environ, **dict(environment)}, **keywords)

    def run(self, *arguments, environment=(), expect=(0,)):
        done = subprocess.run([str(self.options.haul), *arguments], capture_output=True, text=True,
                              env={**os.environ, **dict(environment)})
        if done.returncode not in expect:
            fail(f"haul {' '.join(arguments)}: exit {done.returncode}, not {expect}\n{done.stderr}")
        return done

    def out(self, name):
        return f"s3://{self.bucket}/{name}/"

    def from_bucket(self, name):
        return [*self.settings, "--input", f"s3://{self.bucket}/in/", "--output", self.out(name)]

    @staticmethod
    def local_parts(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(folder.glob("part-*"))}

    def parts(self, name):
        keys = [key for key in s3.S3().list(self.bucket, f"{name}/part-")]
        digest = lambda client, key: (  # noqa: E731
            key.rsplit("/", 1)[1], hashlib.sha256(client("GET", f"/{self.bucket}/{key}")).hexdigest())
        return dict(sorted(in_parallel(digest, keys)))

    def check(self, name):
        """The output of this name is that of the local run, whole, and says so."""
        if self.parts(name) != self.expected:
            fail(f"{self.out(name)}: its parts are not those of the local run")
        keys = list(s3.S3().list(self.bucket, f"{name}/"))
        records = [key for key in keys if "/_manifest/done/" in key]
        if len(records) != len(self.expected):
            fail(f"{self.out(name)}: {len(records)} records of {len(self.expected)} parts")
        if keys.count(f"{name}/_SUCCESS.json") != 1:
            fail(f"{self.out(name)}: there is no one _SUCCESS.json")
        self.run("verify", self.out(name))

    def server_cpu(self):
        """Seconds of a processor that the server has used so far, with its disk's process."""
        pid = os.environ.get("HAUL_TEST_S3_PID")
        if not pid:
            return float("nan")
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK

    # --- what is seen to -------------------------------------------------------------------------

    def equal(self):
        cpu, began = self.server_cpu(), time.monotonic()
        done = self.run("run", *self.from_bucket("equal"), "--json")
        seconds, cpu = time.monotonic() - began, self.server_cpu() - cpu
        self.check("equal")
        report = json.loads(done.stdout)
        stages, workers = report["stages"], report["workers"]
        share = stages["idle"] / (workers * report["seconds"])
        print(f"equal: S3 to S3 {seconds:.1f} s, {report['images_per_second']:.1f} images/s, workers "
              f"waited for pictures {100 * share:.1f} % of their time; radosgw used {cpu:.1f} s of a "
              f"processor; {report.get('store')}", flush=True)
        self.run("run", *self.settings, "--input", str(self.photos), "--follow-symlinks",
                 "--output", self.out("from-folder"), "--quiet")
        self.check("from-folder")
        to_folder = self.work / "to-folder"
        self.run("run", *self.settings, "--input", f"s3://{self.bucket}/in/",
                 "--output", str(to_folder), "--quiet")
        if self.local_parts(to_folder) != self.expected:
            fail("S3 to a folder: its parts are not those of the local run")
        print("equal: folder to S3, and S3 to folder, the same bytes", flush=True)

    def kills(self):
        rest, runs, waits, name, began = self.options.kills, 0, [], "kills", time.monotonic()
        longest = max(self.local_seconds, 1.0) * 0.7
        job = 0
        while rest > 0:
            job, name = job + 1, f"kills-{job + 1}"
            while True:
                start = time.monotonic()
                child = self.start("run", *self.from_bucket(name), "--quiet")
                try:
                    code = child.wait(random.uniform(0.05, longest) if rest > 0 else None)
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                    rest, runs = rest - 1, runs + 1
                    continue
                waits.append(time.monotonic() - start)
                if code != 0:
                    fail(f"kills: a run ended with {code}")
                break
            self.check(name)
        if max(waits) > 40 + 2 * self.local_seconds:
            fail(f"kills: a run took {max(waits):.0f} s; did it wait for a lease to run out?")
        print(f"kills: {job} jobs killed {runs} times in {time.monotonic() - began:.0f} s, the bytes "
              f"equal; the longest last run took {max(waits):.1f} s", flush=True)

    def faults(self):
        self.spoiled("faults", self.options.rate)
        # Bytes that arrive as others: only digests find them. (Of a listing there are none.)
        self.spoiled("flips", 0.1, "--only", "flip", "--match", "/in/")

    def spoiled(self, name, rate, *more):
        port_file, stats = self.work / f"{name}.port", self.work / f"{name}.stats"
        upstream = os.environ["AWS_ENDPOINT_URL_S3"].removeprefix("http://")
        proxy = subprocess.Popen([
            sys.executable, str(ROOT / "scripts/servers/fault_proxy.py"), "--upstream", upstream,
            "--rate", str(rate), "--seed", str(self.options.seed),
            "--port-file", str(port_file), "--stats", str(stats), *more])
        try:
            while not port_file.exists() or not port_file.read_text().strip():
                time.sleep(0.05)
            port = port_file.read_text().strip()
            began = time.monotonic()
            # Few pictures in a mini-batch, so that there is much to write.
            done = self.run("run", *self.from_bucket(name), "--json",
                            environment={"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}"}.items())
            seconds = time.monotonic() - began
        finally:
            proxy.terminate()
            proxy.wait()
        said = json.loads(stats.read_text())
        self.check(name)
        report = json.loads(done.stdout)
        if report["failed"]:
            fail(f"{name}: {report['failed']} pictures were blamed for the store")
        summary = [line for line in done.stderr.splitlines() if "S3" in line]
        print(f"{name}: {seconds:.1f} s, {sum(said['faults'].values())} of {said['requests']} requests "
              f"spoiled ({said['faults']}); the bytes equal, no picture blamed\n"
              f"  {' '.join(summary) or report.get('store')}", flush=True)
        if not report.get("store", {}).get("retried"):
            fail(f"{name}: the summary does not say what was made again")

    def shards(self):
        count = self.options.shards
        names = [(i, False) for i in range(1, count + 1)] + [(1, True), (count, True)]
        began = time.monotonic()
        children = []
        for index, twin in names:
            extra = ["--no-lock"] if twin else []
            children.append(self.start("run", *self.from_bucket("shards"), "--quiet", "--workers", "1",
                                       "--shard", f"{index}/{count}", *extra,
                                       stderr=subprocess.PIPE, text=True))
        for child, (index, twin) in zip(children, names):
            _, said = child.communicate()
            if child.returncode != 0:
                fail(f"shards: {index}/{count}{' twin' if twin else ''}: {child.returncode}: {said}")
        self.check("shards")
        print(f"shards: {count} at once and two of them twice, {time.monotonic() - began:.1f} s; one "
              "record each, the bytes equal", flush=True)

    def wrong(self):
        other = {"AWS_ACCESS_KEY_ID": os.environ["HAUL_TEST_S3_OTHER_KEY"],
                 "AWS_SECRET_ACCESS_KEY": os.environ["HAUL_TEST_S3_OTHER_SECRET"]}
        everybody = {"AWS": ["*"]}
        policy = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": everybody, "Action": ["s3:ListBucket", "s3:GetObject"],
             "Resource": [f"arn:aws:s3:::{self.bucket}", f"arn:aws:s3:::{self.bucket}/*"]}]}
        s3.S3()("PUT", f"/{self.bucket}", [("policy", "")], json.dumps(policy).encode())
        s3.S3()("PUT", f"/{self.bucket}-private")
        put = {"--output": self.out("wrong")}
        cases = [
            ("wrong secret", {"AWS_SECRET_ACCESS_KEY": "wrong"}, {}, 2, "access key right"),
            ("unknown key", {"AWS_ACCESS_KEY_ID": "NOBODY"}, {}, 2, "access key right"),
            ("missing bucket", {}, {"--input": "s3://no-such-bucket-here/in/"}, 2,
             "no-such-bucket-here"),
            ("missing bucket", {}, {"--output": "s3://no-such-bucket-here/out/"}, 2,
             "no-such-bucket-here"),
            ("denied prefix", other, {"--input": f"s3://{self.bucket}-private/in/",
                                      "--output": str(self.work / "denied")}, 2, "s3:ListBucket"),
            ("read-only output", other, put, 2, "s3:PutObject"),
            ("no server", {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, {}, 1, "endpoint"),
            ("no such server", {"AWS_ENDPOINT_URL_S3": "http://nowhere.invalid"}, {}, 1, "endpoint"),
            ("no pictures", {}, {"--input": f"s3://{self.bucket}/nothing/"}, 5, "no picture"),
        ]
        for name, environment, flags, code, words in cases:
            given = {"--input": f"s3://{self.bucket}/in/", "--output": self.out("wrong"), **flags}
            began = time.monotonic()
            done = self.run("run", *self.settings, *[word for pair in given.items() for word in pair],
                            environment=environment.items(), expect=(code,))
            seconds = time.monotonic() - began
            lines = done.stderr.strip().splitlines()
            if len(lines) != 1 or words not in lines[0] or seconds > 15:
                fail(f"wrong: {name}: in {seconds:.1f} s:\n{done.stderr}")
            print(f"wrong: {name}: {code} in {seconds:.1f} s: {lines[0]}", flush=True)

    def tidy(self):
        import shutil
        shutil.rmtree(self.work)
        for bucket in (self.bucket, f"{self.bucket}-private"):
            try:
                keys = list(s3.S3().list(bucket, ""))
                in_parallel(lambda client, key: client("DELETE", f"/{bucket}/{key}"), keys)
                s3.S3()("DELETE", f"/{bucket}")
            except s3.Refused:
                pass  # a bucket that was not made


def main():
    names = ["equal", "kills", "faults", "shards", "wrong"]
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    parser.add_argument("--haul", type=pathlib.Path, default=pathlib.Path(target) / "release/haul")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--max-images", type=int, default=5)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--photos", type=pathlib.Path)
    parser.add_argument("--imgsz", type=int, default=160, help="0: the model's own")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--only", default=",".join(names))
    options = parser.parse_args()
    if not os.environ.get("AWS_ENDPOINT_URL_S3"):
        print("skipped: AWS_ENDPOINT_URL_S3 is not set (scripts/servers/radosgw.sh)")
        raise SystemExit(77)
    random.seed(options.seed)
    print(f"seed {options.seed}", flush=True)
    accept = Accept(options)
    for name in options.only.split(","):
        if name not in names:
            raise SystemExit(f"there is no {name}: {', '.join(names)}")
        getattr(accept, name)()
    accept.tidy()


if __name__ == "__main__":
    main()
