"""How runs go on, from the command line: what may change, which step, forks, and what refuses before it touches a file."""
import json
import os
import shutil

import h5py

import harness
from harness import clt, train_job

setUpModule = harness.set_up


def files(name):
    """Every file below ROOT/name with its content."""
    folder = harness.ROOT / name
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def losses(name):
    lines = (harness.ROOT / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def changed(name, **settings):
    """--set arguments for the job ROOT/name.toml."""
    words = [harness.ROOT / f"{name}.toml"]
    for key, value in settings.items():
        words += ["--set", f"{key.replace('__', '.')}={value}"]
    return words


class Resume(harness.Case):
    def copy_run(self, name):
        """ROOT/name, a copy of the finished run of 4 steps with its job."""
        shutil.copytree(harness.ROOT / "run", harness.ROOT / name)
        train_job(name)

    def test_finished_run_goes_on(self):
        self.copy_run("longer")
        done = self.succeeds(clt("train", *changed("longer", schedule__steps=8), "--resume"))
        self.assertIn("schedule.steps (8, was 4)", done.stderr)
        self.assertIn("from step 5 on, learning rate and sparsity have the shape of 8 steps", done.stderr)
        self.assertEqual(losses("longer")[:4], losses("run"))
        self.assertEqual(len(losses("longer")), 8)
        self.assertEqual(json.loads((harness.ROOT / "longer/results.json").read_text())["steps"], 8)
        # Now it is complete, and says so.
        done = self.succeeds(clt("train", *changed("longer", schedule__steps=8), "--resume"))
        self.assertIn("is complete: 8 steps are done", done.stderr)
        self.fails(clt("train", *changed("longer", schedule__steps=6), "--resume"), 2, "schedule.steps = 6", "has done 8")

    def test_pinned_schedule_is_that_of_a_longer_run(self):
        constant = harness.TRAIN.replace("steps = 4", "steps = 8\nhorizon = 8")
        self.succeeds(clt("train", train_job("straight", text=constant)))
        job = train_job("pinned", text=constant)
        self.succeeds(clt("train", job, "--set", "schedule.steps=3"))
        self.succeeds(clt("train", job, "--resume"))
        self.assertEqual(losses("pinned"), losses("straight"))

    def test_what_may_change_and_what_not(self):
        self.copy_run("changes")
        before = files("changes")
        for key, value, words in (
            ("optimizer__learning_rate", "1e-4", ("optimizer.learning_rate (0.0001, was 0.001)",)),
            ("job__precision", "float32", ("job.precision ('float32', was 'auto')",)),
            ("job__seed", 7, ("job.seed (7, was 42)",)),
            ("data__batch_tokens", 128, ("data.batch_tokens (128, was 256)",)),
            ("schedule__kind", "cosine", ("schedule.kind ('cosine', was 'linear')",)),
        ):
            for ranks in (1, 2):
                self.fails(clt("train", *changed("changes", **{key: value}), "--resume", ranks=ranks), 2, *words)
        self.assertEqual(files("changes"), before)
        # The data set moved; logging, evaluation and checkpoints are other ones.
        shutil.copytree(harness.ROOT / "data", harness.ROOT / "moved")
        job = changed("changes", schedule__steps=6, data__path=harness.ROOT / "moved", log__interval=2, log__dead_window=3,
                      evaluation__interval=5, evaluation__tokens=100, checkpoint__interval=1, checkpoint__keep=2,
                      checkpoint__keep_best="false")
        self.succeeds(clt("train", *job, "--resume", ranks=2))

    def test_another_data_set_is_refused_before_a_file_changes(self):
        self.copy_run("other_data")
        self.succeeds(clt("generate", harness.SOURCE / "jobs/generate-tiny.toml", "--set", f"job.output={harness.ROOT}/other",
                          "--set", "data.target_tokens=4000"))
        before = files("other_data")
        done = clt("train", *changed("other_data", data__path=harness.ROOT / "other", schedule__steps=8), "--resume")
        self.fails(done, 2, "other", "another data set")
        self.assertEqual(files("other_data"), before)

    def test_step_to_go_back_to(self):
        self.succeeds(clt("train", train_job("back"), "--set", "checkpoint.interval=1", "--set", "checkpoint.keep=9"))
        job = changed("back", checkpoint__keep=9)
        self.fails(clt("train", *job, "--resume-step", "7"), 2, "--resume-step 7", "4, 3, 2, 1")
        self.fails(clt("train", *job, "--resume-step", "two"), 2, "--resume-step two")
        metrics = (harness.ROOT / "back/metrics.jsonl").read_bytes()
        done = self.succeeds(clt("train", *job, "--resume-step", "2", ranks=2))
        self.assertIn("superseded-1", done.stderr)
        aside = harness.ROOT / "back/checkpoints/superseded-1"
        self.assertEqual({path.name for path in aside.iterdir()}, {"step_3.h5", "step_4.h5", "metrics.jsonl", "results.json"})
        self.assertEqual((aside / "metrics.jsonl").read_bytes(), metrics)
        self.assertEqual(len(losses("back")), 4)

    def test_fork_on_other_data_with_other_settings(self):
        self.succeeds(clt("generate", harness.SOURCE / "jobs/generate-tiny.toml", "--set", f"job.output={harness.ROOT}/fine",
                          "--set", "data.target_tokens=3000"))
        before = files("run")
        job = train_job("tuned", "fine")
        settings = ("--set", "model.k=8", "--set", "optimizer.learning_rate=1e-4", "--set", "schedule.steps=2")
        self.succeeds(clt("train", job, "--fork", harness.ROOT / "run", *settings))
        self.assertEqual(files("run"), before)
        results = json.loads((harness.ROOT / "tuned/results.json").read_text())
        self.assertEqual(results["fork"]["checkpoint"], str(harness.ROOT / "run/checkpoints/step_4.h5"))
        self.assertEqual(results["fork"]["step"], 4)
        # It is a run of its own.
        shutil.move(harness.ROOT / "fine", harness.ROOT / "fine2")
        self.succeeds(clt("train", job, "--resume", *settings, "--set", f"data.path={harness.ROOT}/fine2",
                          "--set", "schedule.steps=3"))
        with h5py.File(harness.ROOT / "tuned/checkpoints/step_3.h5") as file:
            extra = file.attrs["extra"]
        self.assertEqual(json.loads(extra)["fork"], results["fork"])

    def test_wrong_arguments(self):
        job = train_job("arguments")
        self.fails(clt("train", job, "--fork", "run", "--resume-step", "4"), 2, "--fork", "--resume-step")
        self.fails(clt("train", job, "--fresh-optimizer"), 2, "--fresh-optimizer", "--fork")
        self.fails(clt("train", job, "--fork="), 2, "--fork", "expected")
        self.fails(clt("train", job, "--fork", harness.ROOT / "nowhere"), 2, "nowhere")
        self.fails(clt("train", job, "--fork", harness.ROOT / "data"), 2, "--fork", "no whole checkpoint")
        self.fails(clt("train", job, "--fork", harness.ROOT / "run", "--set", "model.features=64"), 2, "model.features (64, was 96)")
        self.assertFalse((harness.ROOT / "arguments").exists())

    def test_files_that_are_no_job(self):
        root = harness.ROOT
        (root / "large.toml").write_text("# " + "x" * (2 << 20))
        (root / "points.toml").write_text("a." * 100_000 + "a = 1")
        (root / "binary.toml").write_bytes((root / "run/checkpoints/step_4.h5").read_bytes()[:4096])
        for name, words in (
            ("data", ("irectory",)),
            ("large.toml", ("at most 1048576",)),
            ("points.toml", ("points",)),
            ("binary.toml", ("an HDF5 file",)),
        ):
            self.fails(clt("train", root / name), 2, root / name, *words)
        self.fails(clt("train", root / "large.toml", ranks=2), 2, "at most")
        done = clt("train", train_job("latin1"), "--set", os.fsdecode(b"job.output=caf\xe9"), cwd=root)
        self.fails(done, 2, "job.output", "is not UTF-8")

    def test_evaluation_data_is_opened_at_the_start(self):
        for name, setting, words in (
            ("no_set", "data.evaluation_path=nowhere", ("nowhere",)),
            ("no_rows", "data.holdout_fraction=1e-9", ("holdout_fraction", "holds out no token")),
        ):
            done = clt("train", train_job(name, text=harness.TRAIN.replace("holdout_fraction = 0.1\n", "")), "--set", setting)
            self.fails(done, 2, *words)
            self.assertFalse((harness.ROOT / name).exists())


if __name__ == "__main__":
    harness.main()
