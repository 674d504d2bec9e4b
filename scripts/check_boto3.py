#!/usr/bin/env python3
"""`haul serve` as unmodified boto3 sees it: what SageMaker's runtime does, from variables alone.

    scripts/check_boto3.py [--haul BINARY] [--only NAME,NAME]

It needs boto3, and returns 77 without. Where HAUL_TEST_S3_* name a server (scripts/servers/radosgw.sh
up DIR) pictures lie there too, and what is asked asynchronously is written there.

    real_time   bytes, base64, locations, Accept, CustomAttributes; the bytes are those of `haul run`
    refused     each exception, as the real service raises it
    overload    refused with ServiceUnavailable; with boto3's own retries everybody is answered
    container   the contract of a SageMaker container: its variables, routes and content types
    asynchronous  invoke_endpoint_async, polled for as the SDK does
"""

import argparse
import base64
import json
import os
import pathlib
import subprocess
import tempfile
import time
import urllib.parse

from served import (MODEL, PICTURES, ROOT, Served, check, from_width, in_threads,
                    quiet_environment, skip)

try:
    import boto3
    import botocore.exceptions
except ImportError:
    boto3 = None

# All that an unmodified program is told.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything",
               "AWS_DEFAULT_REGION": "eu-west-1"}
PICTURE = PICTURES / "park/picnic.jpg"
NAME = "shapes"


def client(server, **variables):
    """boto3's client as a program makes it that knows nothing of us: variables only."""
    for name in [name for name in os.environ if name.startswith("AWS_") or "proxy" in name.lower()]:
        del os.environ[name]
    os.environ.update(CREDENTIALS | {"AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": server.url} | variables)
    # A session of its own: the default one remembers the variables it was made with.
    return boto3.session.Session().client("sagemaker-runtime")


def batch(haul, *settings):
    """The line of `haul run` for PICTURE, from behind the name on."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out"
        subprocess.run([haul, "run", "--model", MODEL, "--input", PICTURE, "--output", out, "--quiet",
                        *settings], check=True, env=quiet_environment())
        return from_width(b"".join(path.read_bytes() for path in sorted(out.glob("part-*"))))


def bucket():
    """A bucket with PICTURE in it: boto3's client, its name, and the variables that lead there."""
    said = {name: os.environ.get(f"HAUL_TEST_S3_{name}") for name in ("ENDPOINT", "REGION", "KEY", "SECRET")}
    if not all(said.values()):
        return None
    s3 = boto3.session.Session().client(
        "s3", endpoint_url=said["ENDPOINT"], region_name=said["REGION"],
        aws_access_key_id=said["KEY"], aws_secret_access_key=said["SECRET"],
        config=boto3.session.Config(s3={"addressing_style": "path"}))
    name = f"boto3-{os.getpid()}-{time.monotonic_ns()}"
    s3.create_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="in/picnic.jpg", Body=PICTURE.read_bytes())
    return s3, name, quiet_environment(
        AWS_ENDPOINT_URL_S3=said["ENDPOINT"], AWS_REGION=said["REGION"], AWS_ACCESS_KEY_ID=said["KEY"],
        AWS_SECRET_ACCESS_KEY=said["SECRET"], AWS_EC2_METADATA_DISABLED="true")


def empty(s3, name):
    for one in s3.list_objects_v2(Bucket=name).get("Contents", ()):
        s3.delete_object(Bucket=name, Key=one["Key"])
    s3.delete_bucket(Bucket=name)


def raises(name, status, call):
    """The exception of that name, modelled where botocore's description has it."""
    try:
        call()
    except botocore.exceptions.ClientError as error:
        response = error.response
        check(response["Error"]["Code"] == name, f"{name} was expected, and this came: {error}")
        check(response["ResponseMetadata"]["HTTPStatusCode"] == status, f"{name}: {response}")
        check(type(error).__name__ in (name, "ClientError"), f"{name}: {type(error)}")
        check(response["Error"].get("Message"), f"{name} has no message")
        return error
    check(False, f"{name} was expected, and there was an answer")


# --- what is seen to ---------------------------------------------------------------------------------


def real_time(haul):
    expected, strict = batch(haul), batch(haul, "--conf", "0.6", "--classes", "house")
    check(expected != strict and b'"label":"house"' in strict, "the settings change nothing")
    stored = bucket()
    roots, environment = ["--root", PICTURES], None
    if stored:
        s3, name, environment = stored
        roots += ["--root", f"s3://{name}/in/"]
    with Served(haul, "--model", MODEL, "--endpoint-name", NAME, *roots, environment=environment) as server:
        runtime = client(server)

        def invoke(body, **more):
            answer = runtime.invoke_endpoint(EndpointName=NAME, Body=body, **more)
            check(answer["InvokedProductionVariant"] == "AllTraffic", f"{answer}")
            return answer["ContentType"], answer["Body"].read()

        ways = []

        def same(body, expected=expected, **more):
            kind, line = invoke(body, **more)
            ways.append(more)
            check(kind == "application/json", f"the answer is {kind}")
            check(from_width(line) == expected, f"{line!r} is not {expected!r}")

        picture = PICTURE.read_bytes()
        for kind in ("image/jpeg", "application/x-image", "application/octet-stream"):
            same(picture, ContentType=kind)
        same(picture)  # boto3 sends no Content-Type then.
        with open(PICTURE, "rb") as file:
            same(file, ContentType="image/jpeg")
        encoded = base64.b64encode(picture).decode()
        same(json.dumps({"bytes": encoded}), ContentType="application/json")
        locations = ["park/picnic.jpg", str(PICTURE)]
        if stored:
            locations.append(f"s3://{name}/in/picnic.jpg")
        else:
            print("skipped: HAUL_TEST_S3_ENDPOINT is not set, so no s3:// location")
        for location in locations:
            same(json.dumps({"location": location}), ContentType="application/json")
        same(picture, ContentType="image/jpeg", Accept="application/json", InferenceId="inference-1",
             TargetVariant="AllTraffic")
        said = "haul-conf=0.6;haul-classes=house"
        same(picture, strict, ContentType="image/jpeg", CustomAttributes=said)
        for kind, start in (("image/png", b"\x89PNG\r\n\x1a\n"), ("image/jpeg", b"\xff\xd8")):
            got, bytes = invoke(picture, ContentType="image/jpeg", Accept=kind)
            check(got == kind and bytes.startswith(start), f"Accept: {kind} gave {got} {bytes[:8]!r}")
        refused_locations(runtime, stored)
    if stored:
        empty(s3, name)
    print(f"real time: the bytes of `haul run`, {len(expected)} of them, in {len(ways)} ways")


def refused_locations(runtime, stored):
    """What is not there, and what is not for others, is a fault of the request."""
    outside = {"../../Cargo.toml": 403, "/etc/hostname": 403, "nothing.jpg": 404}
    if stored:
        outside |= {f"s3://{stored[1]}/in/nothing.jpg": 404, f"s3://{stored[1]}/out/x.jpg": 403}
    for location, status in outside.items():
        error = raises("ModelError", 424, lambda: runtime.invoke_endpoint(
            EndpointName=NAME, ContentType="application/json", Body=json.dumps({"location": location})))
        check(error.response["OriginalStatusCode"] == status, f"{location}: {error.response}")


def refused(haul):
    limit = 300_000
    with Served(haul, "--model", MODEL, "--endpoint-name", NAME, "--max-payload", limit) as server:
        runtime = client(server)
        picture = PICTURE.read_bytes()

        def invoke(**more):
            return runtime.invoke_endpoint(**{"EndpointName": NAME, "Body": picture} | more)

        error = raises("ValidationError", 400, lambda: invoke(EndpointName="nobody"))
        check(isinstance(error, runtime.exceptions.ValidationError), f"{type(error)}")
        check("Endpoint nobody of account" in str(error) and "not found" in str(error), f"{error}")
        error = raises("ModelError", 424, lambda: invoke(Body=b"This is a text."))
        check(isinstance(error, runtime.exceptions.ModelError), f"{type(error)}")
        response = error.response
        check(response["OriginalStatusCode"] == 400, f"{response}")
        original = json.loads(response["OriginalMessage"])
        check(original["error"]["code"] == "not_an_image", f"{original}")
        check(response["Error"]["Message"].startswith("Received client error (400) from primary"), f"{error}")
        # A body that is refused is read first: a client that still writes would else see no answer.
        for size in (limit + 1, 30_000_000):
            error = raises("ValidationError", 400, lambda: invoke(Body=bytes(size)))
            check(str(limit) in str(error), f"{error}")
        for more in ({"TargetModel": "other.tar.gz"}, {"TargetVariant": "blue"},
                     {"TargetContainerHostname": "second"}, {"InferenceComponentName": "part"},
                     {"EnableExplanations": "`true`"}, {"SessionId": "NEW_SESSION"}):
            raises("ValidationError", 400, lambda: invoke(**more))
        error = raises("ValidationError", 400, lambda: runtime.invoke_endpoint_with_response_stream(
            EndpointName=NAME, Body=picture))
        check("InvokeEndpoint" in str(error), f"{error}")
        for more, status in (({"Accept": "text/csv"}, 406), ({"ContentType": "text/csv"}, 415),
                             ({"CustomAttributes": "haul-conf=2"}, 400),
                             ({"ContentType": "application/json", "Body": b"{"}, 400)):
            error = raises("ModelError", 424, lambda: invoke(**more))
            check(error.response["OriginalStatusCode"] == status, f"{more}: {error.response}")
        # It is well after all that.
        check(invoke()["ResponseMetadata"]["HTTPStatusCode"] == 200, "it does not answer any more")
    print("refused: ValidationError and ModelError, as the service raises them")


def overload(haul):
    with Served(haul, "--model", MODEL, "--endpoint-name", NAME, "--max-requests", "2", "--workers", "1") as server:
        picture = PICTURE.read_bytes()
        once, patient = client(server, AWS_MAX_ATTEMPTS="1"), client(server)

        def invoke(runtime):
            return runtime.invoke_endpoint(EndpointName=NAME, Body=picture, ContentType="image/jpeg")

        results = in_threads(24, lambda _: invoke(once))
        answers = [one for one in results if isinstance(one, dict)]
        refusals = [one for one in results if isinstance(one, Exception)]
        for error in refusals:
            check(isinstance(error, once.exceptions.ServiceUnavailable), f"{type(error)}: {error}")
            check(error.response["ResponseMetadata"]["HTTPStatusCode"] == 503, f"{error.response}")
        check(answers and refusals, f"{len(answers)} answers, {len(refusals)} refusals")
        # Three tries each are enough for so many, two at once.
        results = in_threads(4, lambda _: invoke(patient))
        wrong = [one for one in results if not isinstance(one, dict)]
        check(not wrong, f"with retries {len(wrong)} of {len(results)} failed: {wrong[:1]}")
        tries = [one["ResponseMetadata"]["RetryAttempts"] for one in results]
        check(any(tries), "nobody had to try again, so this shows nothing")
        check(server.metrics()[f'haul_shed_total{{endpoint="{NAME}"}}'] >= len(refusals) + sum(tries),
              "refusals are not counted")
    print(f"overload: {len(answers)} answered and {len(refusals)} refused at once; "
          f"with boto3's retries all of {len(results)}, after {sorted(tries)} more tries")


def container(haul):
    """As SageMaker starts a container: a folder with the model, and variables."""
    data = os.environ.get("HAUL_PARITY_DATA")
    weights = pathlib.Path(data) / "weights/yolov8n.pt" if data else MODEL
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "model").mkdir()
        (pathlib.Path(folder) / "model" / weights.name).symlink_to(weights)
        port = subprocess.run(["python3", ROOT / "scripts/servers/ports.py", "1"], check=True,
                              capture_output=True, text=True).stdout.strip()
        environment = quiet_environment(
            SAGEMAKER_BASE_DIR=folder, SAGEMAKER_BIND_TO_PORT=port, SAGEMAKER_BATCH="true",
            SAGEMAKER_MAX_PAYLOAD_IN_MB="6", SAGEMAKER_MAX_CONCURRENT_TRANSFORMS="2",
            SAGEMAKER_BATCH_STRATEGY="SINGLE_RECORD", SAGEMAKER_SAFE_PORT_RANGE="19000-19999")
        with Served(haul, environment=environment, port=None) as server:
            check(server.port == int(port), f"it listens on {server.port}")
            status, headers, body = server.ask("GET", "/ping")
            check((status, body) == (200, b""), f"/ping: {status} {body!r}")
            said = server.json("/execution-parameters")
            check(said["BatchStrategy"] == "SINGLE_RECORD" and said["MaxPayloadInMB"] == 6
                  and 1 <= said["MaxConcurrentTransforms"] * said["MaxPayloadInMB"] <= 100, f"{said}")
            status, headers, body = server.ask("POST", "/invocations", PICTURE.read_bytes(), {
                "Content-Type": "application/x-image", "Accept": "application/json",
                "X-Amzn-SageMaker-Custom-Attributes": "trace=1", "X-Unheard-Of": "x"})
            check(status == 200 and json.loads(body)["width"] == 480, f"{status} {body!r}")
            status, _, body = server.ask("POST", "/invocations", bytes(6_300_000))
            check(status == 413, f"more than 6 MB: {status} {body!r}")
    print(f"container: {weights.name} from its folder, on the port that it was told")


def asynchronous(haul):
    said = subprocess.run([haul, "serve", "--help"], capture_output=True, text=True).stdout
    if "--async-output" not in said:
        print("skipped: this haul knows no --async-output")
        return
    stored = bucket()
    if not stored:
        print("skipped: HAUL_TEST_S3_ENDPOINT is not set, so nothing asynchronous")
        return
    s3, name, environment = stored
    s3.put_object(Bucket=name, Key="in/text.jpg", Body=b"This is a text.")
    with tempfile.TemporaryDirectory() as state:
        environment["XDG_STATE_HOME"] = state
        with Served(haul, "--model", MODEL, "--endpoint-name", NAME, "--root", f"s3://{name}/in/",
                    "--async-output", f"s3://{name}/out/", "--async-failure", f"s3://{name}/failed/",
                    environment=environment) as server:
            invoked(s3, name, client(server), batch(haul), batch(haul, "--conf", "0.6", "--classes", "house"))
    empty(s3, name)
    print("asynchronous: results and failures lie where the answers said")


def invoked(s3, name, runtime, expected, strict):
    def invoke(key="in/picnic.jpg", **more):
        answer = runtime.invoke_endpoint_async(EndpointName=NAME, InputLocation=f"s3://{name}/{key}", **more)
        check(answer["ResponseMetadata"]["HTTPStatusCode"] == 202, f"{answer}")
        places = [answer.get("OutputLocation"), answer.get("FailureLocation")]
        check(all(place and place.startswith(f"s3://{name}/") for place in places), f"{answer}")
        return answer

    def there(location):
        at = urllib.parse.urlparse(location)
        try:
            s3.head_object(Bucket=at.netloc, Key=at.path[1:])
        except botocore.exceptions.ClientError as error:
            check(error.response["ResponseMetadata"]["HTTPStatusCode"] == 404, f"{location}: {error}")
            return None
        return s3.get_object(Bucket=at.netloc, Key=at.path[1:])

    def result(answer):
        """What came to be there of the two, and that the other did not."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            for mine, other in (("OutputLocation", "FailureLocation"), ("FailureLocation", "OutputLocation")):
                if found := there(answer[mine]):
                    check(not there(answer[other]), f"both of them are there: {answer}")
                    return mine, found["ContentType"], found["Body"].read()
            time.sleep(0.1)
        check(False, f"in two minutes there was neither of the two: {answer}")

    plain = invoke(ContentType="image/jpeg")
    check(plain["InferenceId"], f"{plain}")
    check(plain["OutputLocation"].startswith(f"s3://{name}/out/") and plain["OutputLocation"].endswith(".out"), f"{plain}")
    named = invoke(InferenceId="mine-1", Accept="application/json", InvocationTimeoutSeconds=60,
                   RequestTTLSeconds=600)
    check(named["InferenceId"] == "mine-1", f"{named}")
    asked = invoke(CustomAttributes="haul-conf=0.6;haul-classes=house")
    drawn = invoke(Accept="image/png")
    wrong = [invoke("in/text.jpg"), invoke("in/nothing.jpg")]
    for answer, line in ((plain, expected), (named, expected), (asked, strict)):
        where, kind, body = result(answer)
        check(where == "OutputLocation", f"it failed: {body!r}")
        check(kind == "application/json" and from_width(body) == line, f"{kind}: {body!r} is not {line!r}")
    where, kind, body = result(drawn)
    check(where == "OutputLocation" and kind == "image/png" and body.startswith(b"\x89PNG"), f"{where} {kind} {body[:80]!r}")
    for answer in wrong:
        where, _, body = result(answer)
        check(where == "FailureLocation" and body, f"it did not fail: {body!r}")
    again = [invoke() for _ in range(20)]
    places = {answer["OutputLocation"] for answer in again}
    check(len(places) == 20, f"20 requests have {len(places)} places")
    for answer in again:
        check(from_width(result(answer)[2]) == expected, "another line")
    for more in ({"EndpointName": "nobody"}, {"InputLocation": "s3://elsewhere/x.jpg"},
                 {"RequestTTLSeconds": 21601}, {"InvocationTimeoutSeconds": 3601}):
        request = {"EndpointName": NAME, "InputLocation": f"s3://{name}/in/picnic.jpg"} | more
        raises("ValidationError", 400, lambda: runtime.invoke_endpoint_async(**request))


PARTS = [real_time, refused, overload, container, asynchronous]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--haul", default=ROOT / "target/release/haul", type=pathlib.Path)
    parser.add_argument("--only", default=",".join(part.__name__ for part in PARTS))
    options = parser.parse_args()
    if boto3 is None:
        skip("boto3 is not here")
    if not options.haul.exists():
        skip(f"there is no {options.haul}")
    wanted = options.only.split(",")
    unknown = set(wanted) - {part.__name__ for part in PARTS}
    check(not unknown, f"there is no part {unknown}")
    for part in PARTS:
        if part.__name__ in wanted:
            part(options.haul.resolve())
    print(f"boto3 {boto3.__version__} sees SageMaker's runtime")


main()
