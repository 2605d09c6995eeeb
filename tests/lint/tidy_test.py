#!/usr/bin/env python3
"""tools/tidy checks again whatever could have another result, and nothing else."""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TIDY = Path(__file__).resolve().parents[2] / "tools" / "tidy"

SETTINGS = "Checks: '-*,modernize-use-nullptr,bugprone-macro-parentheses'\nWarningsAsErrors: '*'\nHeaderFilterRegex: '.*'\n"
CLEAN = {
    ".clang-tidy": SETTINGS,
    "src/a.cpp": '#include "a.hpp"\nint* a() { return nullptr; }\n',
    "src/a.hpp": "#define TWICE(x) ((x) + (x))\nint* a();\n",
    "src/b.cpp": "int* b() { return 0; }  // NOLINT\n",
}


class TidyTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.cache = Path(folder.name) / "cache"
        self.root = self.checkout(Path(folder.name) / "one")
        self.other = Path(folder.name) / "two"

    def checkout(self, root):
        for name, text in CLEAN.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        self.commands(root)
        return root

    def commands(self, root, flags=""):
        database = [{"directory": str(root), "file": f"{root}/src/{name}.cpp",
                     "command": f"ccache c++ {flags} -I{root}/src -o {name}.o -c {root}/src/{name}.cpp"}
                    for name in ("a", "b")]
        (root / "compile_commands.json").write_text(json.dumps(database))

    def edit(self, name, text):
        (self.root / name).write_text(text)

    def tidy(self, root=None):
        """(exit code, files known to be clean, problems)"""
        root = root or self.root
        done = subprocess.run([sys.executable, TIDY, root, "--root", root], capture_output=True, text=True,
                              env=os.environ | {"CLT_TIDY_CACHE": str(self.cache)})
        *problems, last = done.stdout.splitlines()
        self.assertEqual(done.stderr, "")
        self.assertTrue(last.startswith("tidy: 2 files, "), done.stdout)
        return done.returncode, int(last.split()[3]), problems

    def test_clean_files_are_known(self):
        self.assertEqual(self.tidy(), (0, 0, []))
        self.assertEqual(self.tidy(), (0, 2, []))
        self.assertEqual(self.tidy(self.checkout(self.other)), (0, 2, []))

    def test_changes_that_preprocessing_hides(self):
        self.tidy()
        self.edit("src/b.cpp", "int* b() { return 0; }\n")  # without NOLINT
        code, known, problems = self.tidy()
        self.assertEqual((code, known, len(problems)), (1, 1, 1))
        self.assertIn("src/b.cpp:1:19: error: use nullptr", problems[0])
        self.edit("src/b.cpp", CLEAN["src/b.cpp"])
        self.edit("src/a.hpp", "#define TWICE(x) x + x\nint* a();\n")  # which nothing uses
        code, known, problems = self.tidy()
        self.assertEqual((code, known), (1, 1))
        self.assertIn("src/a.hpp:1:", problems[0])

    def test_problems_are_not_kept(self):
        self.edit("src/a.cpp", "int* a() { return 0; }\n")
        first = self.tidy()
        self.assertEqual(first[0], 1)
        self.assertEqual(self.tidy(), (1, 1, first[2]))

    def test_settings_and_flags(self):
        self.tidy()
        self.edit(".clang-tidy", SETTINGS.replace("modernize-use-nullptr,", ""))
        self.assertEqual(self.tidy(), (0, 0, []))
        self.commands(self.root, "-DNDEBUG")
        self.assertEqual(self.tidy(), (0, 0, []))

    def test_what_does_not_compile(self):
        self.edit("src/a.cpp", '#include "missing.hpp"\n')
        code, _, problems = self.tidy()
        self.assertEqual(code, 1)
        self.assertIn("'missing.hpp' file not found", problems[0])


if __name__ == "__main__":
    unittest.main()
