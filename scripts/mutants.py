#!/usr/bin/env python3
"""Negative controls of the crash tests: takes one safeguard out at a time and expects red.

    scripts/mutants.py [NUMBER ...]     all of them, or those

Each mutant is compiled in a copy of the sources (the target folder is shared, so dependencies are
not) and must compile, and make tests/crash fail. By hand: each takes a minute or two.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

FILES = "src/store/local/files.rs"
MANIFEST = "src/job/manifest.rs"

# What is taken out, where, and how.
MUTANTS = [
    ("the fsync of a file", FILES, ".and_then(|()| file.sync()).map_err(full)?", ".map_err(full)?"),
    (
        "the fsync of the folder after publishing",
        FILES,
        "        if let Some(parent) = target.parent() {\n            self.sync_folder(parent)?;\n        }\n        Ok(outcome)",
        "        Ok(outcome)",
    ),
    (
        "the fsync of a new folder's parent",
        FILES,
        "        match self.sync_folder(parent) {",
        "        match Ok::<(), StoreError>(()) {",
    ),
    (
        "the link: parts are written under their own name",
        FILES,
        "match self.disk.link(&staged.path, &target) {",
        "match self.disk.create(&target).and_then(|mut file| {\n"
        "            file.write_all(bytes)?;\n            file.sync()\n        }) {",
    ),
    (
        "the fsync after deleting",
        FILES,
        "        folders.iter().try_for_each(|folder| self.sync_if_there(folder))",
        "        Ok(())",
    ),
    (
        "that what a killed run left is made durable",
        FILES,
        "        self.sync_if_there(&self.root.join(folder))",
        "        let _ = folder;\n        Ok(())",
    ),
    (
        "the checksum of a part",
        "src/job/verify.rs",
        "if sha256(&part) != record.sha256 {",
        "if false {",
    ),
    (
        "the checksum of the segment before",
        "src/job/chain.rs",
        " || segment.previous.as_deref() != previous {",
        " {\n            let _ = previous;",
    ),
    (
        "the order of part and record",
        MANIFEST,
        '        failpoint::hit("before_part").map_err(JobError::Internal)?;',
        "        self.put_record(record)?;",
    ),
    (
        "the order in which a job is removed",
        MANIFEST,
        "        delete(vec![SUCCESS.into()])?;",
        "        delete(vec![JOB.into()])?;\n        delete(vec![SUCCESS.into()])?;",
    ),
]


def mutate(root, file, old, new):
    path = root / file
    text = path.read_text()
    if text.count(old) != 1:
        sys.exit(f"{file}: the text of a mutant is there {text.count(old)} times:\n{old}")
    path.write_text(text.replace(old, new))


def main():
    here = pathlib.Path(__file__).resolve().parent.parent
    target = os.environ.get("CARGO_TARGET_DIR", str(here / "target"))
    wanted = [int(word) for word in sys.argv[1:]] or range(1, len(MUTANTS) + 1)
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "haul"
        leave_out = shutil.ignore_patterns("target", ".git")
        shutil.copytree(here, copy, ignore=leave_out)
        for number in wanted:
            name, file, old, new = MUTANTS[number - 1]
            kept = (copy / file).read_text()
            mutate(copy, file, old, new)
            test = ["cargo", "test", "--locked", "--test", "crash"]
            environment = os.environ | {"CARGO_TARGET_DIR": target, "RUST_BACKTRACE": "0"}
            run = lambda *more: subprocess.run(
                [*test, *more], cwd=copy, env=environment, capture_output=True, text=True
            )
            if (built := run("--no-run")).returncode != 0:
                sys.exit(f"mutant {number} does not compile:\n{built.stderr}")
            ran = run("--no-fail-fast")
            red = sorted(set(re.findall(r"^    (\w+)$", ran.stdout, re.M)))
            if ran.returncode == 0:
                survivors.append(number)
                red = ["NOTHING WENT RED"]
            elif not red:
                sys.exit(f"mutant {number} could not be tried:\n{ran.stdout}{ran.stderr}")
            print(f"{number:2} without {name}: {', '.join(red)}", flush=True)
            (copy / file).write_text(kept)
    if survivors:
        sys.exit(f"survived: {survivors}")


if __name__ == "__main__":
    main()
