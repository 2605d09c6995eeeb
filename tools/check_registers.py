#!/usr/bin/env python3
"""Compares what each CUDA kernel takes on sm_90 (registers, stack, spills, static shared memory)
with tests/lint/registers.txt. A kernel that begins to spill is slow without a word; here it shows in
the diff. Exit 0 when all is as in the table, 1 when not, 77 when it is another compiler's table.

usage: tools/check_registers.py BUILD [--update]    BUILD: a build folder configured with -DCLT_CUDA=ON
"""
import concurrent.futures
import difflib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "lint" / "registers.txt"
COLUMNS = ("registers", "stack", "spilled", "shared")


def resource_usage(entry):
    """ptxas's words about the kernels of one entry of compile_commands.json."""
    words = shlex.split(entry["command"])
    if Path(words[0]).name == "ccache":
        words = words[1:]
    command = [words[0], "-cubin", "-gencode=arch=compute_90,code=sm_90", "-Xptxas=-v", "-o", os.devnull]
    skip = 0
    for word in words[1:]:
        if skip or word in ("-MD", "-c") or "generate-code" in word:
            skip = 0
        elif word in ("-o", "-MT", "-MF"):
            skip = 1
        else:
            command.append(word)
    done = subprocess.run(command, cwd=entry["directory"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return done.stderr


def short(name):
    """kernel<arguments>, without the namespaces that every kernel has and its parameters."""
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|clt::(cuda::)?", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    return name.removeprefix("void ")


def rows_of(file, text):
    """[(file, kernel, registers, stack, spilled, shared)] from ptxas's words."""
    found = {}
    for block in text.split("Compiling entry function ")[1:]:
        def number(pattern):
            match = re.search(pattern, block)
            return int(match.group(1)) if match else 0
        found[re.match(r"'(\w+)'", block).group(1)] = (
            number(r"Used (\d+) registers"), number(r"(\d+) bytes stack frame"),
            number(r"(\d+) bytes spill stores"), number(r"(\d+) bytes smem"))
    if not found:
        return []
    plain = subprocess.run(["c++filt"], input="\n".join(found), capture_output=True, text=True, check=True).stdout
    return [(file, short(name), *usage) for name, usage in zip(plain.splitlines(), found.values())]


def main():
    if len(sys.argv) < 2 or sys.argv[2:] not in ([], ["--update"]):
        sys.exit(__doc__)
    commands = Path(sys.argv[1]) / "compile_commands.json"
    if not commands.is_file():
        sys.exit(f"{commands}: not there; expected a build folder of CMake")
    entries = [entry for entry in json.loads(commands.read_text())
               if entry["file"].endswith(".cu") and "nvcc" in entry["command"]]
    if not entries:
        sys.exit(f"{sys.argv[1]} has no CUDA files: configure it with -DCLT_CUDA=ON")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        usages = list(pool.map(resource_usage, entries))
    rows = sorted(row for entry, text in zip(entries, usages) for row in rows_of(Path(entry["file"]).name, text))

    compiler = next(word for word in shlex.split(entries[0]["command"]) if word.endswith("nvcc"))
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    head = f"nvcc {re.search('release ([0-9.]+)', said).group(1)}, sm_90; bytes and registers a thread, shared a block"
    widths = [max(len(str(row[i])) for row in [("", "", *COLUMNS), *rows]) for i in range(6)]
    lines = [head, *(("  ".join(str(cell).ljust(w) if i < 2 else str(cell).rjust(w)
                                for i, (cell, w) in enumerate(zip(row, widths)))).rstrip()
                     for row in [("file", "kernel", *COLUMNS), *rows])]
    if "--update" in sys.argv:
        TABLE.write_text("\n".join(lines) + "\n")
        return 0
    table = TABLE.read_text().splitlines()
    if table[0] != head:
        print(f"not compared: the table is for {table[0].split(';')[0]}, this is {head.split(';')[0]}")
        return 77
    # Columns may have become wider: only the cells count.
    changes = list(difflib.unified_diff([" ".join(line.split()) for line in table],
                                        [" ".join(line.split()) for line in lines], "the table", "this build",
                                        lineterm="", n=0))
    print("\n".join(changes) if changes else f"registers: {len(rows)} kernels as in the table")
    if changes:
        print("when this is meant: tools/check_registers.py BUILD --update")
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main())
