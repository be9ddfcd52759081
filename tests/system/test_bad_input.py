"""Bad input: exit code 2, one message that names the place and the mend, nothing written."""
import json
import os
import shutil
import struct
import unittest

from filigree_testing import (BAD_INPUT, SystemTest, call, command, config, newest, phase,
                              read_bytes, snapshot, sparse)

SHARD_HEADER_BYTES = 1024


def rewrite(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


class BadInputTest(SystemTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.good = config(cls.data, phase(4, sparse()), checkpoint="every_steps: 2")
        cls.run_dir = cls.path("run")
        path = cls.path("good.textproto")
        with open(path, "w", encoding="utf-8") as file:
            file.write(cls.good)
        result = call("train", path, "--out", cls.run_dir)
        if result.returncode != 0:
            raise AssertionError(result.stdout + result.stderr)
        cls.hf = cls.path("hf")
        result = call("export", cls.run_dir, "--out", cls.hf, "--dtype", "f32")
        if result.returncode != 0:
            raise AssertionError(result.stdout + result.stderr)

    def refused(self, *arguments, says=(), ranks=1):
        """The call ends with exit code 2 and one message that has all of `says`; no file changed."""
        before = snapshot(self.work)
        result = call(*arguments, ranks=ranks)
        words = " ".join(command(*arguments, ranks=ranks))
        told = f"{words}\n{result.stdout}\n{result.stderr}"
        self.assertEqual(result.returncode, BAD_INPUT, told)
        after = snapshot(self.work)
        self.assertEqual(before, after, "files were written or changed: " + told)
        messages = [line for line in result.stderr.splitlines() if line.startswith("filigree: ")]
        self.assertEqual(len(messages), 1, told)
        # Nothing but the message: mpirun alone adds a notice of its own.
        if ranks == 1:
            self.assertTrue(result.stderr.startswith("filigree: "), told)
            self.assertEqual(result.stdout, "", told)
        for text in says:
            self.assertIn(text, result.stderr, told)
        return result.stderr

    def refused_config(self, text, *says):
        """`text` is refused by plan and by train, into a new run and into one that is there."""
        path = self.write("bad.textproto", text)
        self.refused("plan", path, says=says)
        self.refused("train", path, "--out", self.path("new-run"), says=says)
        self.refused("train", path, "--out", self.run_dir, says=says)

    def refused_data(self, name, *says):
        """Shards under `name` are refused by train and eval."""
        shards = self.path(name, "*.bin")
        text = config(self.data, phase(4)).replace(
            f'prepared: "{self.data}"', f'train {{ glob: "{shards}" }}').replace(
                "model { ", "model { vocab_size: 259 ")
        path = self.write(name + ".textproto", text)
        self.refused("train", path, "--out", self.path("new-run"), says=says)
        self.refused("train", path, "--out", self.path("new-run"), says=says, ranks=2)
        self.refused("eval", self.run_dir, "--data", shards, says=says)

    def copy_of_shard(self, name):
        os.makedirs(self.path(name))
        shard = next(n for n in sorted(os.listdir(self.data)) if n.startswith("train"))
        return shutil.copy(os.path.join(self.data, shard), self.path(name, "a.bin"))

    # ------------------------------------------------------------------------ configurations

    def test_unknown_field_and_known_ones(self):
        self.refused_config(self.good.replace("seq_len:", "seq_length:"),
                            "bad.textproto:", "seq_length", "seq_len")

    def test_negative_size(self):
        self.refused_config(self.good.replace("width: 48", "width: -48"),
                            "bad.textproto:2", "model.width", "must be positive")

    def test_heads_that_do_not_divide(self):
        self.refused_config(self.good.replace("heads: 6 ", "heads: 5 "),
                            "bad.textproto:2", "model.heads = 5 does not divide model.width = 48")
        self.refused_config(self.good.replace("kv_heads: 3", "kv_heads: 4"),
                            "not a multiple of model.kv_heads = 4")

    def test_unknown_names(self):
        self.refused_config(self.good.replace("family: LLAMA", "family: LAMA"), "LAMA", "LLAMA")
        self.refused_config(self.good.replace('"block_sparse"', '"block_sprse"'),
                            "unknown parameterisation", "block_sprse", "block_sparse")

    def test_blocks_larger_than_a_weight(self):
        self.refused_config(
            self.good.replace("block_out: 16 block_in: 16", "block_out: 64 block_in: 64"),
            "layers.0.attention.q.weight", "larger than the weight")

    def test_all_problems_at_once(self):
        error = self.refused("plan", self.write("bad.textproto", self.good.replace(
            "width: 48", "width: -48").replace("lr: 1e-2", "lr: -1")))
        self.assertIn("model.width", error)
        self.assertIn("schedule.lr", error)

    def test_not_a_text_format(self):
        self.refused_config("model { layers: 2", "bad.textproto:1")
        self.refused_config("", "bad.textproto")
        self.refused_config(self.good.replace("layers: 2", 'layers: "two"'), "bad.textproto:2")

    def test_overrides(self):
        path = self.path("good.textproto")
        for text, says in (("model {", "--override"), ("modle { layers: 2 }", "modle"),
                           ("model { layers: 0 }", "model.layers"),
                           ("model { family: BERT }", "BERT")):
            with self.subTest(override=text):
                self.refused("plan", path, "--override", text, says=[says])
                self.refused("train", path, "--out", self.path("new-run"), "--override", text,
                             says=[says])

    def test_missing_config(self):
        missing = self.path("none.textproto")
        self.refused("plan", missing, says=["none.textproto"])
        self.refused("train", missing, "--out", self.path("new-run"), says=["none.textproto"])
        self.refused("train", self.work, "--out", self.path("new-run"), says=[self.work])

    def test_a_config_is_refused_once_under_mpirun(self):
        path = self.write("bad.textproto", self.good.replace("width: 48", "width: -48"))
        self.refused("train", path, "--out", self.path("new-run"), ranks=2, says=["model.width"])

    def test_another_number_of_ranks_than_asked(self):
        path = self.path("good.textproto")
        self.refused("train", path, "--out", self.path("new-run"), "--override",
                     "parallel { ranks: 3 }", ranks=2, says=["parallel.ranks", "mpirun -np 3"])

    # ------------------------------------------------------------------------------------ data

    def test_missing_shard(self):
        os.makedirs(self.path("no-shards"))
        self.refused_data("no-shards", "no-shards/*.bin")

    def test_missing_prepared_directory(self):
        self.refused_config(self.good.replace(self.data, self.path("nowhere")), "nowhere")

    def test_a_shard_of_the_manifest_that_is_gone(self):
        copy = self.path("incomplete")
        shutil.copytree(self.data, copy)
        shard = next(n for n in sorted(os.listdir(copy)) if n.startswith("train"))
        os.remove(os.path.join(copy, shard))
        path = self.write("incomplete.textproto", self.good.replace(self.data, copy))
        self.refused("train", path, "--out", self.path("new-run"), says=["incomplete"])

    def test_truncated_shard(self):
        shard = self.copy_of_shard("truncated")
        os.truncate(shard, os.path.getsize(shard) - 10)
        self.refused_data("truncated", "truncated/a.bin")
        os.truncate(shard, 100)
        self.refused_data("truncated", "truncated/a.bin")

    def test_foreign_shard(self):
        rewrite(self.copy_of_shard("foreign"), 0, struct.pack("<i", 12345))
        self.refused_data("foreign", "foreign/a.bin")
        rewrite(self.copy_of_shard("version"), 4, struct.pack("<i", 99))
        self.refused_data("version", "version/a.bin", "99")

    def test_token_beyond_the_vocabulary(self):
        shard = self.copy_of_shard("beyond")
        rewrite(shard, SHARD_HEADER_BYTES + 2 * 1000, struct.pack("<H", 5000))
        self.refused_data("beyond", "beyond/a.bin", "token 1000 has id 5000", "the vocabulary of 25")

    def test_prepare(self):
        out = self.path("new-data")
        self.refused("prepare", "--input", self.path("nothing*"), "--tokenizer", "byte", "--out",
                     out, says=["nothing*"])
        self.refused("prepare", "--input", self.text, "--tokenizer", "bytes", "--out", out,
                     says=["bytes", "byte"])
        self.refused("prepare", "--input", self.text, "--tokenizer", "sentencepiece:none.model",
                     "--out", out, says=["none.model"])
        self.refused("prepare", "--input", self.text, "--tokenizer", "byte", "--out", out,
                     "--val-fraction", "1.5", says=["val-fraction"])
        broken = self.write("broken.jsonl", '{"text": "fine"}\n{"text": \n')
        self.refused("prepare", "--input", broken, "--tokenizer", "byte", "--out", out,
                     says=["broken.jsonl:2"])
        self.refused("prepare", "--input", self.text, "--tokenizer", "byte", "--out",
                     self.path("good.textproto"), says=["good.textproto"])

    # ------------------------------------------------------------------------------ run and output

    def test_unwritable_output(self):
        path = self.path("good.textproto")
        # A file where a directory should be: refused for root too.
        self.refused("train", path, "--out", self.path("good.textproto", "run"),
                     says=["good.textproto", "--out"])
        self.refused("train", path, "--out", path, says=["good.textproto", "--out"])
        inside = self.path("good.textproto", "x")
        self.refused("export", self.run_dir, "--out", inside, says=["good.textproto"])
        self.refused("import", self.hf, "--out", inside, says=["good.textproto"])
        self.refused("report", self.run_dir, "--out", inside + ".html", says=["good.textproto"])
        self.refused("report", self.run_dir, "--out", self.data, says=[self.data])

    @unittest.skipIf(os.geteuid() == 0, "root may write everywhere")
    def test_no_permission(self):
        locked = self.path("locked")
        os.makedirs(locked, mode=0o500)
        self.refused("train", self.path("good.textproto"), "--out", os.path.join(locked, "run"),
                     says=["locked", "permission"])

    def test_resume_with_another_model(self):
        for old, new, says in (("layers: 2", "layers: 3", "layers 2 (config: 3)"),
                               ("feed_forward: 100", "feed_forward: 96", "feed_forward 100"),
                               ("kv_heads: 3", "kv_heads: 6", "kv_heads 3")):
            with self.subTest(model=new):
                path = self.write("other.textproto", self.good.replace(old, new))
                self.refused("train", path, "--out", self.run_dir,
                             says=["step_00000004", says, "--out"])
                self.refused("train", path, "--out", self.path("new-run"), "--resume",
                             newest(self.run_dir), says=[says])
        path = self.write("other.textproto", self.good.replace("sparsity: 0.75", "sparsity: 0.5"))
        self.refused("train", path, "--out", self.run_dir,
                     says=["layers.0.attention.q.weight", "sparsity"])
        path = self.write("other.textproto", "seed: 99\n" + self.good)
        self.refused("train", path, "--out", self.run_dir, says=["seed"])
        path = self.write("other.textproto", self.good.replace("steps: 4", "steps: 3"))
        self.refused("train", path, "--out", self.run_dir, says=["step 4"])

    def test_resume_words(self):
        path = self.path("good.textproto")
        self.refused("train", path, "--out", self.run_dir, "--resume", "none", says=["--resume"])
        self.refused("train", path, "--out", self.path("new-run"), "--resume",
                     self.path("nowhere"), says=["nowhere"])

    def test_one_flipped_byte(self):
        """In any file of a checkpoint, at any place: refused by whoever reads it."""
        path = self.path("good.textproto")
        files = [os.path.relpath(os.path.join(folder, name), newest(self.run_dir))
                 for folder, _, names in os.walk(newest(self.run_dir)) for name in names]
        self.assertIn("model.safetensors", files)
        for file in sorted(files):
            source = os.path.join(newest(self.run_dir), file)
            size = os.path.getsize(source)
            for offset in sorted({0, size // 3, size - 2}):
                with self.subTest(file=file, offset=offset):
                    run = self.path("flipped")
                    shutil.rmtree(run, ignore_errors=True)
                    shutil.copytree(self.run_dir, run)
                    broken = os.path.join(newest(run), file)
                    rewrite(broken, offset, bytes([read_bytes(broken)[offset] ^ 0x10]))
                    # One step more than the checkpoint has, so that it must be read.
                    longer = self.write("longer.textproto",
                                        self.good.replace("steps: 4", "steps: 5"))
                    self.refused("train", longer, "--out", run, says=["step_00000004"])
                    self.refused("export", run, "--out", self.path("new-hf"),
                                 says=["step_00000004"])
                    self.refused("eval", run, "--data", os.path.join(self.data, "val*.bin"),
                                 says=["step_00000004"])

    def test_a_missing_file_of_a_checkpoint(self):
        for file in ("model.safetensors", "optimizer.safetensors", "layouts.safetensors"):
            with self.subTest(file=file):
                run = self.path("holed")
                shutil.rmtree(run, ignore_errors=True)
                shutil.copytree(self.run_dir, run)
                os.remove(os.path.join(newest(run), file))
                longer = self.write("longer.textproto", self.good.replace("steps: 4", "steps: 5"))
                self.refused("train", longer, "--out", run, says=[file])

    # ------------------------------------------------------------------------- the other commands

    def test_nonsense_paths(self):
        shards = os.path.join(self.data, "val*.bin")
        for what in (self.path("nowhere"), self.data, self.path("good.textproto")):
            with self.subTest(what=what):
                name = os.path.basename(what)
                self.refused("eval", what, "--data", shards, says=[name])
                self.refused("generate", what, "--prompt", "a", says=[name])
                self.refused("export", what, "--out", self.path("new-hf"), says=[name])
                self.refused("import", what, "--out", self.path("new-checkpoint"), says=[name])
                self.refused("report", what, "--out", self.path("new.html"), says=[name])
        self.refused("inspect", self.path("nowhere"), says=["nowhere"])
        self.refused("inspect", self.path("good.textproto"), says=["good.textproto"])
        self.refused("eval", self.run_dir, "--data", self.path("none*.bin"), says=["none*.bin"])

    def test_output_that_is_there(self):
        """Export and import make their directory: one with foreign files in it is left alone."""
        self.refused("export", self.run_dir, "--out", self.data, says=[self.data])
        self.refused("import", self.hf, "--out", newest(self.run_dir), says=["step_00000004"])
        self.refused("import", self.hf, "--out", self.data, says=[self.data])

    def test_foreign_hugging_face_directory(self):
        def changed(name, **fields):
            copy = self.path(name)
            shutil.copytree(self.hf, copy)
            path = os.path.join(copy, "config.json")
            content = json.loads(read_bytes(path))
            content.update(fields)
            with open(path, "w", encoding="utf-8") as file:
                json.dump(content, file)
            return copy
        out = self.path("new-checkpoint")
        self.refused("import", changed("bert", model_type="bert"), "--out", out, says=["bert"])
        self.refused("import", changed("wide", hidden_size=64), "--out", out, says=["wide"])
        broken = changed("no-json")
        rewrite(os.path.join(broken, "config.json"), 0, b"#")
        self.refused("import", broken, "--out", out, says=["config.json"])
        truncated = changed("short")
        weights = os.path.join(truncated, "model.safetensors")
        os.truncate(weights, os.path.getsize(weights) - 1)
        self.refused("import", truncated, "--out", out, says=["model.safetensors"])

    def test_arguments(self):
        for arguments in (["train"], ["trian", "x"], ["plan", "x", "--rank", "2"],
                          ["export", self.run_dir, "--out", "x", "--dtype", "f16"],
                          ["plan", self.path("good.textproto"), "--ranks", "0"],
                          ["generate", self.run_dir, "--prompt", "a", "--tokens", "-1"],
                          ["eval", self.run_dir, "--data", "x", "--seq-len", "-3"],
                          []):
            with self.subTest(arguments=arguments):
                before = snapshot(self.work)
                result = call(*arguments)
                self.assertEqual(result.returncode, BAD_INPUT, result.stdout + result.stderr)
                self.assertNotEqual(result.stderr, "")
                self.assertEqual(snapshot(self.work), before)


if __name__ == "__main__":
    unittest.main()
