"""The studies that compare settings and sizes, each on rows with a known answer."""

import json
import math
from collections import Counter

import pytest
import torch

from fastcluster_lm.config import apply_settings
from fastcluster_lm.data import build_instances
from fastcluster_lm.studies.cells import cells_of, preset_config
from fastcluster_lm.studies.experiments import conditions, size
from fastcluster_lm.studies.experiments import vocabulary as vocabularies
from fastcluster_lm.studies.reading import above_layer_zero
from fastcluster_lm.studies.statistics import smoothed
from fastcluster_lm.studies.study import BASE
from fastcluster_lm.tasks import taskset_of
from tests.studies.planted import LAYERS, STEPS, judged, noise


def ari_of(task: float, given: float, output: float, seed: int) -> dict[str, float]:
    drawn = noise(seed)
    wanted = {"task": task, "input": given, "output": output}
    # the embedding knows the input alone, and does not count
    rows = [
        {"layer": layer, "labels": labels, "ari": value + drawn(n, layer) if layer else 9.0}
        for layer in LAYERS
        for n, (labels, value) in enumerate(wanted.items())
    ]
    return conditions.over_labels(rows)


def test_conditions_finds_where_the_task_dominates_and_where_it_does_not():
    # the output's 0.6 is the larger of the two others
    assert conditions.dominance(ari_of(0.9, 0.3, 0.6, 7)) == pytest.approx(0.3, abs=0.06)
    assert conditions.dominance({"task": None, "input": 0.1, "output": 0.2}) is None
    for task, verdict in ((0.8, "supported"), (0.6, "undecided"), (0.4, "not supported")):
        found = [ari_of(task, 0.3, 0.6, 3 * seed) for seed in range(5)]
        assert judged(conditions.STUDY, [(one["task"], conditions.confound(one)) for one in found]).verdict == verdict


def test_the_search_chooses_the_highest_mean_among_the_settings_that_are_learnt():
    found = {
        "as it is": [(-0.5, 0.99), (-0.4, 0.99)],
        "better": [(-0.1, 0.95), (-0.3, 0.92)],
        "best, not learnt once": [(0.2, 0.99), (0.1, 0.89)],
        "undefined": [(None, 1.0), (0.9, 1.0)],
    }
    assert conditions.best_setting(found, accuracy_from=0.9) == "better"
    assert conditions.best_setting(found, accuracy_from=0.0) == "best, not learnt once"
    assert conditions.best_setting(found, accuracy_from=2.0) == conditions.AS_IT_IS


def test_no_judged_seed_is_searched_and_a_search_is_run_once():
    cells = [cells_of(conditions.STUDY, "nano", seed) for seed in (0, 1)]
    searched = [{cell.name for cell in own.values() if cell.config.seed in conditions.SEARCHED} for own in cells]
    assert searched[0] == searched[1] and len(searched[0]) == len(conditions.grid("nano")) * len(conditions.SEARCHED)
    for seed, own in enumerate(cells):
        rest = [cell.config.seed for cell in own.values() if cell.name not in searched[0]]
        assert rest == [seed] * len(conditions.grid("nano"))
    assert min(conditions.SEARCHED) > 100


def write_labels(folder, task: float, output: float, accuracy: float) -> None:
    folder.mkdir()
    rows = [{"layer": 1, "labels": name, "ari": v} for name, v in (("task", task), ("input", 0.0), ("output", output))]
    (folder / "labels.json").write_text(json.dumps({"rows": rows, "val_accuracy": accuracy}))


def test_conditions_judges_what_the_search_chose_by_other_seeds_and_shows_the_whole_grid(tmp_path):
    cells = {name: tmp_path / str(number) for number, name in enumerate(conditions.STUDY.arms("nano"))}
    for name, folder in cells.items():
        # on the judged seed another setting looks best, which must not count
        searched, chosen = "search seed" in name, name.startswith("two outputs")
        task = 0.7 if searched == chosen else 0.2
        write_labels(folder, task, 0.5, 1.0)
    found = conditions.STUDY.measure(cells)
    assert (found.statistic, found.control) == (0.2, 0.5)
    assert "chose: two outputs." in found.note and "200, 201, 202" in found.note
    for name in conditions.grid("nano"):
        assert found.beside[f"d, {name}"] == pytest.approx(-0.3 if name == "two outputs" else 0.2)
    assert found.beside["d less that of the preset, two outputs"] == pytest.approx(-0.5)


def test_conditions_scores_a_run_by_task_input_and_output(miniature, tmp_path):
    # three points a cell want three validation instructions
    short = apply_settings(miniature, ["training.steps=10", "training.eval_every=10", "probe.every=0"])
    conditions.train_and_compare(short, tmp_path, {})
    stored = json.loads((tmp_path / "labels.json").read_text())
    by = {(row["labels"], row["layer"]): row["ari"] for row in stored["rows"]}
    assert {labels for labels, _ in by} == set(conditions.LABELS) and {layer for _, layer in by} == {0, 1, 2, 3}
    # the embedding of the input knows the input, and nothing of the task
    assert by["input", 0] == pytest.approx(1.0) and by["task", 0] == pytest.approx(0.0, abs=0.05)


def test_a_larger_task_set_is_probed_at_as_many_points_a_cell():
    base = preset_config("nano", 0)
    twice = preset_config("nano", 0, ["tasks.n_inputs=16"])
    assert twice.probe.n_points == 2 * base.probe.n_points
    assert preset_config("nano", 0, ["tasks.n_inputs=16", "probe.n_points=900"]).probe.n_points == 900


def curve_of(quality: float, seed: int, *, rises_at: int = 100, loss_falls: float = 0.01) -> size.Curve:
    drawn, other = noise(seed), noise(500 + seed)
    return size.Curve(
        {step: quality * (step >= rises_at) + drawn(step, 0) for step in STEPS},
        {step: other(step, 0) for step in STEPS},
        {step: math.exp(-loss_falls * step) for step in range(1, STEPS[-1] + 1)},
    )


def test_size_finds_a_planted_slope_per_doubling_and_none_where_there_is_none():
    planted, null = [], []
    for seed in range(5):
        grows = {16 * 2**i: curve_of(0.3 + 0.1 * i, 10 * seed + i) for i in range(4)}
        same = {16 * 2**i: curve_of(0.5, 10 * seed + i) for i in range(4)}
        for curves, kept in ((grows, planted), (same, null)):
            kept.append((size.per_doubling(curves, size.last), size.per_doubling(curves, size.last, null=True)))
        assert planted[-1][0] == pytest.approx(0.1, abs=0.03)
    assert judged(size.WIDTH, planted).verdict == "supported"
    assert judged(size.DEPTH, null).verdict == "undecided"


def test_equal_loss_onset_unrest_and_exponent_are_as_planted():
    early, late = curve_of(0.5, 1, loss_falls=0.02), curve_of(0.5, 2, rises_at=300)
    # exp(-0.02 s) <= 0.1 from step 116 on, so at the probe of step 125
    assert size.at_loss(early, 0.1) == early.ari[125]
    assert size.at_loss(late, 1e-9) is None
    assert (size.onset(early), size.onset(late)) == (100.0, 300.0)
    assert (
        size.unrest(curve_of(0.5, 3))
        < 0.1
        < size.unrest(size.Curve({s: float(i % 2) for i, s in enumerate(STEPS)}, {}, {}))
    )
    powers = {2**i: size.Curve({0: 0.0, 1: 0.1 * 2 ** (0.5 * i)}, {}, {}) for i in range(4)}
    assert size.exponent(powers) == pytest.approx(0.5)
    assert size.per_doubling(dict(list(powers.items())[:2]), size.last) is None


def test_the_training_loss_is_averaged_on_both_sides():
    found = smoothed({step: float(step) for step in range(1, 101)})
    assert found[50] == 50.0 and found[1] == pytest.approx(7.0)


@pytest.mark.parametrize("study", [size.WIDTH, size.DEPTH])
def test_the_sizes_span_what_is_asked_and_share_the_base_run(study):
    sizes = [int(name) for name in study.arms("nano")]
    assert (min(sizes), max(sizes)) == ((16, 128) if study is size.WIDTH else (2, 8))
    assert BASE in study.arms("nano").values()
    assert max(int(name) for name in study.arms("paper")) == (2048 if study is size.WIDTH else 24)


def test_vocabulary_averages_above_the_embedding_and_finds_what_persists():
    def pair(ari: float, seed: int):
        drawn = noise(seed)
        rows = [{"layer": la, "ari": ari + drawn(0, la), "null_ari": 0.15 + drawn(1, la)} for la in LAYERS]
        rows[0]["ari"] = -9.0
        return above_layer_zero(rows)

    assert judged(vocabularies.STUDY, [pair(0.6, seed) for seed in range(5)]).verdict == "supported"
    assert judged(vocabularies.STUDY, [pair(0.15, seed) for seed in range(5)]).verdict == "not supported"


def test_chosen_pairs_are_those_of_all_instances(taskset, vocabulary):
    texts = (("aaaa", "abab"), ("acdc", "addd"), ("eeee", "efef"), ("bggg", "bghg"), ("ijij", "jjjj"), ("ckkl", "clll"))
    cpu = torch.device("cpu")
    whole = build_instances(taskset, texts, vocabulary, cpu)
    # in all instances the input is fastest
    chosen = torch.tensor([35, 0, 17, 5])
    joined = vocabularies.join(taskset, texts, vocabulary, chosen // 3, chosen % 3, cpu)
    for name, value in vars(whole.select(chosen)).items():
        own = getattr(joined, name)
        assert torch.equal(own, value) if isinstance(value, torch.Tensor) else own == value, name


def test_scored_pairs_are_balanced_over_distributions_and_inputs():
    inputs = torch.tensor([4, 1])
    instruction, given = vocabularies.balanced(3, 5, inputs, torch.Generator().manual_seed(0))
    cells = list(zip((instruction // 5).tolist(), given.tolist(), strict=True))
    assert Counter(cells) == {(d, i): vocabularies.POINTS for d in range(3) for i in (4, 1)}
    assert len(set(zip(instruction.tolist(), given.tolist(), strict=True))) == len(cells)


def test_every_name_of_an_input_has_its_answers(taskset):
    more = vocabularies.rename_inputs(taskset, 3)
    more.check()
    assert more.n_inputs == 9
    for task, own in zip(more.tasks, taskset.tasks, strict=True):
        assert task.table == tuple(output for output in own.table for _ in range(3))


def test_vocabulary_scores_the_embedding_at_chance_and_either_head_leads_to_the_same_model(
    miniature, tmp_path, monkeypatch
):
    # of two distributions a task, a group needs more points of each than with nano's three
    monkeypatch.setattr(vocabularies, "POINTS", 5)
    found = {}
    for head in ("plain", "fused"):
        folder = tmp_path / head
        folder.mkdir()
        vocabularies.train_on_pool(apply_settings(miniature, [f"training.head={head}"]), folder, {"names": 2})
        found[head] = json.loads((folder / "scored.json").read_text())
    rows = found["fused"]["rows"]
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["ari"] == pytest.approx(0.0, abs=0.05)
    assert all(row["null_ari"] is not None for row in rows)
    # better than one of two outputs, and the heads round otherwise but lead to one place
    assert found["plain"]["val_accuracy"] > 0.6
    assert found["fused"]["val_accuracy"] == pytest.approx(found["plain"]["val_accuracy"], abs=0.02)


def test_the_vocabularies_are_ten_and_a_hundred_times_as_large():
    cells = cells_of(vocabularies.STUDY, "nano", 0)

    def tokens(name: str) -> tuple[int, int, int]:
        cell = cells[name]
        own = taskset_of(cell.config.tasks, cell.config.seed)
        own = vocabularies.rename_inputs(own, dict(cell.arm.options)["names"])
        return own.n_inputs, len(own.outputs), len(own.alphabet)

    base = tokens("as it is")
    assert tokens("all x 10") == tuple(10 * count for count in base)
    assert tokens("all x 100") == tuple(100 * count for count in base)
    assert tokens("inputs x 100") == (100 * base[0], *base[1:])
    assert {name for name, cell in cells.items() if cell.config.training.head == "fused"} == {
        f"{name} x 100" for name in ("inputs", "outputs", "alphabet", "all")
    }
    # as many instances are seen whatever the pool, but for the longer runs of more inputs
    assert len({(cell.config.training.steps, cell.config.training.batch_size) for cell in cells.values()}) == 2
