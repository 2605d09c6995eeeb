"""What the e2e tests share: the binary, a scratch folder, a small data set and jobs on it.

A test module is run as `MODULE.py CLT`. It makes `setUpModule = harness.set_up`, derives from harness.Case and ends with
harness.main(). Debian's python3, for h5py."""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
CASES = SOURCE / "tests/cases"  # situations of public bug reports, made small
CLT = None
ROOT = None  # scratch folder; with a data set and a finished run: ROOT/data, ROOT/run

# Only a hang takes this long: other tests may share the two cores.
TIMEOUT_S = 240

TRAIN = """
[job]
kind = "train"
output = "{output}"
[data]
path = "{data}"
batch_tokens = 256
holdout_fraction = 0.1
[model]
features = 96
k = 16
[schedule]
steps = 4
[log]
interval = 1
"""

EVALUATE = """
[job]
kind = "evaluate"
output = "judged"
[data]
path = "data"
[evaluate]
checkpoint = "{checkpoint}"
rows = "all"
"""


def command(*arguments, ranks=1):
    """The command line and the environment of `clt ARGUMENTS` on so many ranks."""
    environment = dict(os.environ)
    words = [CLT, *map(str, arguments)]
    if ranks > 1:
        return ["mpirun", "-n", str(ranks), *words], environment
    return words, environment | {"OMPI_MCA_ess_singleton_isolated": "1"}


def clt(*arguments, ranks=1, **options):
    """Runs it to its end. options: as of subprocess.run, e.g. cwd."""
    words, environment = command(*arguments, ranks=ranks)
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, **options)


def train_job(name, data=None, text=TRAIN):
    """Writes ROOT/name.toml, a training job with the output ROOT/name."""
    path = ROOT / f"{name}.toml"
    path.write_text(text.format(output=name, data=data or "data"))
    return path


def case(name):
    """A writable copy of tests/cases/NAME in ROOT."""
    return Path(shutil.copytree(CASES / name, ROOT / name))


def scratch():
    global ROOT
    ROOT = Path(tempfile.mkdtemp(prefix="clt-e2e-"))
    unittest.addModuleCleanup(shutil.rmtree, ROOT)


def set_up():
    """As setUpModule: the scratch folder, the data set ROOT/data (4,096 tokens) and the finished run ROOT/run."""
    scratch()
    for done in (
        clt("generate", SOURCE / "jobs/generate-tiny.toml", "--set", f"job.output={ROOT}/data",
            "--set", "data.target_tokens=4096"),
        clt("train", train_job("run")),
    ):
        assert done.returncode == 0, done.stderr


class Case(unittest.TestCase):
    def fails(self, done, code, *words):
        """The process ended with this code and exactly one message, which has all the words."""
        messages = [line for line in done.stderr.splitlines() if line.startswith("clt: ")]
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(len(messages), 1, done.stderr)
        for word in words:
            self.assertIn(str(word), messages[0])
        self.assertNotIn("terminate called", done.stderr)

    def succeeds(self, done):
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def nothing_written(self, name):
        left = [str(p) for p in (ROOT / name).rglob("*") if p.suffix in {".h5", ".tmp", ".hdf5"}]
        self.assertEqual(left, [])

    def damaged_data(self, name):
        """A copy of ROOT/data, to be damaged."""
        shutil.copytree(ROOT / "data", ROOT / name)
        return ROOT / name


def main():
    global CLT
    CLT = str(Path(sys.argv.pop(1)).resolve())
    unittest.main("__main__")
