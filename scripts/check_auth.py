#!/usr/bin/env python3
"""Asks a server as AWS's own client does: signed by botocore, and signed wrongly.

    check_auth.py HAUL MODEL PICTURE

HAUL is the binary. It needs boto3 (or botocore alone), and no AWS account.
"""

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import unittest.mock

import botocore.auth
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


def client(url, key=KEY, secret=SECRET, token=None):
    session = botocore.session.get_session()
    return session.create_client(
        "sagemaker-runtime",
        region_name="eu-central-1",
        endpoint_url=url,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
        config=Config(retries={"max_attempts": 1}),
    )


def error_of(call):
    try:
        call()
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    return None


def main():
    haul, model, picture = sys.argv[1:]
    with open(picture, "rb") as file:
        body = file.read()
    with tempfile.TemporaryDirectory() as folder:
        keys = os.path.join(folder, "keys")
        with open(keys, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(f"{KEY} {SECRET}\n")
        command = [haul, "serve", "--model", model, "--port", "0", "--endpoint-name", "check",
                   "--log-format", "json", "--sigv4-keys", keys]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            url = None
            for line in server.stderr:
                event = json.loads(line)
                url = event.get("url", url)
                if event["message"] == "ready":
                    break
            # What it says later must not fill the pipe: a thread reads on.
            threading.Thread(target=server.stderr.read, daemon=True).start()
            check(url, body)
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
    assert code == 0, f"the server ended with {code}"
    print(f"botocore {botocore.__version__}: all as AWS answers it")


def check(url, body):
    def invoke(client, **more):
        return client.invoke_endpoint(EndpointName="check", Body=body, **more)

    good = client(url)
    answer = invoke(good)
    line = json.loads(answer["Body"].read())
    assert "detections" in line, line
    assert re.fullmatch(r"[0-9a-f-]{36}", answer["ResponseMetadata"]["RequestId"]), answer
    more = invoke(good, ContentType="image/jpeg", Accept="application/json",
                  CustomAttributes="haul-conf=0.5;  other=a  b", InferenceId="mine")
    assert more["ResponseMetadata"]["HTTPStatusCode"] == 200, more

    wrong = ("InvalidSignatureException", 403)
    assert error_of(lambda: invoke(client(url, secret="another"))) == wrong
    unknown = ("UnrecognizedClientException", 403)
    assert error_of(lambda: invoke(client(url, key="AKIDOTHER"))) == unknown
    # A session's token is signed with the rest and covers nothing of ours.
    assert error_of(lambda: invoke(client(url, token="a-session"))) is None

    for minutes in (-10, 10):
        now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=minutes)
        with unittest.mock.patch("botocore.auth.get_current_datetime",
                                 lambda remove_tzinfo=True: now.replace(tzinfo=None)):
            assert error_of(lambda: invoke(client(url))) == wrong, minutes

    def altered(request, **_):
        request.body = request.body[:-1] + b"x"
    spoiled = client(url)
    spoiled.meta.events.register("before-send.sagemaker-runtime", altered)
    assert error_of(lambda: invoke(spoiled)) == wrong

    for header, kind in (("Authorization", "MissingAuthenticationTokenException"),
                         ("X-Amz-Date", "IncompleteSignatureException")):
        def without(request, **_):
            del request.headers[header]
        spoiled = client(url)
        spoiled.meta.events.register("before-send.sagemaker-runtime", without)
        assert error_of(lambda: invoke(spoiled)) == (kind, 403), header

    large = client(url)
    refusal = error_of(lambda: large.invoke_endpoint(EndpointName="check", Body=bytes(100_000_000)))
    assert refusal == ("ValidationError", 400), refusal


if __name__ == "__main__":
    main()
