#!/usr/bin/python3
"""Texts, token files and model folders as people have them, on the real binary: read as the field's tools read them, or
refused with one sentence that names the cause. usage: text_test.py CLT   (Debian's python3, for h5py and numpy)"""
import gzip
import json
import os
import shutil
import struct
import subprocess

import h5py
import numpy as np

import harness
from harness import CASES, clt

setUpModule = harness.scratch

MODEL_CASE = "06-weights-changed-not-noticed"
JOB = """
[job]
kind = "generate"
output = "out"
[model]
path = "model"
[text]
files = ["text.txt"]
[data]
context_size = 64
chunk_tokens = 4096
"""


class TextCase(harness.Case):
    """Each test has a folder of its own: a model, text.txt and generate.toml."""

    def setUp(self):
        self.folder = harness.ROOT / self.id().rsplit(".", 1)[1]
        case = CASES / MODEL_CASE
        shutil.copytree(case / "model_a", self.folder / "model")
        shutil.copy(case / "text.txt", self.folder)
        (self.folder / "generate.toml").write_text(JOB)

    def generate(self, *settings, ranks=1, **options):
        words = [word for setting in settings for word in ("--set", setting)]
        return clt("generate", "generate.toml", *words, ranks=ranks, cwd=self.folder, **options)

    def generate_from(self, name, *settings, **options):
        return self.generate(f'text.files=["{name}"]', *settings, **options)

    def write(self, name, content):
        data = content if isinstance(content, bytes) else content.encode()
        (self.folder / name).write_bytes(data)
        return name

    def rows(self, output="out"):
        with h5py.File(self.folder / output / "chunk_0.hdf5") as chunk:
            return chunk["layer_0/inputs"][:]

    def refuses(self, name, content, *words, settings=()):
        """A text file of this content is refused, and nothing is written."""
        self.write(name, content)
        done = self.generate_from(name, "job.output=refused", *settings)
        self.fails(done, 2, name, *words)
        self.assertFalse(list(self.folder.glob("refused/chunk_*")))

    def edit_config(self, **keys):
        path = self.folder / "model/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))


class Provenance(TextCase):
    def test_changed_weights(self):
        self.succeeds(self.generate())
        shutil.copy(CASES / MODEL_CASE / "model_b/model.safetensors", self.folder / "model")
        for ranks in (1, 2):
            self.fails(self.generate(ranks=ranks), 2, 'weights "model.safetensors" content')

    def test_edited_text_of_the_same_size(self):
        self.succeeds(self.generate())
        text = (self.folder / "text.txt").read_bytes()
        os.utime(self.folder / "text.txt")
        self.assertIn("is complete", self.succeeds(self.generate()).stderr)
        self.write("text.txt", text[:-5] + b"tales")
        self.fails(self.generate(), 2, 'text_files "text.txt" content')

    def test_only_what_the_activations_depend_on(self):
        self.succeeds(self.generate())
        self.edit_config(transformers_version="99", use_cache=False, torch_dtype="bfloat16")
        self.assertIn("is complete", self.succeeds(self.generate()).stderr)
        self.edit_config(layer_norm_epsilon=1e-3)
        self.fails(self.generate(), 2, "model_config norm_epsilon")

    def test_data_of_a_clt_without_fingerprints(self):
        self.succeeds(self.generate())
        metadata = self.folder / "out/metadata.json"
        kept = json.loads(metadata.read_text())
        del kept["weights"]
        metadata.write_text(json.dumps(kept))
        self.fails(self.generate(), 2, "older clt", "weights")


class Encodings(TextCase):
    def setUp(self):
        super().setUp()
        for name in ("latin1.txt", "utf16.txt"):
            shutil.copy(CASES / "07-text-not-utf8-silent" / name, self.folder)

    def test_text_that_is_not_utf8(self):
        self.fails(self.generate_from("latin1.txt"), 2, "latin1.txt:1: byte ", "is not UTF-8", "text.encoding")
        self.fails(self.generate_from("utf16.txt"), 2, "utf16.txt", "UTF-16", 'text.encoding = "utf-16"')
        self.fails(self.generate_from("latin1.txt", "text.encoding=klingon"), 2, "text.encoding", "klingon")
        self.assertFalse((self.folder / "out/chunk_0.hdf5").exists())

    def test_other_encodings_give_what_utf8_gives(self):
        for name, encoding in (("latin1.txt", "latin-1"), ("utf16.txt", "utf-16")):
            text = (self.folder / name).read_bytes().decode(encoding)
            self.write("plain.txt", text)
            self.succeeds(self.generate_from("plain.txt", f"job.output={name}.plain"))
            self.succeeds(self.generate_from(name, f"job.output={name}.coded", f"text.encoding={encoding}"))
            np.testing.assert_array_equal(self.rows(f"{name}.plain"), self.rows(f"{name}.coded"))

    def test_marks_and_their_absence(self):
        text = "plain words \u00e9\n"
        self.write("text.txt", text)
        self.succeeds(self.generate())
        for at, (data, encoding) in enumerate((
            (b"\xEF\xBB\xBF" + text.encode(), "utf-8"),
            (text.encode("utf-16-le"), "utf-16"),
            (text.encode("utf-16-be"), "utf-16-be"),
            (b"\xFE\xFF" + text.encode("utf-16-be"), "utf-16"),
            (text.encode("cp1252"), "cp1252"),
        )):
            self.write("coded.txt", data)
            self.succeeds(self.generate_from("coded.txt", f"job.output=o{at}", f"text.encoding={encoding}"))
            np.testing.assert_array_equal(self.rows(), self.rows(f"o{at}"), encoding)
        self.refuses("bare.txt", text.encode("utf-16-le"), "UTF-16", "text.encoding")
        self.refuses("eight.txt", text.encode(), "looks like UTF-8", settings=["text.encoding=utf-16"])

    def test_json_lines(self):
        lines = b'{"text": "one"}\n{"text": "caf\xe9"}\n'
        self.refuses("a.jsonl", lines, "a.jsonl:2: byte 29 (0xE9) is not UTF-8", "text.encoding")
        self.refuses("b.jsonl", b'{"text": "x\\ud800"}\n', "b.jsonl:1: text", "surrogate")
        self.write("a.jsonl", lines)
        self.succeeds(self.generate_from("a.jsonl", "text.encoding=latin-1"))


class FilesThatAreSomethingElse(TextCase):
    def test_what_they_are_is_said(self):
        lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
        packed = gzip.compress(b"some text " * 100)
        for name, content, *words in (
            ("a.txt", lfs, "Git LFS pointer", "git lfs pull"),
            ("b.txt", packed, "gzip data", "name it", "b.txt.gz"),
            ("c.txt.zst", packed, "not zstd data but gzip data", "name it", "c.txt.gz"),
            ("d.txt.gz", "plain text", "not gzip data but plain text", "d.txt"),
            ("e.txt.gz", packed[:30], "ends after 30 bytes", "cut"),
            ("f.txt.gz", packed + b"garbage", f"end at byte {len(packed)}", "something else follows"),
            ("g.txt", b"PAR1\x15\x04", "Parquet"),
            ("h.txt", b"PK\x03\x04abcd", "zip archive"),
            ("i.txt", "<!DOCTYPE html><html><body>404</body></html>", "web page"),
            ("j.txt", "", "empty (0 bytes)"),
            ("k.txt", bytes(5000), "zero bytes"),
            ("l.jsonl", '[{"text": "a"},\n {"text": "b"}]', "is a JSON list", "jq"),
            ("m.jsonl", '{\n "text": "a"\n}\n', "over several lines", "jq"),
            ("n.txt.incomplete", "text", "download that did not end"),
            ("o.txt.xz", b"\xFD7zXZ\0", ".xz is not read"),
            ("p.parquet", b"PAR1\x15", ".parquet is not read", ".jsonl"),
            ("q.bin", lfs, "Git LFS pointer"),
            ("r.npy", lfs, "Git LFS pointer"),
        ):
            with self.subTest(name):
                self.refuses(name, content, *words)

    def test_a_long_window_of_zstd_and_padded_gzip(self):
        shutil.copy(CASES / "13-zst-long-window/text.jsonl.zst", self.folder)
        self.succeeds(self.generate_from("text.jsonl.zst"))
        self.write("padded.txt.gz", gzip.compress(b"one ") + gzip.compress(b"two") + bytes(512))
        self.succeeds(self.generate_from("padded.txt.gz", "job.output=padded"))

    def test_pipes_and_devices_do_not_hang(self):
        os.mkfifo(self.folder / "pipe.txt")
        self.fails(self.generate_from("pipe.txt"), 2, "pipe.txt", "is a pipe")
        os.symlink("/dev/zero", self.folder / "device.txt")
        self.fails(self.generate_from("device.txt"), 2, "device.txt", "is a device")
        os.remove(self.folder / "model/config.json")
        os.mkfifo(self.folder / "model/config.json")
        self.fails(self.generate(), 2, "config.json", "is a pipe")

    def test_nan_beside_the_text(self):
        shutil.copytree(CASES / "14-python-json-nan", self.folder, dirs_exist_ok=True)
        self.succeeds(self.generate_from("text.jsonl"))
        done = clt("train", "train.toml", cwd=self.folder / "norm_stats")
        self.fails(done, 2, "norm_stats.json: layer ", "is NaN, expected a finite")


class TokenFiles(TextCase):
    def test_widths_are_told_apart(self):
        shutil.copy(CASES / "18-bin-uint32-read-as-uint16/ids.bin", self.folder)
        wide = np.fromfile(self.folder / "ids.bin", "<u4")
        self.fails(self.generate_from("ids.bin"), 2, "ids.bin: looks like uint32", 'text.token_type = "uint32"')
        self.succeeds(self.generate_from("ids.bin", "text.token_type=uint32"))
        self.refuses("a.bin", wide.astype("<u2").tobytes(), "looks like uint16", settings=["text.token_type=uint32"])
        self.refuses("b.bin", wide.astype("<u8").tobytes(), "looks like 64-bit ids")
        self.refuses("c.bin", wide.astype("<u8").tobytes(), "looks like 64-bit ids",
                     settings=["text.token_type=uint32"])
        self.refuses("d.bin", wide.astype(">u2").tobytes(), "looks like big endian", "<u2")
        self.refuses("e.bin", struct.pack("<256i", 20240520, *[0] * 255), "llm.c", "tail -c +1025")

    def test_numpy(self):
        ids = np.arange(1, 60)
        np.save(self.folder / "ids.npy", ids.astype("<u2"))
        self.succeeds(self.generate_from("ids.npy", "job.output=narrow"))
        np.save(self.folder / "ids.npy", ids)  # int64, NumPy's default
        self.succeeds(self.generate_from("ids.npy"))
        np.testing.assert_array_equal(self.rows(), self.rows("narrow"))
        for at, (array, word) in enumerate((
            (ids.astype(">u2"), ">u2"), (ids.astype("f4"), "<f4"), (np.array([[1], [2, 3]], dtype=object), "|O"),
            (-ids, "not in the model's vocabulary"), (ids + 10**6, "not in the model's vocabulary"),
            (np.asfortranarray(np.ones((3, 4), "<u2")), "column order"),
        )):
            np.save(self.folder / f"{at}.npy", array, allow_pickle=True)
            self.fails(self.generate_from(f"{at}.npy", "job.output=bad"), 2, f"{at}.npy", word)

    def test_ids_need_no_tokenizer(self):
        os.remove(self.folder / "model/tokenizer.json")
        np.save(self.folder / "ids.npy", np.arange(1, 60).astype("<u2"))
        self.succeeds(self.generate_from("ids.npy"))
        self.fails(self.generate("job.output=other"), 2, "tokenizer.json")
        for name in ("vocab.json", "merges.txt"):
            self.write(f"model/{name}", "")
        self.fails(self.generate("job.output=other"), 2, "tokenizer.json", "vocab.json and merges.txt", "save_pretrained")


class ModelFolders(TextCase):
    def tensors(self):
        data = (self.folder / "model/model.safetensors").read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        return json.loads(data[8:8 + length]), data[8 + length:]

    def save(self, header, data, name="model.safetensors"):
        text = json.dumps(header).encode()
        (self.folder / "model" / name).write_bytes(struct.pack("<Q", len(text)) + text + data)

    def same_as_before(self, *settings):
        self.succeeds(self.generate("job.output=now", *settings))
        np.testing.assert_array_equal(self.rows("now"), self.rows())

    def test_tied_tensors_under_the_other_name(self):
        self.succeeds(self.generate())
        header, data = self.tensors()
        stored = next(name for name in header if name.endswith("wte.weight"))
        header["lm_head.weight"] = header.pop(stored)
        self.save(header | {"__metadata__": {stored: "lm_head.weight"}}, data)
        self.same_as_before()
        shutil.rmtree(self.folder / "now")
        self.save(header | {"__metadata__": {"format": "pt"}}, data)
        self.same_as_before()
        shutil.copy(CASES / "08-tied-embedding-stored-as-lm_head/model.safetensors", self.folder / "model")
        self.succeeds(self.generate("job.output=case"))

    def test_prefixes_buffers_and_doubles(self):
        self.succeeds(self.generate())
        header, data = self.tensors()
        metadata = header.pop("__metadata__", {})
        renamed = {"module." + name: entry for name, entry in header.items()}
        end = len(data)
        renamed["module.transformer.h.0.attn.masked_bias"] = {"dtype": "F32", "shape": [], "data_offsets": [end, end + 4]}
        renamed["other"] = {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [end + 4, end + 8]}
        self.save(renamed | {"__metadata__": metadata}, data + bytes(8))
        self.same_as_before()
        shutil.rmtree(self.folder / "now")
        wide = {name: entry | {"dtype": "F64", "data_offsets": [2 * at for at in entry["data_offsets"]]}
                for name, entry in header.items()}
        self.assertEqual({entry["dtype"] for entry in header.values()}, {"F32"})
        self.save(wide, np.frombuffer(data, "<f4").astype("<f8").tobytes())
        self.same_as_before()

    def test_an_output_matrix_that_nobody_reads(self):
        self.edit_config(tie_word_embeddings=False)
        self.succeeds(self.generate())

    def test_token_ids_that_are_not_used(self):
        unused = ("data.prepend_bos=false", "data.exclude_special_tokens=false")
        for name in ("model", "model_eos_is_vocab_size", "model_eos_list"):
            shutil.copy(CASES / f"09-token-ids-of-config-not-used/{name}.json", self.folder / "model/config.json")
            self.succeeds(self.generate(f"job.output={name}", *unused))
            self.succeeds(self.generate(f"job.output={name}_special", unused[0]))
        shutil.copy(CASES / "09-token-ids-of-config-not-used/model.json", self.folder / "model/config.json")
        self.fails(self.generate(), 2, "bos_token_id = 50256", "data.prepend_bos")
        self.edit_config(bos_token_id=[1, 2])
        self.fails(self.generate(), 2, "bos_token_id", "is a list", "data.prepend_bos")

    def test_every_id_of_a_list_is_left_out(self):
        self.edit_config(eos_token_id=[5, 6, 10**9])
        np.save(self.folder / "ids.npy", np.array([5, 7, 6, 8, 5], "<u2"))
        self.succeeds(self.generate_from("ids.npy"))
        self.assertEqual(len(self.rows()), 2)

    def test_weights_in_other_forms(self):
        weights = self.folder / "model/model.safetensors"
        kept = weights.read_bytes()
        for content, word in ((b"", "empty"), (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
                              (b"<html>login</html>", "web page"), (kept[:-4], "cut")):
            weights.write_bytes(content)
            self.fails(self.generate(), 2, "model.safetensors", word)
        weights.unlink()
        self.fails(self.generate(), 2, "model.safetensors: no such file")
        for name, word in (("x.gguf", "x.gguf"), ("adapter_model.safetensors", "adapter"),
                           ("pytorch_model.bin", "save_pretrained")):
            self.write(f"model/{name}", "x")
            self.fails(self.generate(), 2, name, word)

    def test_json_names_file_line_and_what_is_wrong(self):
        for name, content, word in (
            ("config.json", '{"model_type": "gpt2",\n "n_layer": 2,\n}', "config.json:3:1: a comma before '}'"),
            ("config.json", "[" * 200000, "config.json:1:1"),
            ("config.json", '{"a": ' * 200000, "nested deeper than 100 levels"),
            ("tokenizer.json", "{}", "tokenizer.json: pre_tokenizer"),
            ("tokenizer.json", '{"model": 1', "tokenizer.json:1:12: ends in the middle of an object"),
        ):
            kept = (self.folder / "model" / name).read_text()
            self.write(f"model/{name}", content)
            self.fails(self.generate(), 2, word)
            self.write(f"model/{name}", kept)

    def test_a_sparse_vocabulary_takes_no_memory(self):
        path = self.folder / "model/tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["added_tokens"].append({"id": 0x7FFFFFF, "content": "<far>", "special": True})
        path.write_text(json.dumps(tokenizer))
        words, environment = harness.command("generate", "generate.toml")
        limit = 3 << 20  # kB of address space
        done = subprocess.run(["bash", "-c", f'ulimit -v {limit}; exec "$@"', "bash", *words], cwd=self.folder,
                              env=environment, capture_output=True, text=True, timeout=harness.TIMEOUT_S)
        self.succeeds(done)

    def test_names_and_folders_that_cannot_be_read(self):
        name = os.fsdecode(b"caf\xe9.txt")
        shutil.copy(self.folder / "text.txt", self.folder / name)
        (self.folder / "generate.toml").write_bytes(JOB.replace("text.txt", "link.txt").encode())
        os.symlink(name, self.folder / "link.txt")
        os.rename(self.folder / "model", self.folder / os.fsdecode(b"mod\xe8le"))
        os.symlink(os.fsdecode(b"mod\xe8le"), self.folder / "model")
        self.succeeds(self.generate())
        os.symlink("loop.txt", self.folder / "loop.txt")
        self.fails(self.generate_from("loop.txt"), 2, "loop.txt", "symbolic links")
        os.symlink("loop", self.folder / "loop")
        self.fails(clt("inspect", self.folder / "loop"), 2, "loop", "symbolic links")


if __name__ == "__main__":
    harness.main()
