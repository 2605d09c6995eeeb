#!/usr/bin/env python3
"""Checks that the source tree keeps its layers: who may include whom, and where third parties may
appear. Prints one line a violation, file:line: what; exit 1 when there is any.

usage: tools/check_layers.py [ROOT]
"""
import re
import sys
from pathlib import Path

# Folder -> the folders directly below it; the allowed includes are the closure of this table.
BELOW = {
    "base": [],
    "memory": ["base"],
    "comm": ["memory"],
    "backend": ["comm"],
    "io": ["comm"],
    "data": ["io", "backend"],
    "lm": ["io", "backend", "data"],
    "model": ["backend"],
    "train": ["model", "data"],
    "analyse": ["train", "lm"],
    "serve": ["data"],
    "app": ["analyse", "serve"],
}

# Header pattern -> path prefixes (below src/ or include/clt/) where it may be included.
FENCES = [
    (r"mpi\.h", ["comm/", "io/"]),
    (r"(hdf5|H5\w*)\.h", ["io/"]),
    (r"toml\+\+/.*|toml\.hpp", ["app/"]),
    (r"cuda\w*\.h(pp)?|cublas\w*\.h|cub/.*|nccl\.h|nvtx3/.*", ["backend/cuda/"]),
    (r"httplib\.h", ["serve/", "data/remote"]),
    (r"clt/memory/raw\.hpp", ["backend/", "comm/"]),
]

SUFFIXES = {".hpp", ".cpp", ".cu", ".cuh", ".h"}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')


def closure(folder, seen=None):
    seen = set() if seen is None else seen
    for below in BELOW[folder]:
        if below not in seen:
            seen.add(below)
            closure(below, seen)
    return seen


def includes(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1)


def check_include(inside, folder, header):
    """What is wrong with this include, or None. inside: path below src/ or include/clt/."""
    for pattern, homes in FENCES:
        if re.fullmatch(pattern, header) and not inside.startswith(tuple(homes)):
            return f"<{header}> belongs in {', '.join(homes)}"
    public = header.startswith("clt/")
    parts = header.removeprefix("clt/").split("/")
    target = parts[0] if len(parts) > 1 else None
    if target not in BELOW or target == folder:
        return f"clt/{parts[0]} is no known folder" if public and target not in BELOW else None
    if not public:
        return f'"{header}" is private to {target}/'
    if target not in closure(folder):
        return f"{folder}/ must not include {target}/ ({header})"
    return None


def unused_outside(public, users):
    """The public headers that no other folder includes, neither itself nor through another header."""
    needed = {name for name, (_, folder) in public.items()
              if any(user != folder for user, _ in users.get(name, []))}
    while True:
        more = {name for name in public.keys() - needed
                if any(by in needed for _, by in users.get(name, []))}
        if not more:
            return [public[name] for name in public.keys() - needed]
        needed |= more


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    violations = []
    public = {}  # "clt/x/y.hpp" -> (path to show, its folder)
    users = {}  # header -> (folder, the public header that includes it or None) of every include
    for base in (root / "include" / "clt", root / "src"):
        for path in sorted(p for p in base.rglob("*") if p.suffix in SUFFIXES):
            inside = path.relative_to(base).as_posix()
            folder = inside.split("/")[0]
            shown = path.relative_to(root)
            if folder not in BELOW or "/" not in inside:
                violations.append(f"{shown}:1: {folder} is no known folder")
                continue
            name = f"clt/{inside}" if base.name == "clt" else None
            if name:
                public[name] = (shown, folder)
            for number, header in includes(path):
                users.setdefault(header, []).append((folder, name))
                problem = check_include(inside, folder, header)
                if problem:
                    violations.append(f"{shown}:{number}: {problem}")
    violations += [f"{shown}:1: only {folder}/ uses this header; it belongs in src/{folder}/"
                   for shown, folder in unused_outside(public, users)]
    print("\n".join(violations) if violations else "layers: no violation")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
