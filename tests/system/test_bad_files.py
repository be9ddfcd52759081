"""Bad places, checkpoints and exports are refused; see RefusalTest for what that means."""
import json
import os
import shutil
import unittest

from filigree_testing import RefusalTest, newest, read_bytes, rewrite


class BadFilesTest(RefusalTest):

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


if __name__ == "__main__":
    unittest.main()
