#!/usr/bin/env python3
"""check_layers.py finds each kind of violation in a tree made for it, and nothing in a clean one."""
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

CHECK = Path(__file__).resolve().parents[2] / "tools" / "check_layers.py"

CLEAN = {
    "include/clt/base/types.hpp": '#include "clt/base/integers.hpp"\n',
    "include/clt/base/integers.hpp": "#include <cstdint>\n",
    "include/clt/comm/communicator.hpp": '#include <mpi.h>\n#include "clt/base/types.hpp"\n',
    "src/comm/communicator.cpp": '#include "clt/comm/communicator.hpp"\n#include "comm/private.hpp"\n',
    "src/comm/private.hpp": "",
    "src/app/main.cpp": '#include <toml++/toml.h>\n#include "clt/comm/communicator.hpp"\n',
}


def run(files):
    with tempfile.TemporaryDirectory() as root:
        for name, text in files.items():
            path = Path(root) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        done = subprocess.run([sys.executable, CHECK, root], capture_output=True, text=True)
        return done.returncode, done.stdout


class CheckLayers(unittest.TestCase):
    def violation(self, name, text, expected):
        code, out = run(CLEAN | {name: text})
        self.assertEqual(code, 1, out)
        self.assertEqual(len(out.strip().splitlines()), 1, out)
        self.assertIn(name, out)
        self.assertIn(expected, out)

    def test_clean(self):
        self.assertEqual(run(CLEAN), (0, "layers: no violation\n"))

    def test_upwards(self):
        self.violation("src/base/error.cpp", '#include "clt/comm/communicator.hpp"\n', "base/ must not include comm/")

    def test_sideways(self):
        self.violation("src/io/file.cpp", '#include "clt/backend/backend.hpp"\n', "io/ must not include backend/")

    def test_private(self):
        self.violation("src/app/job.cpp", '#include "comm/private.hpp"\n', "private to comm/")

    def test_fences(self):
        self.violation("src/train/trainer.cpp", "#include <mpi.h>\n", "belongs in comm/")
        self.violation("src/data/dataset.cpp", "  #  include <hdf5.h>\n", "belongs in io/")
        self.violation("src/io/file.cpp", "#include <toml++/toml.h>\n", "belongs in app/")
        self.violation("src/backend/cpu/a.cpp", "#include <cuda_runtime.h>\n", "belongs in backend/cuda/")
        self.violation("src/model/step.cpp", '#include "clt/memory/raw.hpp"\n', "belongs in backend/")

    def test_header_of_one_folder(self):
        self.violation("include/clt/io/file.hpp", "", "only io/ uses this header")

    def test_unknown_folder(self):
        self.violation("src/util/misc.cpp", "", "no known folder")


if __name__ == "__main__":
    unittest.main()
