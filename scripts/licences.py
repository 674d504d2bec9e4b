#!/usr/bin/env python3
"""Hold the licence of every dependency in Cargo.lock against the list in deny.toml.

    python3 scripts/licences.py          needs cargo and Python 3.11, nothing else

Dependencies of every platform, and those of tests and build scripts, count as well.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def holds(expression, allowed):
    """Whether an SPDX expression can be met with allowed licences alone; `/` is an old OR."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def take(word):
        nonlocal position
        if position < len(tokens) and tokens[position] == word:
            position += 1
            return True
        return False

    def either():
        result = both()
        while take("OR"):
            result = both() or result
        return result

    def both():
        result = one()
        while take("AND"):
            result = one() and result
        return result

    def one():
        nonlocal position
        if take("("):
            result = either()
            if not take(")"):
                raise ValueError("a `)` is missing")
            return result
        if position >= len(tokens) or tokens[position] in (")", "AND", "OR", "WITH"):
            raise ValueError("a licence is missing")
        name = tokens[position]
        position += 1
        if take("WITH"):
            if position >= len(tokens):
                raise ValueError("an exception is missing")
            name += f" WITH {tokens[position]}"
            position += 1
        return name in allowed

    result = either()
    if position < len(tokens):
        raise ValueError(f"`{tokens[position]}` is one too many")
    return result


def self_test():
    allowed = {"MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"}
    for expression, expected in [
        ("MIT", True),
        ("GPL-3.0", False),
        ("Unlicense/MIT", True),
        ("GPL-3.0 OR MIT AND Zlib", True),
        ("(GPL-3.0 OR MIT) AND Unicode-3.0", False),
        ("MIT AND (GPL-3.0 OR Zlib)", True),
        ("Apache-2.0", False),
        ("Apache-2.0 WITH LLVM-exception", True),
    ]:
        assert holds(expression, allowed) == expected, expression


def main():
    self_test()
    rules = tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]
    exceptions = {rule["crate"]: rule["allow"] for rule in rules.get("exceptions", [])}
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    packages = json.loads(output)["packages"]
    wrong = []
    for package in packages:
        licence = package["license"] or "no licence"
        allowed = {*rules["allow"], *exceptions.pop(package["name"], [])}
        try:
            fits = holds(licence, allowed)
        except ValueError as error:
            fits, licence = False, f"{licence} ({error})"
        if not fits:
            wrong.append(f"{package['name']} {package['version']}: {licence}")
    wrong += [f"deny.toml has an exception for `{name}`, which is not used" for name in exceptions]
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(packages)} packages, {len(wrong)} not allowed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
