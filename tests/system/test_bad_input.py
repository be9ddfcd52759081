"""Bad configurations, data and arguments are refused; see RefusalTest for what that means."""
import os
import shutil
import struct
import unittest

from filigree_testing import BAD_INPUT, RefusalTest, call, config, phase, rewrite, snapshot

SHARD_HEADER_BYTES = 1024


class BadInputTest(RefusalTest):

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
            "layers.0.attention.q.weight", "larger than the weight", "(and so for 13 more weights)")

    def test_a_problem_of_many_weights_is_told_once(self):
        path = self.write("emptied.textproto",
                          self.good.replace("sparsity: 0.75", "sparsity: 0.999"))
        told = self.refused("plan", path, says=("layers.0.attention.q.weight", "leaves none",
                                                "more weights)"))
        self.assertEqual(len(told.strip().splitlines()), 1, told)

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

    def test_gradient_dtypes_that_do_not_go_together(self):
        for dtypes in ("grad_dtype: BF16 wire_dtype: F32", "wire_dtype: BF16 deterministic: true",
                       "grad_dtype: BF16 deterministic: true"):
            says = ["parallel.deterministic", "F32"] if "true" in dtypes else [
                "parallel.wire_dtype = F32 is wider", "leave wire_dtype out"]
            override = ("--override", f"parallel {{ {dtypes} device: CPU }}")
            self.refused("train", self.path("good.textproto"), "--out", self.path("new-run"),
                         *override, says=says)
            self.refused("plan", self.path("good.textproto"), *override, says=says)

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
