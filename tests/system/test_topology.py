"""Topology rules through the whole binary: resume, ranks, rewinding, planning, refusals."""
import glob
import json
import os
import unittest

from filigree_testing import (BAD_INPUT, SOURCE_DIR, SystemTest, checkpoints, config, losses,
                              metrics, newest, phase, read_bytes, read_safetensors)

STEPS = 16
ARRAYS = ("model.safetensors", "optimizer.safetensors", "layouts.safetensors")


def rule(name, *fields, parameterisation="masked", sparsity=0.75):
    blocks = "block_out: 8 block_in: 8" if parameterisation == "block_sparse" else ""
    return (f'sparsity {{ parameterisation: "{parameterisation}" rule: "{name}" '
            f'sparsity: {sparsity} {blocks} {" ".join(fields)} }}')


def topology(run):
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        return [line for line in map(json.loads, file) if "topology" in line]


class TopologyTest(SystemTest):

    def run_config(self, sparsity, steps=STEPS, **arguments):
        return config(self.data, phase(steps, sparsity), **arguments)

    def assert_same_state(self, run, other):
        for file in ARRAYS:
            self.assertEqual(read_bytes(newest(run), file), read_bytes(newest(other), file), file)

    def test_resume_in_the_middle_of_a_ramp(self):
        """At step 9 the units grown at step 6 are 3 of 8 steps up their ramp."""
        for parameterisation in ("masked", "block_sparse"):
            for name in ("rigl", "granet", "journey"):
                with self.subTest(rule=name, parameterisation=parameterisation):
                    sparsity = rule(name, "update_interval: 3", "growth_ramp_steps: 8",
                                    "drop_fraction: 0.3", parameterisation=parameterisation)
                    text = self.run_config(sparsity, checkpoint="every_steps: 9 keep_last: 0")
                    whole = self.train(f"{name}-{parameterisation}", text, ranks=2)
                    cut = self.cut_copy(os.path.basename(whole) + "-cut", whole, 9)
                    self.assertEqual(checkpoints(cut), ["step_00000009"])
                    self.train(os.path.basename(cut), text, ranks=2)
                    self.assertEqual(losses(cut), losses(whole))
                    self.assertEqual(topology(cut), topology(whole))
                    self.assert_same_state(cut, whole)

    def test_topology_lines_count(self):
        run = self.train("lines", self.run_config(rule("set", "update_interval: 4")))
        lines = topology(run)
        self.assertEqual([line["step"] for line in lines], [4, 8])  # 75 % of 16 is not before 12
        for line in lines:
            self.assertEqual(line["dropped"], line["grown"])
            self.assertGreater(line["grown"], 0)
            self.assertEqual(line["stored_values"], lines[0]["stored_values"])
        self.assertEqual({m["sparsity"] for m in metrics(run)[0]}, {0.75})

    def test_zero_stages_agree(self):
        """Two addends have one order, and without clipping no other sum enters the weights."""
        runs = [self.train(f"stage-{stage}", self.run_config(
            rule("rigl", "update_interval: 3"), parallel=f"zero_stage: {stage}",
            optimizer="clip_norm: 0"), ranks=2) for stage in (0, 1)]
        self.assertEqual(losses(runs[0]), losses(runs[1]))
        for file in ARRAYS:
            tensors = [read_safetensors(newest(run), file)[0] for run in runs]
            self.assertEqual({n: t.data for n, t in tensors[0].items()},
                             {n: t.data for n, t in tensors[1].items()}, file)

    def test_data_free_rules_at_any_number_of_ranks(self):
        for name, fields in (("set", ['criterion: "random"', "update_interval: 3"]),
                             ("gradual_magnitude", ['criterion: "random"', "update_interval: 3"]),
                             ("sparse_to_dense", ["sparsity: 0.2", "update_interval: 3"]),
                             ("one_shot", [])):
            layouts = []
            sparsity = rule(name, *fields).replace("sparsity: 0.75", "", "sparsity: 0.2" in fields)
            for ranks in (1, 2, 4):
                run = self.train(f"free-{name}-{ranks}", self.run_config(sparsity), ranks=ranks)
                layouts.append(read_bytes(newest(run), "layouts.safetensors"))
            self.assertEqual(layouts[0], layouts[1], name)
            self.assertEqual(layouts[0], layouts[2], name)

    def test_overlap_across_ranks_of_rules_that_read_data(self):
        """Rounding may tip a close decision; all but a few are the same."""
        cells = []
        for ranks in (1, 2, 4):
            run = self.train(f"overlap-{ranks}", self.run_config(rule("rigl", "update_interval: 3")),
                             ranks=ranks)
            tensors, _ = read_safetensors(newest(run), "layouts.safetensors")
            own = set()
            for name, tensor in tensors.items():
                if not name.endswith(".row_offsets"):
                    continue
                weight = name[:-len(".row_offsets")]
                offsets, columns = tensor.data, tensors[weight + ".columns"].values()
                bounds = [int.from_bytes(offsets[i:i + 8], "little")
                          for i in range(0, len(offsets), 8)]
                for row, (begin, end) in enumerate(zip(bounds, bounds[1:])):
                    own.update((weight, row, column) for column in columns[begin:end])
            cells.append(own)
        for other in cells[1:]:
            overlap = len(cells[0] & other) / len(cells[0])
            print(f"rigl, layouts shared with one rank's: {overlap:.4%}")
            self.assertGreater(overlap, 0.95)

    def test_rewinding(self):
        """Each round starts from step 4's values and moments, and its learning rate goes on there."""
        text = config(self.data, phase(12), *(
            phase(8, "rewind_step: 4", rule("iterative_magnitude", sparsity=s))
            for s in (0.2, 0.36)), checkpoint="every_steps: 0 keep_last: 1")
        run = self.train("tickets", text, ranks=2)
        self.assertEqual(checkpoints(run), [f"step_{step:08}" for step in (4, 12, 20, 28)])
        lr = [m["lr"] for m in metrics(run)[0]]
        self.assertEqual(lr[12:20], lr[4:12])
        self.assertEqual(lr[20:28], lr[4:12])
        self.assertAlmostEqual(metrics(run)[0][-1]["sparsity"], 0.36, places=3)
        self.assertEqual([line["step"] for line in topology(run)], [12, 20])

    def test_pruning_at_initialisation(self):
        for criterion in ("snip", "grasp", "magnitude"):
            run = self.train(f"init-{criterion}",
                             self.run_config(rule("one_shot", f'criterion: "{criterion}"')), ranks=2)
            self.assertEqual([line["step"] for line in topology(run)], [0])
            self.assertEqual({m["sparsity"] for m in metrics(run)[0]}, {0.75})

    def test_a_later_phase_inherits(self):
        text = config(self.data, phase(8, rule("gradual_magnitude", "update_interval: 2")),
                      phase(4, "moments: KEEP", rule("inherit")),
                      phase(4, "moments: KEEP"))
        run = self.train("inherit", text)
        sparsity = [m["sparsity"] for m in metrics(run)[0]]
        self.assertEqual(sparsity[8:12], [0.75] * 4)
        self.assertEqual(sparsity[12:], [0] * 4)

    def test_plan_agrees_with_the_run(self):
        sparsity = rule("journey", "update_interval: 2")
        path = self.write("plan.textproto", self.run_config(sparsity))
        plan = json.loads(self.filigree("plan", path, "--json").stdout)
        run = self.train("planned", self.run_config(sparsity))
        counted = [1 - m["sparsity"] for m in metrics(run)[0]]
        points = dict(plan["phases"][0]["density_by_step"])
        density, average = None, 0
        for step in range(STEPS):
            density = points.get(step, density)
            average += density / STEPS
            self.assertAlmostEqual(counted[step], density, places=3)
        self.assertAlmostEqual(plan["average_density"], average, places=9)
        self.assertEqual(plan["final_sparsity"], 0.75)
        with open(os.path.join(run, "layers.json"), encoding="utf-8") as file:
            layers = json.load(file)
        zeros = sum(layer["logical"] - layer["stored"] for layer in layers)
        self.assertAlmostEqual(plan["parameters_final"], plan["parameters_logical"] - zeros,
                               delta=len(layers))  # each weight rounds its own count
        self.assertLess(plan["parameters_final"], plan["parameters_stored"])

    def test_every_byte_of_updates_was_planned(self):
        """Topology lines and the steps between them, by rule, ZeRO stage and mode."""
        cases = {
            "set": rule("set", "update_interval: 3"),
            "rigl-blocks": rule("rigl", "update_interval: 3", parameterisation="block_sparse"),
            "taylor": rule("gradual_magnitude", 'criterion: "taylor"', "update_interval: 2"),
            "wanda-erk": rule("gradual_magnitude", 'criterion: "wanda"', 'distribution: "erk"',
                              "update_interval: 2", parameterisation="block_sparse"),
            "dense": rule("sparse_to_dense", "initial_sparsity: 0.75", "update_interval: 2",
                          sparsity=0.5),
            "granet": rule("granet", "update_interval: 3", 'distribution: "uniform"'),
            "snip": rule("one_shot", 'criterion: "snip"', 'distribution: "uniform"'),
            "grasp": rule("one_shot", 'criterion: "grasp"', 'distribution: "er"'),
        }
        for name, sparsity in cases.items():
            for parallel in ("zero_stage: 0", "zero_stage: 1", "zero_stage: 1 deterministic: true"):
                with self.subTest(rule=name, parallel=parallel):
                    label = f"bytes-{name}-{parallel.count(':')}{parallel[12]}"
                    run = self.train(label, self.run_config(
                        sparsity, steps=8, parallel=f"{parallel} bucket_megabytes: 0.02"), ranks=2)
                    plan = json.loads(self.filigree(
                        "plan", self.path(label + ".textproto"), "--ranks", 2,
                        "--json").stdout)["phases"][0]
                    lines = topology(run)
                    self.assertEqual([[line["step"], line["exchanged_bytes"]] for line in lines],
                                     plan["update_bytes_by_step"])
                    self.assertGreater(min(line["exchanged_bytes"] for line in lines), 0)
                    points, sent, planned = dict(plan["exchanged_bytes_by_step"]), [], []
                    for step, line in enumerate(metrics(run)[0]):
                        sent.append(line["exchanged_bytes"])
                        planned.append(points.get(step, planned[-1] if planned else None))
                    self.assertEqual(sent, planned)

    def test_skipped_steps_lend_no_gradients(self):
        """After one update of this size nothing is finite any more, and steps are skipped."""
        explodes = "schedule { warmup_steps: 0 lr: 1e38 }"
        for name, fields, moves in (("rigl", (), False),
                                    ("granet", ("begin: 0.1 end: 0.7",), True),
                                    ("gradual_magnitude", ('criterion: "taylor"',), True),
                                    ("gradual_magnitude", ('criterion: "wanda"',), True)):
            with self.subTest(rule=name, fields=fields):
                text = config(self.data, phase(8, explodes,
                                               rule(name, "update_interval: 2", *fields)))
                run = self.train(f"skip-{name}-{len(str(fields))}", text, ranks=2)
                lines = metrics(run)[0]
                self.assertEqual(lines[-1]["skipped_steps"], 7)
                self.assertEqual(lines[-1]["sparsity"], 0.75)
                self.assertEqual(any(line["dropped"] for line in topology(run)), moves)
                self.assertEqual({line["grown"] for line in topology(run)}, {0})
                with open(os.path.join(run, "log.txt"), encoding="utf-8") as file:
                    self.assertIn("its gradients were not finite, so rule " + name, file.read())

    def test_bad_input_is_refused(self):
        for fields, words in (
                (["drop_fraction: 1.5"], "drop_fraction must lie in [0, 1], is 1.5"),
                (["begin: 0.9 end: 0.2"], None),
                (["update_interval: 1000"], "longer than the phase"),
                (['criterion: "taste"'], 'unknown criterion "taste"'),
                (['distribution: "even"'], 'unknown distribution "even"'),
                (['include: "layer.*"'], 'include = "layer.*" matches no weight'),
                (["growth_ramp_steps: -1"], "growth_ramp_steps must not be negative")):
            name = "gradual_magnitude" if words is None else "rigl"
            path = self.write("bad.textproto", self.run_config(rule(name, *fields)))
            result = self.filigree("train", path, "--out", self.path("bad"), code=BAD_INPUT)
            self.assertIn(words or "end = 0.2 is before begin = 0.9", result.stderr)
            self.assertFalse(os.path.exists(self.path("bad")))
        for sparsity, fields, words in ((0.9999, "", "leaves nothing of"),
                                        (0.75, "schedule { lr: 0 }", "the phase is frozen")):
            text = config(self.data, phase(STEPS, fields, rule("rigl", "update_interval: 3",
                                                               sparsity=sparsity)))
            path = self.write("bad.textproto", text)
            result = self.filigree("train", path, "--out", self.path("bad"), code=BAD_INPUT)
            self.assertIn(words, result.stderr)


class ShippedConfigsTest(SystemTest):
    """Counts that papers and models' shapes fix."""
    PARAMETERS = {
        "spdf_gpt2_small_50": 125226240, "spdf_gpt2_small_75": 125226240,
        "gmp_gpt3_125m_75": 125226240, "global_mp_gpt3_125m_75": 125226240,
        "set_gpt3_125m_75": 125226240, "rigl_gpt3_125m_75": 125226240,
        "granet_gpt3_125m_75": 125226240, "lottery_gpt3_125m": 125226240,
        "spdf_gpt3_xl_50": 1315723264, "spdf_gpt3_xl_75": 1315723264,
        "vspdf_gpt3_6p7b": 6658404352, "journey_1b": 1204881408,
        # 2 * 32000 d + L (4 d d + 3 d f + 2 d) + d of the benchmark's shapes.
        "sltrain_60m": 58073600, "sltrain_130m": 134105856, "sltrain_350m": 367969280,
        "sltrain_1b": 1339082752,
    }
    # Dense-equivalent over method, of the sparse phase (methods.md, B.1).
    RATIOS = {"spdf_gpt2_small_50": 1.36, "spdf_gpt2_small_75": 1.65, "spdf_gpt3_xl_50": 1.67,
              "spdf_gpt3_xl_75": 2.49, "vspdf_gpt3_6p7b": 5.18}

    def plan(self, name):
        path = os.path.join(SOURCE_DIR, "configs", name + ".textproto")
        return json.loads(self.filigree("plan", path, "--json").stdout)

    def test_every_config_has_its_parameters(self):
        names = {os.path.basename(path)[:-len(".textproto")]
                 for path in glob.glob(os.path.join(SOURCE_DIR, "configs", "*.textproto"))}
        self.assertLessEqual(set(self.PARAMETERS), names)
        for name, parameters in self.PARAMETERS.items():
            with self.subTest(config=name):
                plan = self.plan(name)
                self.assertEqual(plan["parameters_logical"], parameters)
                if name in self.RATIOS:
                    first = plan["phases"][0]
                    ratio = first["flops_dense_equivalent"] / first["flops_method"]
                    self.assertAlmostEqual(ratio, self.RATIOS[name], delta=0.0051)
                if name == "journey_1b":
                    steps = [step for step, _ in plan["phases"][0]["density_by_step"]]
                    self.assertEqual((steps[1], steps[-1]), (12500, 47200))
                    self.assertAlmostEqual(plan["average_density"], 0.693, delta=0.001)


if __name__ == "__main__":
    unittest.main()
