#!/usr/bin/python3
"""Activation data sets that are not what they seem: one sentence that names the file, the array and the cure, on one
and on several ranks. usage: data_test.py CLT   (Debian's python3, for h5py)"""
import json
import os
import resource
import shutil
import subprocess

import h5py
import numpy

import harness
from harness import clt, train_job

setUpModule = harness.set_up


class Data(harness.Case):
    def refused(self, folder, *words, job="train.toml"):
        """Training says the words on one and on two ranks, and inspect does, and nothing is written."""
        for ranks in (1, 2):
            self.fails(clt("train", folder / job, ranks=ranks, cwd=folder), 2, *words)
        self.fails(clt("inspect", "data", cwd=folder), 2, *words)
        self.assertEqual(list(folder.rglob("out/checkpoints/*")), [])

    def test_unwritten_chunks(self):
        self.refused(harness.case("01-unwritten-chunks-hang"), "chunk_0.hdf5", "layer_0/inputs: 2 of 4 HDF5 chunks were never written")

    def test_unwritten_without_fill_value(self):
        self.refused(harness.case("02-unwritten-no-fill-other-data"), "chunk_0.hdf5", "layer_1/targets: 4 of 4 HDF5 chunks were never")

    def test_newer_file_format(self):
        self.refused(harness.case("04-crosslayer-coding-gzip-hdf5-2.0"), "chunk_0.hdf5", "HDF5 2.0", 'libver="v110"')

    def test_missing_filter(self):
        self.refused(harness.case("16-lzf-filter-message"), "chunk_0.hdf5", "layer_0/inputs", "lzf (32000)", "gzip")

    def test_beyond_float16(self):
        folder = harness.case("05-float16-overflow-written-as-inf")
        for ranks in (1, 2):
            self.fails(clt("generate", "generate.toml", ranks=ranks, cwd=folder), 2, "at layer 1", "beyond float16 (65504)", '"bfloat16" or "float32"')
            self.assertEqual(list((folder / "out").glob("chunk_*")), [])
        self.succeeds(clt("generate", "generate.toml", "--set", "data.dtype=bfloat16", cwd=folder))
        self.succeeds(clt("inspect", "--verify", "out", cwd=folder))

    def test_storage_in_other_layouts(self):
        """Each array of a set in turn is replaced by one of another layout, not wholly there."""
        whole = harness.ROOT / "data"
        with h5py.File(whole / "chunk_0.hdf5") as file:
            content = file["layer_1/targets"][:]
        other = harness.ROOT / "layouts"

        def set_with(create):
            shutil.rmtree(other, ignore_errors=True)
            shutil.copytree(whole, other)
            with h5py.File(other / "chunk_0.hdf5", "r+") as file:
                del file["layer_1/targets"]
                create(file, "layer_1/targets")

        def contiguous_unwritten(file, name):
            file.create_dataset(name, content.shape, content.dtype)

        def gzip_half(file, name):
            array = file.create_dataset(name, content.shape, content.dtype, chunks=(256, content.shape[1]), compression="gzip")
            array[:256] = content[:256]

        def external(file, name, length=content.nbytes):
            (other / "raw").write_bytes(content.tobytes()[:length])
            file.create_dataset(name, content.shape, content.dtype, external=[(str(other / "raw"), 0, content.nbytes)])

        def external_cut(file, name):
            external(file, name, content.nbytes // 2)

        def external_missing(file, name):
            external(file, name)
            (other / "raw").unlink()

        def virtual(file, name, rows=len(content)):
            with h5py.File(other / "source.h5", "w") as source:
                source["rows"] = content[:rows]
            layout = h5py.VirtualLayout(content.shape, content.dtype)
            layout[:] = h5py.VirtualSource("source.h5", "rows", content.shape)
            file.create_virtual_dataset(name, layout)

        def virtual_cut(file, name):
            virtual(file, name, len(content) // 2)

        def virtual_missing(file, name):
            virtual(file, name)
            (other / "source.h5").unlink()

        def virtual_half_mapped(file, name):
            with h5py.File(other / "source.h5", "w") as source:
                source["rows"] = content
            layout = h5py.VirtualLayout(content.shape, content.dtype)
            layout[:100] = h5py.VirtualSource("source.h5", "rows", content.shape)[:100]
            file.create_virtual_dataset(name, layout)

        for create, words in (
            (contiguous_unwritten, ["was never written"]),
            (gzip_half, ["HDF5 chunks were never written"]),
            (external_cut, ["raw", "it is cut"]),
            (external_missing, ["raw", "missing"]),
            (virtual_cut, ["source.h5", "needs"]),
            (virtual_missing, ["source.h5", "missing"]),
            (virtual_half_mapped, ["come from no file"]),
        ):
            set_with(create)
            for ranks in (1, 2):
                with self.subTest(create.__name__, ranks=ranks):
                    self.fails(clt("train", train_job("layouts_run", "layouts"), ranks=ranks), 2, "chunk_0.hdf5", "layer_1/targets", *words)
        curves = []
        for create in (None, external, virtual):
            if create is not None:
                set_with(create)
            for ranks in (1, 2):
                with self.subTest(create, ranks=ranks):
                    shutil.rmtree(harness.ROOT / "layouts_run", ignore_errors=True)
                    self.succeeds(clt("train", train_job("layouts_run", "layouts" if create else "data"), ranks=ranks))
                    lines = (harness.ROOT / "layouts_run/metrics.jsonl").read_text().splitlines()
                    curves.append([json.loads(line)["loss"] for line in lines])
        self.assertEqual(curves[0], curves[2])
        self.assertEqual(curves[0], curves[4])
        self.assertEqual(curves[1], curves[3])
        self.assertEqual(curves[1], curves[5])

    def test_flipped_bit(self):
        folder = self.damaged_data("flipped")
        chunk = folder / "chunk_0.hdf5"
        with h5py.File(chunk) as file:
            at = file["layer_2/targets"].id.get_chunk_info(0).byte_offset
        with open(chunk, "r+b") as file:
            file.seek(at + 12345)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        words = ["chunk_0.hdf5", "layer_2", "targets", "does not match its checksum"]
        for ranks in (1, 2):
            self.fails(clt("train", train_job(f"flipped_run{ranks}", "flipped"), ranks=ranks), 2, *words)
            self.fails(clt("inspect", "--verify", "flipped", ranks=ranks, cwd=harness.ROOT), 2, *words)
            self.succeeds(clt("train", train_job(f"unverified{ranks}", "flipped"), "--set", "data.verify=off", ranks=ranks))

    def test_a_set_made_again_or_moved_goes_on(self):
        again = harness.ROOT / "again"
        self.succeeds(clt("generate", harness.SOURCE / "jobs/generate-tiny.toml", "--set", f"job.output={again}",
                          "--set", "data.target_tokens=4096"))
        longer = train_job("moved", "again", harness.TRAIN.replace("steps = 4", "steps = 8"))
        self.succeeds(clt("train", longer, "--set", "schedule.steps=8"))
        stats = json.loads((again / "norm_stats.json").read_text())
        stats["0"]["inputs"]["mean"][0] += 1
        (again / "norm_stats.json").write_text(json.dumps(stats))
        self.fails(clt("train", longer, "--resume"), 2, "norm_stats.json", "checksum")
        metadata = json.loads((again / "metadata.json").read_text())
        del metadata["checksums"]
        (again / "metadata.json").write_text(json.dumps(metadata))
        self.fails(clt("train", longer, "--resume"), 2, "another data set")

    def test_full_disk_while_compressing(self):
        job = harness.SOURCE / "jobs/generate-tiny.toml"
        arguments = ["generate", job, "--set", "data.compression=gzip", "--set", "data.target_tokens=4096"]
        for ranks in (1, 2):
            disk = harness.ROOT / f"disk{ranks}"
            disk.mkdir()
            words, environment = harness.command(*arguments, "--set", f"job.output={disk}/set", ranks=ranks)
            script = 'mount -t tmpfs -o size=3m none "$0" && "$@"; code=$?; ls "$0"/set; exit $code'
            if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
                self.skipTest("mounting needs root")
            done = subprocess.run(["unshare", "--mount", "bash", "-c", script, disk, *words], capture_output=True, text=True,
                                  env=environment, timeout=harness.TIMEOUT_S)
            self.fails(done, 2, "chunk_0.hdf5", "No space left on device")
            self.assertNotIn("chunk_0", done.stdout)

    def test_limit_of_file_size(self):
        job = harness.SOURCE / "jobs/generate-tiny.toml"

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

        for compression in ("none", "gzip"):
            out = harness.ROOT / f"limited_{compression}"
            done = clt("generate", job, "--set", f"data.compression={compression}", "--set", "data.target_tokens=4096",
                       "--set", f"job.output={out}", preexec_fn=limit)
            self.fails(done, 2, "chunk_0.hdf5", "File too large")
            self.assertEqual(list(out.glob("chunk_*")), [])

    def test_reference_without_negative_values(self):
        source = harness.SOURCE / "tests/golden/datasets/bfloat16/tiny/synthetic_train"
        shutil.copytree(source, harness.ROOT / "clipped")
        for ranks in (1, 2):
            self.fails(clt("train", train_job("clipped_run", "clipped"), ranks=ranks), 2, "clipped", "no bfloat16 value is negative", "float32")

    def test_reference_still_reads_it(self):
        with h5py.File(harness.ROOT / "data/chunk_0.hdf5") as file:
            array = file["layer_0/inputs"]
            self.assertRegex(array.attrs["clt_checksum"].decode(), "^[0-9a-f]{16}$")
            self.assertTrue(numpy.isfinite(array[:].astype(numpy.float32)).all())


if __name__ == "__main__":
    harness.main()
