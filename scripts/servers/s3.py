#!/usr/bin/env python3
"""As much of S3 as our scripts need, with nothing but Python: signature v4, path style, plain http.

    s3.py ready                   wait until a PUT works, and have the server make what it makes late
    s3.py make s3://BUCKET        make a bucket
    s3.py up FOLDER s3://B/P      put every file of a folder below a prefix
    s3.py down s3://B/P FOLDER    the other way
    s3.py ls s3://B/P             the keys below a prefix

Endpoint and keys are what AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY say. It is for tests on this machine: a whole object is held in memory, and
nothing is tried again but by `ready`.
"""

import datetime
import hashlib
import hmac
import http.client
import os
import pathlib
import sys
import time
import urllib.parse
import xml.etree.ElementTree as xml


class Refused(Exception):
    """An answer that is not 2xx."""


def sign(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def quote(text, safe="-_.~"):
    return urllib.parse.quote(text, safe=safe)


class S3:
    def __init__(self, environment=os.environ):
        endpoint = urllib.parse.urlsplit(environment["AWS_ENDPOINT_URL_S3"])
        if endpoint.scheme != "http":
            raise SystemExit(f"{endpoint.geturl()}: only plain http is known here")
        self.host = endpoint.netloc
        self.region = environment.get("AWS_REGION", "us-east-1")
        self.key = environment["AWS_ACCESS_KEY_ID"]
        self.secret = environment["AWS_SECRET_ACCESS_KEY"]
        self.connection = http.client.HTTPConnection(self.host, timeout=60)

    def __call__(self, method, path, query=(), body=b"", headers=None):
        """One request, signed; the body of its answer. Headers given are sent unsigned."""
        path = quote(path, "/-_.~")
        query = "&".join(f"{quote(name)}={quote(value)}" for name, value in sorted(query))
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        names = "host;x-amz-content-sha256;x-amz-date"
        signed = f"host:{self.host}\nx-amz-content-sha256:{digest}\nx-amz-date:{now}\n"
        request = f"{method}\n{path}\n{query}\n{signed}\n{names}\n{digest}"
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        hashed = hashlib.sha256(request.encode()).hexdigest()
        key = ("AWS4" + self.secret).encode()
        for part in scope.split("/"):
            key = sign(key, part)
        signature = sign(key, f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashed}").hex()
        credential = f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}"
        try:
            self.connection.request(method, path + (f"?{query}" if query else ""), body, {
                **(headers or {}),
                "x-amz-date": now,
                "x-amz-content-sha256": digest,
                "Authorization": f"{credential}, SignedHeaders={names}, Signature={signature}",
            })
            answer = self.connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()  # what comes next begins anew
            raise
        if answer.status // 100 != 2:
            raise Refused(f"{method} {path}: {answer.status} {said.decode(errors='replace')}")
        return said

    def list(self, bucket, prefix):
        query = {"list-type": "2", "prefix": prefix}
        while True:
            page = xml.fromstring(self("GET", f"/{bucket}", query.items()))
            space = page.tag[: page.tag.find("}") + 1]
            yield from (key.text for key in page.iter(f"{space}Key"))
            if page.findtext(f"{space}IsTruncated") != "true":
                return
            query["continuation-token"] = page.findtext(f"{space}NextContinuationToken")


def place(url):
    """`s3://BUCKET/PREFIX` as bucket and prefix, the latter empty or ending in a slash."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise SystemExit(f"{url}: s3://BUCKET/PREFIX is meant")
    prefix = parts.path.strip("/")
    return parts.netloc, prefix + "/" if prefix else ""


def ready(seconds=60):
    """Waits for a PUT that works; multipart uploads have a pool of their own on some servers."""
    client, until = S3(), time.monotonic() + seconds
    bucket = f"ready-{os.getpid()}"
    while True:
        try:
            client("PUT", f"/{bucket}")
            client("PUT", f"/{bucket}/a", body=b"ready")
            break
        except (OSError, http.client.HTTPException, Refused) as error:
            if time.monotonic() > until:
                raise SystemExit(f"no PUT worked for {seconds} s: {error}")
            time.sleep(0.1)
    if client("GET", f"/{bucket}/a") != b"ready":
        raise SystemExit("what was put is not what is got")
    begun = xml.fromstring(client("POST", f"/{bucket}/b", [("uploads", "")]))
    upload = next(node.text for node in begun.iter() if node.tag.endswith("UploadId"))
    client("DELETE", f"/{bucket}/b", [("uploadId", upload)])
    client("DELETE", f"/{bucket}/a")
    client("DELETE", f"/{bucket}")


def up(folder, url):
    client, (bucket, prefix) = S3(), place(url)
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if path.is_file():
            key = prefix + path.relative_to(folder).as_posix()
            client("PUT", f"/{bucket}/{key}", body=path.read_bytes())


def down(url, folder):
    client, (bucket, prefix) = S3(), place(url)
    for key in client.list(bucket, prefix):
        path = pathlib.Path(folder) / key[len(prefix):]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client("GET", f"/{bucket}/{key}"))


def main(arguments):
    match arguments:
        case ["ready"]:
            ready()
        case ["make", url]:
            S3()("PUT", f"/{place(url)[0]}")
        case ["up", folder, url]:
            up(folder, url)
        case ["down", url, folder]:
            down(url, folder)
        case ["ls", url]:
            print(*S3().list(*place(url)), sep="\n")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Refused as error:
        raise SystemExit(str(error))
