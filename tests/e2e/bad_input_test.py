#!/usr/bin/python3
"""Wrong inputs and bad luck, on the real binary: the documented exit code, one clear message that names
what is wrong, nothing half-written. usage: bad_input_test.py CLT   (Debian's python3, for h5py)"""
import json
import os
import signal
import subprocess
import time
import unittest.mock
from pathlib import Path

import h5py

import harness
from harness import clt, train_job

setUpModule = harness.set_up


class BadInput(harness.Case):
    def test_no_job_file(self):
        self.fails(clt("train", harness.ROOT / "none.toml"), 2, "none.toml")

    def test_no_toml(self):
        self.fails(clt("train", train_job("prose", text="train please")), 2, "prose.toml")

    def test_unknown_key(self):
        job = train_job("key", text=harness.TRAIN.replace("features", "featuers"))
        done = clt("train", job)
        self.assertEqual(done.returncode, 2)
        self.assertIn("featuers", done.stderr)
        self.assertIn("features", done.stderr)  # did you mean
        self.nothing_written("key")

    def test_wrong_type(self):
        job = train_job("type", text=harness.TRAIN.replace("batch_tokens = 256", 'batch_tokens = "many"'))
        self.fails(clt("train", job), 2, "batch_tokens", "many", "integer")
        self.nothing_written("type")

    def test_unknown_command_and_option(self):
        self.fails(clt("trian"), 2, "trian", "train")
        self.fails(clt("train", train_job("option"), "--resmue"), 2, "--resmue", "--resume")

    def test_missing_data_set(self):
        self.fails(clt("train", train_job("missing", "nowhere")), 2, "nowhere")
        self.nothing_written("missing")

    def test_truncated_chunk(self):
        chunk = self.damaged_data("cut") / "chunk_0.hdf5"
        os.truncate(chunk, chunk.stat().st_size // 2)
        for ranks in (1, 2):
            self.fails(clt("train", train_job(f"truncated{ranks}", "cut"), ranks=ranks), 2, "chunk_0.hdf5")
            self.nothing_written(f"truncated{ranks}")

    def test_wrong_d_model(self):
        metadata = self.damaged_data("width") / "metadata.json"
        metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"d_model": 64}))
        done = clt("train", train_job("wrong_width", "width"))
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("64", done.stderr)
        self.nothing_written("wrong_width")

    def test_nan(self):
        with h5py.File(self.damaged_data("nan") / "chunk_0.hdf5", "r+") as file:
            file["layer_2/inputs"][17, 5] = float("nan")
        for ranks in (1, 2):
            job = train_job(f"has_nan{ranks}", "nan", harness.TRAIN.replace("steps = 4", "steps = 40"))
            done = clt("train", job, "--set", "data.verify=off", ranks=ranks)
            self.fails(done, 2, "chunk_0", "layer 2", "row 17")
            self.nothing_written(f"has_nan{ranks}")

    def test_grid_is_not_the_world(self):
        done = clt("train", train_job("grid"), "--set", "grid.feature=3", ranks=2)
        self.fails(done, 2, "3", "2")
        self.nothing_written("grid")

    def test_no_cuda_device(self):
        hidden = unittest.mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="")
        words = {"0": ["built without it", "-DCLT_CUDA=ON"], "1": [f"no CUDA device on host {os.uname().nodename}", "driver: "]}
        for ranks in (1, 2):
            with hidden:
                done = clt("train", train_job(f"no_gpu{ranks}"), "--set", "job.backend=cuda", ranks=ranks)
            self.fails(done, 2, 'backend = "cuda": ', *words[os.environ.get("CLT_BUILT_WITH_CUDA", "0")])
            self.nothing_written(f"no_gpu{ranks}")

    def test_other_shape_on_resume(self):
        done = clt("train", harness.ROOT / "run.toml", "--resume", "--set", "model.features=128")
        self.fails(done, 2, "features")

    def test_run_folder_in_use(self):
        before = (harness.ROOT / "run/metrics.jsonl").read_bytes()
        self.fails(clt("train", harness.ROOT / "run.toml"), 2, "run", "--resume")
        self.assertEqual((harness.ROOT / "run/metrics.jsonl").read_bytes(), before)

    def test_unwritable_output(self):
        (harness.ROOT / "a_file").write_text("")
        for output in (harness.ROOT / "a_file/run", "/proc/run"):
            self.fails(clt("train", harness.ROOT / "run.toml", "--set", f"job.output={output}", ranks=2), 2, output)

    def test_damaged_checkpoint(self):
        checkpoint = next((harness.ROOT / "run/checkpoints").glob("*.h5"))
        copy = harness.ROOT / "half.h5"
        copy.write_bytes(checkpoint.read_bytes()[:-1000])
        job = harness.ROOT / "judge.toml"
        job.write_text(harness.EVALUATE.format(checkpoint="half.h5"))
        self.fails(clt("evaluate", job), 2, "half.h5")
        self.assertFalse((harness.ROOT / "judged").exists())

    def on_a_full_disk(self, *settings):
        """Trains on 300 kB; prints what is left. A private mount namespace: the file system is gone with the process."""
        disk = harness.ROOT / "disk"
        disk.mkdir(exist_ok=True)
        script = ('mount -t tmpfs -o size=300k none "$1" && "$2" train "$3" --set job.output="$1"/run "${@:4}"; code=$?; '
                  'ls "$1"/run/checkpoints; wc -l < "$1"/run/metrics.jsonl; exit $code')
        command = ["unshare", "--mount", "bash", "-c", script, "_", disk, harness.CLT, harness.ROOT / "run.toml", *settings]
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
            self.skipTest("mounting needs root")
        environment = dict(os.environ, OMPI_MCA_ess_singleton_isolated="1")
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=harness.TIMEOUT_S)

    def test_full_disk(self):
        # Training goes on, but its last state must find room.
        for how in ("true", "false"):
            done = self.on_a_full_disk("--set", "checkpoint.interval=2", "--set", f"checkpoint.asynchronous={how}")
            self.fails(done, 2, "bytes are needed", "are missing")
            self.assertIn("training goes on until the next checkpoint", done.stderr)
            self.assertEqual(done.stdout.split(), ["4"])  # no checkpoint, no temporary file; every step is recorded

    def test_full_disk_stops(self):
        done = self.on_a_full_disk("--set", "checkpoint.on_full=stop")
        self.fails(done, 2, "no room for a checkpoint", "are missing")
        self.assertNotIn("step 1/4", done.stderr)  # before the first step

    def test_killed_rank(self):
        job = train_job("killed", text=harness.TRAIN.replace("steps = 4", "steps = 300") + "[checkpoint]\ninterval = 10\n")
        with subprocess.Popen(["mpirun", "-n", "2", harness.CLT, "train", job], stderr=subprocess.DEVNULL) as mpirun:
            metrics = harness.ROOT / "killed/metrics.jsonl"
            deadline = time.monotonic() + harness.TIMEOUT_S
            while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 20):
                self.assertLess(time.monotonic(), deadline)
                self.assertIsNone(mpirun.poll())
                time.sleep(0.02)
            children = Path(f"/proc/{mpirun.pid}/task/{mpirun.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
            self.assertNotEqual(mpirun.wait(timeout=harness.TIMEOUT_S), 0)
        done = clt("train", job, "--resume", ranks=2)
        self.assertEqual(done.returncode, 0, done.stderr)
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        self.assertEqual(steps, list(range(1, 301)))
        self.assertEqual(list((harness.ROOT / "killed/checkpoints").glob("*tmp*")), [])


if __name__ == "__main__":
    harness.main()
