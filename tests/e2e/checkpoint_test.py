"""Checkpoints from the command line: damage is named and passed over, older formats go on, and one stands alone on another machine."""
import json
import math
import shutil

import h5py

import harness
from harness import clt, train_job

setUpModule = harness.set_up

GOLDEN = harness.SOURCE / "tests/golden/checkpoints"
GOLDEN_DATA = harness.SOURCE / "tests/golden/datasets/float32/tiny/synthetic_train"


def flip_byte(path, array, value=1):
    """In the middle of an array of a checkpoint."""
    with h5py.File(path, "r") as file:
        offset = file[array].id.get_offset() + file[array].id.get_storage_size() // 2
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ value]))


def poison(path, array):
    """Makes a number of format 1 infinite and its checksum right, as a diverged run left it: the sum is over mix(place, bits)."""
    mask = (1 << 64) - 1

    def mix(place, bits):
        x = (bits + place * 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    with h5py.File(path, "r+") as file:
        sums = json.loads(file.attrs["checksums"])
        values = file[array][:]
        before = int(values.reshape(-1)[5:6].view("uint32")[0])
        values.reshape(-1)[5] = math.inf
        file[array][:] = values
        total = int(sums[array], 16) - mix(5, before) + mix(5, 0x7F800000)
        sums[array] = f"{total & mask:016x}"
        text = json.dumps(sums, separators=(",", ":"))
        del file.attrs["checksums"]
        file.attrs.create("checksums", text, dtype=h5py.string_dtype("utf-8", len(text) + 1))


class Checkpoints(harness.Case):
    def setUp(self):
        self.root = harness.ROOT

    def records(self, name):
        return [json.loads(line) for line in (self.root / name / "metrics.jsonl").read_text().splitlines()]

    def run_with_two(self, name):
        """A run stopped at step 2 of 4 would look like this: checkpoints of steps 1 and 2."""
        job = train_job(name, text=harness.TRAIN + "[checkpoint]\ninterval = 1\nkeep_best = false\n")
        self.succeeds(clt("train", job, "--set", "schedule.steps=2", "--set", "schedule.horizon=4"))
        return job

    def judge(self, name, checkpoint, data, *options, ranks=1):
        job = self.root / f"{name}.toml"
        job.write_text(harness.EVALUATE.format(checkpoint=checkpoint).replace('output = "judged"', f'output = "{name}"')
                       .replace('path = "data"', f'path = "{data}"'))
        done = clt("evaluate", job, *options, ranks=ranks)
        results = self.root / name / "results.json"
        return done, json.loads(results.read_text()) if done.returncode == 0 else None

    def test_damage_in_an_array_is_passed_over(self):
        """Case 21: the newest checkpoint has one flipped byte in an array."""
        job = self.run_with_two("torn")
        newest = self.root / "torn/checkpoints/step_2.h5"
        flip_byte(newest, "moment1/decoder/layer_1/weight")
        for ranks in (1, 2):
            folder = self.root / f"torn_{ranks}"
            shutil.copytree(self.root / "torn", folder)
            done = clt("train", job, "--set", f"job.output={folder}", "--set", "schedule.horizon=4", "--resume",
                       ranks=ranks)
            self.succeeds(done)
            self.assertIn("step_2.h5: array moment1/decoder/layer_1/weight, rows 0 to 95, does not match its checksum",
                          done.stderr)
            self.assertIn("resuming at step 1", done.stderr)
            self.assertEqual([r["step"] for r in self.records(folder.name)], [1, 2, 3, 4])
        self.fails(clt("inspect", newest, "--verify"), 2, "array moment1/decoder/layer_1/weight, rows 0 to 95")

    def test_nothing_whole_is_an_error(self):
        job = self.run_with_two("lost")
        for step in (1, 2):
            flip_byte(self.root / f"lost/checkpoints/step_{step}.h5", "value/decoder/layer_0/weight")
        before = (self.root / "lost/metrics.jsonl").read_bytes()
        done = clt("train", job, "--set", "schedule.horizon=4", "--resume")
        self.fails(done, 2, "none of the checkpoints", "step 2, 1")
        self.assertEqual((self.root / "lost/metrics.jsonl").read_bytes(), before)

    def test_a_checkpoint_stands_alone(self):
        """Done-when 4 and fault 25: on another machine, with another data set or other statistics."""
        self.succeeds(clt("train", train_job("home")))
        away = self.root / "away"
        away.mkdir()
        shutil.copy(self.root / "home/checkpoints/step_4.h5", away)
        shutil.copytree(self.root / "data", self.root / "moved")
        _, expected = self.judge("judged_home", self.root / "home/checkpoints", "data")
        stats = self.root / "moved/norm_stats.json"
        numbers = json.loads(stats.read_text())
        for layer in numbers.values():
            for side in layer.values():
                side["mean"] = [x + 1 for x in side["mean"]]
                side["std"] = [3 * x for x in side["std"]]
        stats.write_text(json.dumps(numbers))
        metadata = self.root / "moved/metadata.json"
        content = json.loads(metadata.read_text())
        content.pop("checksums", None)  # another set, not a damaged one
        metadata.write_text(json.dumps(content))
        for ranks in (1, 2):
            done, judged = self.judge(f"judged_away_{ranks}", away / "step_4.h5", "moved", ranks=ranks)
            self.succeeds(done)
            self.assertEqual(judged["normalization"], "mean_std")
            self.assertLessEqual(abs(judged["nmse"] - expected["nmse"]), 1e-5 * expected["nmse"])
        stats.unlink()
        done, judged = self.judge("judged_bare", away / "step_4.h5", "moved")
        self.succeeds(done)
        self.assertEqual(judged["nmse"], expected["nmse"])

    def test_not_finite_numbers_are_refused(self):
        """A checkpoint that an older clt wrote of a diverged run."""
        path = self.root / "diverged.h5"
        shutil.copy(GOLDEN / "format_1/checkpoints/step_2.h5", path)
        poison(path, "value/decoder/layer_0/weight")
        done, _ = self.judge("judged_diverged", path, GOLDEN_DATA)
        self.fails(done, 2, "array value/decoder/layer_0/weight is NaN or infinite in row 0, column 5")

    def test_golden_formats(self):
        """Files of both formats load, are whole, evaluate and go on as they did when they were written."""
        then = [json.loads(line) for line in (GOLDEN / "format_1/metrics.jsonl").read_text().splitlines()]
        shutil.copytree(GOLDEN_DATA, self.root / "golden_data")
        for form in (1, 2):
            folder = self.root / f"golden_{form}"
            shutil.copytree(GOLDEN / f"format_{form}", folder)
            checkpoint = folder / "checkpoints/step_2.h5"
            done = self.succeeds(clt("inspect", checkpoint, "--verify"))
            self.assertIn(f"(format {form})", done.stdout)
            done, judged = self.judge(f"golden_judged_{form}", checkpoint, "golden_data")
            self.succeeds(done)
            self.assertNotIn("another data set", done.stderr)
            self.assertLessEqual(abs(judged["nmse"] - 1.034302449899601), 1e-5)
            job = self.root / f"golden_{form}.toml"
            job.write_text((GOLDEN / "train.toml").read_text().replace('"run"', f'"{folder}"')
                           .replace('"data"', '"golden_data"'))
            for ranks in (2, 1):
                copy = self.root / f"golden_{form}_{ranks}"
                shutil.copytree(folder, copy)
                done = clt("train", job, "--set", f"job.output={copy}", "--resume", ranks=ranks)
                self.succeeds(done)
                now = self.records(copy.name)
                self.assertEqual([r["step"] for r in now], [1, 2, 3, 4])
                for old, new in zip(then[2:], now[2:]):  # float32 sums in another order
                    self.assertLessEqual(abs(old["loss"] - new["loss"]), 1e-5 * old["loss"])


if __name__ == "__main__":
    harness.main()
