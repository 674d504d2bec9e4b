#!/usr/bin/env python3
"""Are the kernels that are left to the compiler still vectorised?

    python3 scripts/vectorised.py target/release/haul

Reads the machine code of the release binary (by objdump, x86-64) and counts the products and sums of
f32 in each kernel: those of whole vectors, and those of single numbers. Results are the same either
way, so no other check would notice; the portable kernel once took 2.4 s a picture where it had taken
0.28 s. Exits 1 where a kernel is not what it was, and 77 where there is nothing to look at.
"""

import platform
import re
import shutil
import subprocess
import sys

# The modules and functions, the registers, and how many operations on such or larger ones they have
# at least: half of what rustc 1.95 gave us, as what goes wrong goes wrong by a factor. Operations on
# single numbers may be a tenth of those: a few before and after the loops. All of a module is counted
# together, whatever is inlined where in it.
KERNELS = [
    ("kernels::portable::", "xmm", 220),
    ("kernels::dense::decode_avx2", "ymm", 30),
    ("kernels::dense::decode_avx512", "zmm", 17),
    ("kernels::table::wide::scan_avx2", "ymm", 33),
    ("kernels::table::wide::scan_avx512", "zmm", 32),
    # Written out in intrinsics: what could go wrong is that they are not inlined.
    ("kernels::x86::avx2::", "ymm", 250),
    ("kernels::x86::avx512::", "zmm", 1200),
    ("kernels::x86::winograd::narrow::", "ymm", 300),
    ("kernels::x86::winograd::wide::", "zmm", 150),
    ("kernels::x86::winograd::half::", "zmm", 150),
]
REGISTERS = ["xmm", "ymm", "zmm"]
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
OPERATION = r"mul|add|sub|max|cmp\w*|u?comi|cvt(?:dq|si)2|fn?m(?:add|sub)(?:132|213|231)"
ARITHMETIC = re.compile(rf"\sv?(?:{OPERATION})(ps|ss)l?\s+(.*)")
REGISTER = re.compile(r"%([xyz])mm")


def functions(listing):
    """(name, {"xmm": …, "ymm": …, "zmm": …, "ss": …}) of each function of ours."""
    counts = {}
    for line in listing:
        if head := FUNCTION.match(line):
            counts = dict.fromkeys([*REGISTERS, "ss"], 0)
            if head[1].startswith("haul::"):
                yield head[1].removeprefix("haul::"), counts
        elif counts and (found := ARITHMETIC.search(line)):
            register = REGISTER.search(found[2])
            counts["ss" if found[1] == "ss" or not register else f"{register[1]}mm"] += 1


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def main(binary):
    if platform.machine() != "x86_64":
        skip("only the machine code of x86-64 is known here")
    if shutil.which("objdump") is None:
        skip("objdump is not here (it comes with a C compiler)")
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--demangle", binary]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as objdump:
        ours = list(functions(objdump.stdout))
    if objdump.returncode != 0:
        sys.exit(f"objdump cannot read {binary}")
    if not ours:
        skip(f"{binary} has no names of functions (it was stripped)")
    wrong = 0
    for kernel, register, least in KERNELS:
        counted = [counts for name, counts in ours if name.startswith(kernel)]
        wide = REGISTERS[REGISTERS.index(register) :]
        vectors = sum(counts[each] for counts in counted for each in wide)
        single = sum(counts["ss"] for counts in counted)
        fine = vectors >= least and single * 10 <= vectors
        wrong += not fine
        print(
            f"{'ok   ' if fine else 'WRONG'} {kernel:36} {len(counted):2} functions,"
            f" {vectors:5} operations on {register} or larger (at least {least}), {single:3} on single numbers"
        )
    if wrong:
        print("these are not vectorised as they were; is something inlined that was not, or not any more?")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
