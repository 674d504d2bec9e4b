#!/usr/bin/env python3
"""The job files for clusters that are not here are what these clusters take, and do with haul's exit
codes what they should.

    scripts/job_files.py [HAUL]

jobs/k8s-indexed-job.yaml  against the schemas of the oldest Kubernetes that it names and of the newest
                           that kubernetes-validate carries, unknown fields refused, then against the
                           rules that the API server has beyond its schema, as far as they touch it
jobs/aws-batch.json        as a request RegisterJobDefinition, by botocore's model of the service
jobs/slurm.sbatch          its options, and that it becomes haul (scripts/slurm_array.sh runs it)

With HAUL the commands in them are given to it, for every shard, on a small job. pip: kubernetes-validate,
botocore. Returns 77 where these are not here.
"""

import fnmatch
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

try:
    import botocore.session
    import botocore.validate
    import kubernetes_validate
    import yaml
except ImportError as error:
    print(f"skipped: {error} (pip: kubernetes-validate, botocore)")
    sys.exit(77)

ROOT = pathlib.Path(__file__).resolve().parent.parent
JOBS = ROOT / "jobs"

# What a scheduler should do with each way of ending (docs/automation.md). 137: killed.
AGAIN, STOP = "again", "stop"
CODES = {1: AGAIN, 11: AGAIN, 75: AGAIN, 130: AGAIN, 137: AGAIN, 143: AGAIN,
         2: STOP, 3: STOP, 4: STOP, 5: STOP, 6: STOP}

wrong = []


def check(holds, what):
    if not holds:
        wrong.append(what)


def haul(binary, arguments, environment):
    """One run of haul with nothing in its environment but what a cluster sets."""
    kept = {"PATH": os.environ["PATH"]}
    done = subprocess.run([binary, *arguments], env=kept | environment, capture_output=True, text=True)
    return done.returncode, done.stderr


def shared(binary, name, command, environment, shards, whole):
    """Runs the command of every shard, one after the other; together they are the whole job."""
    for index in range(shards):
        code, said = haul(binary, command, environment(index))
        check(code in (0, 3), f"{name}: shard {index} of {shards} ended with {code}: {said}")
        if code not in (0, 3):
            return
    check((whole / "_SUCCESS.json").exists(), f"{name}: {shards} shards are not the whole job")


def small_job(folder):
    (folder / "job.toml").write_text(
        f'model = "{ROOT}/testdata/model/shapes.safetensors"\ninput = "{ROOT}/testdata/pictures"\n'
        f'output = "{folder}/out"\nmax_images = 2\nimgsz = 160\n')


# --- Kubernetes ------------------------------------------------------------------------------------

def kubernetes_answer(spec, code):
    """What the Job controller does when the container ends with a code: the first rule decides."""
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and (code in codes["values"]) == (codes["operator"] == "In"):
            return {"FailJob": STOP, "FailIndex": STOP, "Count": AGAIN}.get(rule["action"])
    return AGAIN


def kubernetes(binary):
    path = JOBS / "k8s-indexed-job.yaml"
    text = path.read_text()
    job = yaml.safe_load(text)
    oldest = re.search(r"Kubernetes (1\.\d+) or newer", text)[1]
    for version in (oldest, kubernetes_validate.latest_version()):
        try:
            kubernetes_validate.validate(job, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.path))
            check(False, f"{path.name}: {version}: {where}: {error.message}")
    if wrong:
        return  # what follows would stumble over it
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    names = [container["name"]]
    rules = spec["podFailurePolicy"]["rules"]
    check(pod["restartPolicy"] == "Never", "podFailurePolicy needs restartPolicy: Never")
    check(spec["completionMode"] == "Indexed", "backoffLimitPerIndex needs completionMode: Indexed")
    check(len(rules) <= 20, "at most 20 rules")
    for rule in rules:
        check(("onExitCodes" in rule) != ("onPodConditions" in rule), "one requirement for each rule")
        check(rule["action"] != "FailIndex" or "backoffLimitPerIndex" in spec, "FailIndex needs a limit")
        codes = rule.get("onExitCodes")
        if codes:
            values = codes["values"]
            check(values == sorted(set(values)) and len(values) <= 255, f"{values}: sorted, each once")
            check(codes["operator"] != "In" or 0 not in values, "0 is no failure")
            check(codes.get("containerName", names[0]) in names, f"{codes}: no such container")
    check("onPodConditions" in rules[0], "disruptions come first: they end haul with 143 or 137, too")
    for code, answer in CODES.items():
        check(kubernetes_answer(spec, code) == answer, f"{path.name}: {code} should be: {answer}")
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    check(mounted == {volume["name"] for volume in pod["volumes"]}, "volumes and mounts differ")
    grace = container["args"][container["args"].index("--grace") + 1]
    check(int(grace.removesuffix("s")) < pod["terminationGracePeriodSeconds"], "--grace is too long")

    # The number of shards, here and after the command that the file names to change it.
    command = re.search(r"sed -E '([^']+)'", text)[1]
    changed = subprocess.run(["sed", "-E", command], input=text, capture_output=True, text=True,
                             check=True).stdout
    for file, count in (text, spec["completions"]), (changed, 50):
        file = yaml.safe_load(file)["spec"]
        environment = {one["name"]: one["value"] for one in
                       file["template"]["spec"]["containers"][0]["env"]}
        check((file["completions"], environment["SHARDS"]) == (count, str(count)),
              f"{path.name}: completions {file['completions']}, SHARDS {environment['SHARDS']}")
    if binary:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            small_job(folder)
            command = [*container["command"], *container["args"]]
            for name, value in environment.items():  # as the kubelet does
                command = [word.replace(f"$({name})", "4") for word in command]
            command = [word.replace("/data/", f"{folder}/") for word in command]
            check(command[0] == "haul", command[0])
            shared(binary, path.name, command[1:], lambda index: {"JOB_COMPLETION_INDEX": str(index)},
                   4, folder / "out")


# --- AWS Batch -------------------------------------------------------------------------------------

def batch_answer(rules, code):
    """What AWS Batch does: the first rule decides, and without one the job is tried again."""
    for rule in rules:
        if fnmatch.fnmatchcase(str(code), rule.get("onExitCode", "*")):
            return {"EXIT": STOP, "RETRY": AGAIN}[rule["action"].upper()]
    return AGAIN


def aws_batch(binary):
    path = JOBS / "aws-batch.json"
    request = json.loads(path.read_text())
    service = botocore.session.get_session().get_service_model("batch")
    shape = service.operation_model("RegisterJobDefinition").input_shape
    report = botocore.validate.ParamValidator().validate(request, shape)
    check(not report.has_errors(), f"{path.name}: {report.generate_report()}")
    if report.has_errors():
        return
    for found in enumerations(request, shape):
        check(False, f"{path.name}: {found}")
    strategy = request["retryStrategy"]
    rules = strategy["evaluateOnExit"]
    check(1 <= strategy["attempts"] <= 10, "AWS Batch tries 1 to 10 times")
    check(len(rules) <= 5, "AWS Batch takes 5 rules at most")
    for rule in rules:
        check(re.fullmatch(r"[0-9]*\*?", rule.get("onExitCode", "")), f"{rule}: digits, and * at the end")
    for code, answer in CODES.items():
        check(batch_answer(rules, code) == answer, f"{path.name}: {code} should be: {answer}")
    container = request["containerProperties"]
    named = {word.removeprefix("Ref::") for word in container["command"] if word.startswith("Ref::")}
    check(named == request["parameters"].keys(), f"{path.name}: parameters {named}")
    if binary:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            values = request["parameters"] | {
                "model": f"{ROOT}/testdata/model/shapes.safetensors",
                "input": f"{ROOT}/testdata/pictures", "output": f"{folder}/out"}
            command = [values[word.removeprefix("Ref::")] if word.startswith("Ref::") else word
                       for word in container["command"]]
            check(command[0] == "haul", command[0])
            # A small picture is a mini-batch, so that there is something for each of four.
            command += ["--max-images", "2", "--imgsz", "160"]
            shared(binary, path.name, command[1:], lambda index: {
                "AWS_BATCH_JOB_ARRAY_INDEX": str(index), "AWS_BATCH_JOB_ARRAY_SIZE": "4",
            }, 4, folder / "out")


def enumerations(value, shape, where=""):
    """Words that the service does not know; botocore leaves these to the service."""
    if shape.type_name == "structure":
        for name, member in value.items():
            yield from enumerations(member, shape.members[name], f"{where}.{name}")
    elif shape.type_name == "list":
        for index, member in enumerate(value):
            yield from enumerations(member, shape.member, f"{where}[{index}]")
    elif shape.type_name == "string" and shape.enum:
        # The actions of retries are taken in any case.
        if value.lower() not in {word.lower() for word in shape.enum}:
            yield f"{where}: {value} is none of {', '.join(shape.enum)}"


# --- Slurm -----------------------------------------------------------------------------------------

def slurm():
    path = JOBS / "slurm.sbatch"
    lines = path.read_text().splitlines()
    options = [line.split("#")[1].split()[1] for line in lines if line.startswith("#SBATCH ")]
    for option in ("--array=", "--signal=B:TERM@", "--requeue", "--open-mode=append"):
        check(any(said.startswith(option) for said in options), f"{path.name}: no {option}")
    commands = [line for line in lines if line and not line.startswith("#")]
    check(len(commands) == 1 and commands[0].startswith("exec "), f"{path.name}: {commands}")
    check(lines[0] == "#!/bin/bash", f"{path.name}: {lines[0]}")
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    check(done.returncode == 0, done.stderr)


def main():
    binary = sys.argv[1] if len(sys.argv) > 1 else None
    kubernetes(binary)
    aws_batch(binary)
    slurm()
    for what in wrong:
        print(what)
    if wrong:
        sys.exit(1)
    print("the job files for Kubernetes, AWS Batch and Slurm are right" +
          ("" if binary else "; without haul, their commands were not tried"))


if __name__ == "__main__":
    main()
