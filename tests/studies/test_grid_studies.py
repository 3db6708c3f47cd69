"""The studies that compare settings and sizes, each on rows with a known answer."""

import math

import pytest

from fastcluster_lm.studies import conditions, size, vocabulary
from fastcluster_lm.studies.cells import cells_of, preset_config
from fastcluster_lm.studies.study import BASE
from tests.studies.planted import LAYERS, STEPS, judged, noise, plus, score_rows


def rows_of(labels: str, value: float, seed: int) -> list[dict]:
    rows = score_rows(plus(lambda s, la: value * s / STEPS[-1], noise(seed)))
    return [{**row, "group": "all", "labels": labels} for row in rows]


def scores_with(task: float, given: float, output: float, seed: int) -> list[dict]:
    return rows_of("task", task, seed) + rows_of("input", given, seed + 50) + rows_of("output", output, seed + 90)


def test_conditions_finds_where_the_task_dominates_and_nothing_between_equals():
    def dominance(task: float, seed: int) -> float:
        return conditions.dominance(conditions.last_scores(scores_with(task, 0.3, 0.6, seed)))

    # the output's 0.6 is the larger of the two others
    assert dominance(0.9, 7) == pytest.approx(0.3, abs=0.06)
    planted = [(dominance(0.8, seed), dominance(0.5, 20 + seed)) for seed in range(5)]
    null = [(dominance(0.5, seed), dominance(0.5, 20 + seed)) for seed in range(5)]
    assert judged(conditions.STUDY, planted).verdict == "supported"
    assert judged(conditions.STUDY, null).verdict == "undecided"


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
    found = size.smoothed({step: float(step) for step in range(1, 101)})
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
        return vocabulary.above_layer_zero(rows)

    assert judged(vocabulary.STUDY, [pair(0.6, seed) for seed in range(5)]).verdict == "supported"
    assert judged(vocabulary.STUDY, [pair(0.15, seed) for seed in range(5)]).verdict == "not supported"


def test_vocabulary_scores_a_run_with_the_embedding_at_chance(cell, monkeypatch):
    # of two distributions a task, a group needs more points of each than with nano's three
    monkeypatch.setattr(vocabulary, "POINTS", 5)
    rows = vocabulary.final_rows(cell)
    assert {row["layer"] for row in rows} == {0, 1, 2, 3}
    assert [row["ari"] for row in rows if row["layer"] == 0] == [pytest.approx(0.0, abs=0.05)]
    assert all(row["ari"] is not None and row["null_ari"] is not None for row in rows)


def test_the_vocabularies_are_ten_and_a_hundred_times_as_large():
    base = preset_config("nano", 0).tasks
    tasks = {name: cell.config.tasks for name, cell in cells_of(vocabulary.STUDY, "nano", 0).items()}
    assert tasks["all x 10"].n_inputs == 10 * base.n_inputs and tasks["all x 10"].n_outputs == 10 * base.n_outputs
    assert tasks["outputs and alphabet x 100"].alphabet_size == 100 * base.alphabet_size
