"""Training beside a frozen teacher."""
import json
import os
import shutil
import unittest

from filigree_testing import (GPT2, LLAMA, RefusalTest, SystemTest, config, losses,
                              metrics, newest, phase, read_bytes, sparse)

SMALL = "family: LLAMA layers: 1 width: 24 heads: 2 feed_forward: 40"


def divergences(run):
    return [line["distillation_loss"] for line in metrics(run)[0]]


class DistillationTest(SystemTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.teachers = {}

    def teacher(self, model=LLAMA, name="llama"):
        """A trained run; its fp32 export."""
        if name not in self.teachers:
            run = self.train("teacher-" + name, config(self.data, phase(40), model=model))
            self.filigree("export", run, "--out", self.path("hf-" + name), "--dtype", "f32")
            self.teachers[name] = (run, self.path("hf-" + name))
        return self.teachers[name]

    def distilled(self, teacher, *phases, alpha=0.5, temperature=2, **kinds):
        return config(self.data, *phases, **kinds) + (
            f'distillation {{ teacher: "{teacher}" temperature: {temperature} alpha: {alpha} }}\n')

    def test_the_student_learns_through_its_teacher(self):
        """Shown the teacher's distributions alone, it comes close to them and learns the data."""
        for name, model in (("llama", LLAMA), ("gpt2", GPT2)):
            with self.subTest(name=name):
                _, hf = self.teacher(model, name)
                taught = self.train("taught-" + name, self.distilled(
                    hf, phase(40), alpha=1, model=SMALL))
                fall = divergences(taught)
                self.assertLess(sum(fall[-5:]), 0.1 * sum(fall[:5]))
                start, end = (metrics(taught)[1][i]["val_loss"] for i in (0, -1))
                self.assertLess(end, start - 2)

    def test_the_student_tracks_its_teacher_not_the_data(self):
        """A teacher that speaks another language, in letters that the data does not have."""
        foreign = self.path("foreign-text")
        shutil.copytree(self.text, foreign)
        letters = str.maketrans("abcdefghijklmno", "pqrstuvwxyzABCD")
        for name in os.listdir(foreign):
            text = read_bytes(foreign, name).decode().translate(letters)
            self.write(os.path.join("foreign-text", name), text)
        data = self.path("foreign-data")
        self.filigree("prepare", "--input", foreign, "--tokenizer", "byte", "--out", data)
        teacher = self.train("foreigner", config(data, phase(20)))
        taught = self.train("abroad", self.distilled(teacher, phase(40), alpha=1, model=SMALL))
        home = self.train("home", self.distilled(teacher, phase(40), alpha=1e-9, model=SMALL))
        self.assertLess(sum(divergences(taught)[-5:]), 0.1 * sum(divergences(home)[-5:]))
        self.assertGreater(losses(taught)[-1], losses(home)[-1] + 1)

    def test_a_copy_has_nothing_to_learn(self):
        run, hf = self.teacher()
        copy = self.train("copy", f'init_from: "{run}"\n' + self.distilled(hf, phase(2)))
        self.assertLess(abs(divergences(copy)[0]), 1e-6)

    def test_no_weight_is_no_teacher(self):
        _, hf = self.teacher()
        plain = self.train("plain", config(self.data, phase(3)))
        unweighted = self.train("unweighted", self.distilled(hf, phase(3), alpha=0))
        self.assertEqual(losses(unweighted), losses(plain))
        self.assertNotIn("distillation_loss", metrics(unweighted)[0][0])
        # The first loss is the student's own, taught or not.
        taught = self.train("weighted", self.distilled(hf, phase(3)))
        self.assert_close(losses(taught)[:1], losses(plain)[:1], 1e-6, "loss")
        self.assertNotEqual(losses(taught)[1:], losses(plain)[1:])

    def test_ranks_resume_and_phases(self):
        """Only the first of two phases has a teacher; cut within it, at three numbers of ranks."""
        run, _ = self.teacher()
        text = self.distilled(run, phase(4, sparse()), phase(2, "distillation { alpha: 0 }"),
                              checkpoint="every_steps: 2 keep_last: 0")
        one = self.train("ranks-1", text)
        for ranks in (2, 3):
            several = self.train(f"ranks-{ranks}", text, ranks=ranks)
            self.assert_close(losses(several), losses(one), 1e-4, "loss")
            self.assert_close([line.get("distillation_loss", -1) for line in metrics(several)[0]],
                              [line.get("distillation_loss", -1) for line in metrics(one)[0]],
                              1e-4, "distillation_loss")
            self.assertEqual([("distillation_loss" in line) for line in metrics(several)[0]],
                             [True] * 4 + [False] * 2)
            cut = self.cut_copy(f"cut-{ranks}", several, 2)
            self.train(f"cut-{ranks}", text, ranks=ranks)
            self.assertEqual(losses(cut), losses(several))
            self.assertEqual(read_bytes(newest(cut), "model.safetensors"),
                             read_bytes(newest(several), "model.safetensors"))

    def test_the_same_bits_at_any_number_of_ranks(self):
        run, _ = self.teacher()
        text = self.distilled(run, phase(3, sparse()), parallel="deterministic: true")
        one = self.train("tree-1", text)
        planned = self.planned("tree.textproto", text)
        for ranks in (2, 3):
            several = self.train(f"tree-{ranks}", text, ranks=ranks)
            self.assertEqual(losses(several), losses(one))
            self.assertEqual(divergences(several), divergences(one))
            if ranks == 2:
                self.assertEqual(metrics(several)[0][-1]["exchanged_bytes"],
                                 planned["exchanged_bytes_per_step"])

    def planned(self, name, text):
        return json.loads(self.filigree("plan", self.write(name, text), "--ranks", 2,
                                        "--json").stdout)

    def test_planned(self):
        """The teacher's values and its forward passes, no gradients; exchanged is one scalar more."""
        _, hf = self.teacher()
        alone = self.planned("alone.textproto", config(self.data, phase(5), model=SMALL))
        taught = self.planned("taught.textproto", self.distilled(hf, phase(5), model=SMALL))
        teacher = self.planned("teacher.textproto", config(self.data, phase(5)))
        self.assertEqual(taught["flops_method"], alone["flops_method"])
        self.assertAlmostEqual((taught["flops_executed"] - alone["flops_executed"]) /
                               (teacher["flops_executed"] / 3), 1)
        memory = taught["memory_bytes"]
        self.assertGreater(memory["teacher"], teacher["memory_bytes"]["values"])
        self.assertLess(memory["teacher"], teacher["memory_bytes"]["values"] +
                        teacher["memory_bytes"]["activations"])
        self.assertEqual(memory["total"], alone["memory_bytes"]["total"] + memory["teacher"])
        self.assertEqual(taught["exchanged_bytes_per_step"],
                         alone["exchanged_bytes_per_step"] + 8)
        run = self.train("exchanged", self.distilled(hf, phase(2), model=SMALL), ranks=2)
        self.assertEqual(metrics(run)[0][-1]["exchanged_bytes"],
                         taught["exchanged_bytes_per_step"])


class RefusedTeacherTest(RefusalTest):

    def test_teachers(self):
        teach = 'distillation {{ teacher: "{}" }}\n'.format
        for name, text, says in (
                ("missing", self.good + teach(self.path("nowhere")), ("nowhere", "config.json")),
                ("vocabulary", self.good.replace("feed_forward: 100",
                                                 "feed_forward: 100 vocab_size: 300") +
                 teach(self.hf), ("vocabulary of 257", "one of 300", "tokenizer")),
                ("positions", self.good.replace("seq_len: 32", "seq_len: 64") + teach(self.hf),
                 ("32 positions", "batch.seq_len is 64")),
                ("unnamed", self.good + "distillation { alpha: 0.5 }", ("distillation.teacher",))):
            with self.subTest(name=name):
                path = os.path.join(self.work, "refused.textproto")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
                self.refused("train", path, "--out", self.path("refused"), says=says)
                self.refused("plan", path, says=says)


if __name__ == "__main__":
    unittest.main()
