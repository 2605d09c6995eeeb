#!/usr/bin/python3
"""Numbers that cannot be: a run that diverges ends in words and keeps no broken state, settings beyond what can be
counted or stored are refused, and `plan` tells the truth of a file's size. usage: numerics_test.py CLT"""
import json

import h5py
import numpy

import harness
from harness import clt, train_job

setUpModule = harness.set_up


def checkpoints(name):
    return sorted(path.name for path in (harness.ROOT / name / "checkpoints").glob("*.h5"))


def numbers_of(path):
    """Every float array of a checkpoint."""
    arrays = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    return [array for array in arrays if array.dtype.kind == "f"]


class Divergence(harness.Case):
    def test_thresholds_that_leave_float32_end_the_run(self):
        for ranks in (1, 2):
            name = f"jumprelu{ranks}"
            job = train_job(name)
            done = clt("train", job, "--set", "model.activation=jumprelu", "--set", "optimizer.learning_rate=30",
                       "--set", "schedule.steps=12", "--set", "checkpoint.interval=1", ranks=ranks)
            self.fails(done, 2, "not finite", "thresholds of layer 0", "its update", "checkpoints stay")
            for kept in checkpoints(name):
                for array in numbers_of(harness.ROOT / name / "checkpoints" / kept):
                    self.assertTrue(numpy.isfinite(array).all())
            self.assertFalse((harness.ROOT / name / "results.json").exists())

    def test_a_learning_rate_that_overflows(self):
        job = train_job("overflow")
        done = clt("train", job, "--set", "optimizer.learning_rate=1e36", "--set", "optimizer.weight_decay=0",
                   "--set", "optimizer.beta1=0", "--set", "checkpoint.interval=1", "--set", "schedule.steps=20")
        self.fails(done, 2, "not finite", "checkpoints stay")
        record = json.loads((harness.ROOT / "overflow/metrics.jsonl").read_text().splitlines()[-1])
        self.assertFalse(record["finite"])
        self.assertIn("layer", record["not_finite"])


class Bounds(harness.Case):
    def refused(self, key, value, *words):
        name = "bounds"
        job = train_job(name)
        self.fails(clt("train", job, "--set", f"{key}={value}"), 2, *words)
        self.assertFalse((harness.ROOT / name).exists())

    def test_k(self):
        layers = json.loads((harness.ROOT / "data/metadata.json").read_text())["num_layers"]
        for k in ("100000", "1e17", "1e300"):
            self.refused("model.k", k, "[model] k", f"at most {layers * 96}")
        self.refused("model.k", "0.003", "[model] k", "no entry")  # of 256 tokens

    def test_holdout(self):
        self.refused("data.holdout_fraction", "1e-9", "holdout_fraction = 1e-09", "no token")

    def test_float32(self):
        self.refused("optimizer.epsilon", "1e-46", "optimizer.epsilon", "1e-37")
        self.refused("optimizer.weight_decay", "1e300", "optimizer.weight_decay", "1e+37")


class Plan(harness.Case):
    def test_sizes_beyond_counting(self):
        for option in ("--layers", "--d-model"):
            other = "--d-model" if option == "--layers" else "--layers"
            for number in (2**63 - 1, 2**63, 10**9):
                self.fails(clt("plan", train_job("plan"), option, number, other, 8), 2)
        self.fails(clt("plan", train_job("plan"), "--host-gb", "1e300"), 2, "host-gb")

    def test_a_checkpoint_on_disk(self):
        # Small arrays, and arrays that HDF5 aligns.
        for features, activation in ((96, "batchtopk"), (3000, "jumprelu")):
            name = f"size_{features}"
            settings = ["--set", f"model.features={features}", "--set", f"model.activation={activation}"]
            job = train_job(name)
            planned = self.succeeds(clt("plan", job, *settings)).stdout
            planned = float(next(line for line in planned.splitlines() if "a checkpoint on disk" in line).split()[-1])
            self.succeeds(clt("train", job, *settings))
            size = (harness.ROOT / name / "checkpoints/step_4.h5").stat().st_size / 1e6
            self.assertLess(abs(planned - size), max(0.01 * size, 0.06), f"{planned} MB planned, {size} MB written")


if __name__ == "__main__":
    harness.main()
