#!/usr/bin/python3
"""Signals, logs that cannot be written, odd paths, two jobs in one folder, stuck ranks: a run keeps its state and says so.
usage: process_test.py CLT   (Debian's python3)"""
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import unittest
import unittest.mock
from pathlib import Path

import harness
from harness import clt, train_job

STOPPED = 85
LONG = harness.TRAIN.replace("steps = 4", "steps = 100000") + "[checkpoint]\ninterval = 0\n"


def setUpModule():
    harness.set_up()


def losses(name):
    return [json.loads(line)["loss"] for line in (harness.ROOT / name / "metrics.jsonl").read_text().splitlines()]


def wait_for(condition, what):
    deadline = time.monotonic() + harness.TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain: {what}")
        time.sleep(0.01)


def start(*arguments, ranks=1, **options):
    words, environment = harness.command(*arguments, ranks=ranks)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment} | options
    return subprocess.Popen(words, **options)


def finished(process):
    """As of subprocess.run."""
    try:
        out, err = process.communicate(timeout=harness.TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def ranks_of(mpirun):
    """The process ids of its ranks, in any order."""
    return [int(pid) for pid in subprocess.run(["pgrep", "-P", str(mpirun.pid)], capture_output=True, text=True).stdout.split()]


STOP_SIGNALS = sum(1 << (number - 1) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))


def waits_for_signals(pid):
    """The process has come to the first line of main: it blocks the signals, for its waiting thread."""
    return blocks(f"/proc/{pid}/status")


def blocks(status):
    try:
        line = next(line for line in Path(status).read_text().splitlines() if line.startswith("SigBlk"))
    except OSError:
        return False  # it has just ended
    return int(line.split()[1], 16) & STOP_SIGNALS == STOP_SIGNALS


class Signals(harness.Case):
    def training(self, name, ranks=1, **options):
        """A run of many steps that has logged some, and the metrics file."""
        process = start("train", train_job(name, text=LONG), ranks=ranks, **options)
        metrics = harness.ROOT / name / "metrics.jsonl"
        wait_for(lambda: process.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") >= 3), "a step")
        self.assertIsNone(process.poll())
        return process

    def keeps_its_state(self, name):
        steps = len(losses(name))
        self.assertEqual([p.name for p in (harness.ROOT / name / "checkpoints").iterdir()], [f"step_{steps}.h5"])

    def test_each_signal_stops_a_run_in_order(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            name = f"stopped_{number}"
            process = self.training(name)
            os.kill(process.pid, number)
            done = finished(process)
            self.assertEqual(done.returncode, STOPPED, done.stderr)
            self.assertIn("stopped by a signal after step", done.stderr)
            self.keeps_its_state(name)

    def test_one_rank_is_enough(self):
        process = self.training("one_rank", ranks=2)
        os.kill(ranks_of(process)[-1], signal.SIGINT)
        self.assertEqual(finished(process).returncode, STOPPED)
        self.keeps_its_state("one_rank")

    def test_the_launchers_warning_is_enough(self):
        # mpirun sends SIGCONT at once, SIGTERM and SIGKILL one time-out later each: here too late for the test to wait for.
        with unittest.mock.patch.dict(os.environ, OMPI_MCA_odls_base_sigkill_timeout="100"):
            process = self.training("warned", ranks=2)
        process.terminate()
        wait_for(lambda: (harness.ROOT / "warned/checkpoints").exists() and any((harness.ROOT / "warned/checkpoints").glob("step_*.h5")), "a checkpoint")
        process.kill()
        finished(process)
        self.keeps_its_state("warned")

    def test_a_second_one_stops_at_once(self):
        process = self.training("second")
        process.send_signal(signal.SIGSTOP)  # both wait for it, so the work of the first cannot be done before the second
        os.kill(process.pid, signal.SIGUSR1)
        process.send_signal(signal.SIGCONT)
        while process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.01)
        self.assertEqual(finished(process).returncode, STOPPED)

    def test_from_the_first_line_on(self):
        # At any time, from when the program takes the signals to its end: 85 (or 0: it was over), never a death by it.
        for kind, job in (
            ("train", ["train", train_job("early", text=harness.TRAIN)]),
            ("generate", ["generate", harness.SOURCE / "jobs/generate-tiny.toml", "--set", "data.target_tokens=4096"]),
            ("evaluate", ["evaluate", harness.ROOT / "early_judge.toml"]),
        ):
            (harness.ROOT / "early_judge.toml").write_text(harness.EVALUATE.format(checkpoint="run/checkpoints"))
            for i, delay in enumerate((0, 0, 0.03, 0.1, 0.2)):
                process = start(*job, "--set", f"job.output={harness.ROOT}/early_{kind}_{i}")
                wait_for(lambda: process.poll() is not None or waits_for_signals(process.pid), "main")
                time.sleep(delay)  # where in its course it meets the signal is not what is asserted
                process.send_signal(signal.SIGUSR1)
                done = finished(process)
                self.assertIn(done.returncode, (STOPPED, 0) if delay > 0 else (STOPPED,), done.stderr)
                if done.returncode == STOPPED:
                    self.assertIn("stopped by a signal", done.stderr)

    def test_no_thread_takes_them(self):
        process = self.training("threads", ranks=2)
        for pid in ranks_of(process):
            # While a thread waits for signals, it does not block them.
            open_to_them = [s for s in Path(f"/proc/{pid}/task").glob("*/status") if not blocks(s)]
            self.assertEqual(len(open_to_them), 1)
        process.send_signal(signal.SIGUSR1)
        self.assertEqual(finished(process).returncode, STOPPED)

    def test_what_saves_nothing_ends_as_it_would(self):
        process = start("bench", "step", "--steps", "100000")
        wait_for(lambda: waits_for_signals(process.pid), "main")
        process.send_signal(signal.SIGINT)
        self.assertEqual(finished(process).returncode, 128 + signal.SIGINT)


class Logs(harness.Case):
    def test_stderr_that_cannot_be_written(self):
        reading, closed = os.pipe()
        os.close(reading)
        reader, full = os.pipe()
        fcntl.fcntl(full, fcntl.F_SETPIPE_SZ, 4096)
        os.write(full, b"x" * 4096)
        disk = os.open("/dev/full", os.O_WRONLY)
        for name, stream in (("closed", closed), ("standing", full), ("disk", disk)):
            for ranks in (1, 2):
                process = start("train", train_job(f"log_{name}{ranks}"), ranks=ranks, stderr=stream, stdout=stream)
                self.assertEqual(process.wait(harness.TIMEOUT_S), 0)
                self.assertTrue((harness.ROOT / f"log_{name}{ranks}/results.json").exists())
                if name == "standing" and ranks == 1:
                    break  # mpirun itself waits for its reader

    def test_closed_streams_are_not_written_into_files(self):
        words, environment = harness.command("train", train_job("no_streams"))
        done = subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "_", *words], env=environment, timeout=harness.TIMEOUT_S)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(losses("no_streams"), losses("run"))

    def test_an_answer_that_cannot_be_written(self):
        with open("/dev/full", "w") as full:
            done = finished(start("inspect", harness.ROOT / "data", stdout=full))
        self.fails(done, 2, "standard output", "space")
        (harness.ROOT / "judge.toml").write_text(harness.EVALUATE.format(checkpoint="run/checkpoints"))
        with open("/dev/full", "w") as full:
            done = finished(start("evaluate", harness.ROOT / "judge.toml", stdout=full))
        self.succeeds(done)
        self.assertIn("standard output", done.stderr)

    def test_a_full_disk_under_the_metrics(self):
        # Another folder's file: the checkpoint has room, the metrics have none.
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
            self.skipTest("mounting needs root")
        run = harness.ROOT / "full_metrics"
        run.mkdir()
        script = ('mount -t tmpfs -o size=8k none "$1/small" && ln -s small/metrics.jsonl "$1/metrics.jsonl" && shift && "$@";'
                  'code=$?; cp "$RUN/small/metrics.jsonl" "$RUN/kept.jsonl"; exit $code')
        (run / "small").mkdir()
        words, environment = harness.command("train", train_job("full_metrics", text=harness.TRAIN.replace("steps = 4", "steps = 40")))
        done = subprocess.run(["unshare", "--mount", "bash", "-c", script, "_", str(run), *words], env=environment | {"RUN": str(run)},
                              capture_output=True, text=True, timeout=harness.TIMEOUT_S)
        self.succeeds(done)
        self.assertEqual(done.stderr.count("records are lost"), 1)
        self.assertTrue((run / "checkpoints/step_40.h5").exists())
        kept = (run / "kept.jsonl").read_text()
        self.assertTrue(kept.endswith("\n"))
        for line in kept.splitlines():
            json.loads(line)

    def test_a_torn_line_is_cut_off(self):
        job = train_job("torn", text=harness.TRAIN)
        self.succeeds(clt("train", job))
        metrics = harness.ROOT / "torn/metrics.jsonl"
        text = metrics.read_text()
        metrics.write_text(text[:-20])
        self.succeeds(clt("train", job, "--resume"))
        # The last record waits in the checkpoint: it is written anew, not behind half of itself.
        self.assertEqual([json.loads(line)["step"] for line in metrics.read_text().splitlines()], [1, 2, 3, 4])


class Locks(harness.Case):
    def test_of_two_jobs_in_one_folder_one_runs(self):
        for i in range(4):
            name = f"two_{i}"
            job = train_job(name, text=harness.TRAIN.replace("steps = 4", "steps = 30"))
            done = [finished(process) for process in [start("train", job, "--resume") for _ in range(2)]]
            refused = [d for d in done if d.returncode == 2]
            self.assertLessEqual(len(refused), 1, done)
            for d in refused:  # the other may have ended before this one came
                self.fails(d, 2, name, "is in use by process", "on host", ".lock")
            self.assertIn(0, [d.returncode for d in done])
            steps = [json.loads(line)["step"] for line in (harness.ROOT / name / "metrics.jsonl").read_text().splitlines()]
            self.assertEqual(steps, list(range(1, 31)))
            self.assertFalse(list((harness.ROOT / name).glob(".lock*")))

    def test_a_data_set_being_written(self):
        job = ["generate", harness.SOURCE / "jobs/generate-tiny.toml", "--set", f"job.output={harness.ROOT}/written"]
        process = start(*job)
        wait_for(lambda: process.poll() is not None or (harness.ROOT / "written/.lock").exists(), "a lock")
        before = (harness.ROOT / "written/.lock").read_text()
        self.fails(clt(*job), 2, "written", f"is in use by process {process.pid}")
        self.assertEqual((harness.ROOT / "written/.lock").read_text(), before)
        process.send_signal(signal.SIGUSR1)
        self.assertEqual(finished(process).returncode, STOPPED)
        self.assertFalse((harness.ROOT / "written/.lock").exists())

    def test_the_lock_of_a_killed_process_is_taken_over(self):
        name = "lock_left"
        process = start("train", train_job(name, text=LONG))
        metrics = harness.ROOT / name / "metrics.jsonl"
        wait_for(lambda: process.poll() is not None or (metrics.exists() and metrics.read_text()), "a step")
        process.kill()
        finished(process)
        self.assertTrue((harness.ROOT / name / ".lock").exists())
        job = train_job(name)
        # Four at once find it: one takes it over.
        done = [finished(p) for p in [start("train", job, "--resume") for _ in range(4)]]
        takers = [d for d in done if "taken over from process" in d.stderr]
        self.assertEqual(len(takers), 1, done)
        for d in done:
            self.assertIn(d.returncode, (0, 2), d.stderr)
        self.assertEqual(takers[0].returncode, 0, takers[0].stderr)
        self.assertFalse(list((harness.ROOT / name).glob(".lock*")))

    def test_a_lock_of_another_host_counts_by_its_age(self):
        (harness.ROOT / "far").mkdir()
        lock = harness.ROOT / "far/.lock"
        lock.write_text(json.dumps({"host": "node7", "kernel": "another", "process": 123, "slurm_job": "4711", "key": "k"}))
        self.fails(clt("train", train_job("far")), 2, "process 123 on host node7 (SLURM job 4711)")
        old = time.time() - 3600
        os.utime(lock, (old, old))
        done = self.succeeds(clt("train", train_job("far")))
        self.assertIn("has given no sign of life", done.stderr)


class Paths(harness.Case):
    def test_a_colon_in_a_path(self):
        # MPI-IO takes what stands before it for the name of a file system.
        folder = harness.ROOT / "a:b"
        shutil.copytree(harness.ROOT / "data", folder / "data")
        job = harness.ROOT / "colon.toml"
        job.write_text(harness.TRAIN.format(output="a:b/run", data="a:b/data"))
        self.succeeds(clt("train", job, ranks=2))
        self.succeeds(clt("train", job, "--resume", ranks=2))
        judge = harness.ROOT / "colon_judge.toml"
        judge.write_text(harness.EVALUATE.format(checkpoint="a:b/run/checkpoints").replace('"judged"', '"a:b/judged"'))
        self.succeeds(clt("evaluate", judge, ranks=2))
        self.succeeds(clt("generate", harness.SOURCE / "jobs/generate-tiny.toml", "--set", f"job.output={folder}/made",
                          "--set", "data.target_tokens=4096", ranks=2))
        self.assertTrue((folder / "made/metadata.json").exists())


class StuckRanks(harness.Case):
    def test_a_rank_that_was_stopped(self):
        for victim in (0, 1):
            name = f"stuck_{victim}"
            process = start("train", train_job(name, text=LONG), "--set", "run.timeout_s=4", ranks=2)
            metrics = harness.ROOT / name / "metrics.jsonl"
            wait_for(lambda: process.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") >= 3), "a step")
            of_rank = {int(environment_of(pid)["OMPI_COMM_WORLD_RANK"]): pid for pid in ranks_of(process)}
            os.kill(of_rank[victim], signal.SIGSTOP)
            done = finished(process)
            self.assertEqual(done.returncode, STOPPED, done.stderr)
            self.assertIn(f"rank {victim} on host {os.uname().nodename} has not answered for", done.stderr)
            self.assertIn("step ", done.stderr)


def environment_of(pid):
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(word.decode().split("=", 1) for word in words if b"=" in word)


if __name__ == "__main__":
    harness.main()
