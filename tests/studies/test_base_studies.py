"""The studies of the shared base runs, each on rows with a known answer, and each on a miniature run."""

import numpy as np
import pytest
import torch

from fastcluster_lm.data import split_instructions
from fastcluster_lm.studies.experiments import dynamics, hard_examples, subclusters, unseen
from fastcluster_lm.studies.reading import trained_rooms, untrained_rooms
from fastcluster_lm.studies.states import states_of
from tests.studies.planted import LAYERS, STEPS, judged, noise, plus, score_rows

MARK = 300


def rising(step: int, layer: int) -> float:
    return 0.6 / (1 + np.exp(-(step - 110) / 15))


def late_gain(step: int, layer: int) -> float:
    return 0.1 * (step > 400)


def flat(step: int, layer: int) -> float:
    return 0.15


def test_dynamics_finds_a_planted_rise_and_no_planted_noise():
    planted, null = [], []
    for seed in range(5):
        drawn, other = noise(seed), noise(100 + seed)
        planted.append(dynamics.rise(score_rows(plus(rising, drawn), null_ari=other)))
        # all that rises here rises in the block null as well
        null.append(dynamics.rise(score_rows(plus(rising, drawn), null_ari=plus(rising, other))))
    assert judged(dynamics.RISE, planted).verdict == "supported"
    assert judged(dynamics.RISE, null).verdict == "not supported"


def test_a_gain_after_the_mark_is_found_and_a_plateau_is_not():
    gains, plateaus = [], []
    for seed in range(5):
        drawn, other = noise(seed, 0.01), noise(100 + seed, 0.01)
        late = score_rows(plus(rising, late_gain, drawn), null_ari=other)
        gains.append(dynamics.gain_after(late, MARK))
        plateaus.append(dynamics.gain_after(score_rows(plus(rising, drawn), null_ari=other), MARK))
    assert judged(dynamics.AFTER, gains).verdict == "supported"
    assert judged(dynamics.AFTER, plateaus).verdict != "supported"


def test_the_gain_is_counted_from_the_last_probe_at_the_mark():
    rows = score_rows(lambda s, la: s / 1000, null_ari=flat)
    assert dynamics.gain_after(rows, 310) == (pytest.approx(0.2), pytest.approx(0.0))


def test_onset_settling_and_lead_are_where_they_were_planted():
    rows = score_rows(lambda s, la: float(s >= 200), null_ari=flat)
    found = dynamics.timing(rows, {step: float(step >= 250) for step in STEPS})
    assert found["onset"] == {1: 200.0, 2: 200.0}
    assert found["settled"] == {1: 200.0, 2: 200.0}
    # clusters change two probes, of 25 steps each, before accuracy
    assert found["lead"] == {1: 50.0, 2: 50.0}


def test_dynamics_measures_a_run(cell):
    found = dynamics.RISE.measure({"base": cell})
    assert found.statistic is not None and found.control is not None
    assert {row["space"] for row in found.rows} == {"hidden", "map"}
    assert {row["step"] for row in found.rows if row["space"] == "map"} < {row["step"] for row in found.rows}


def test_unseen_finds_what_moves_with_accuracy_and_nothing_in_a_trend_alone():
    planted, null = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        accuracy = dict(zip(STEPS, np.cumsum(rng.exponential(1, len(STEPS))) / 30, strict=True))
        drawn, other = noise(seed, 0.002), noise(100 + seed)
        with_it = {(step, layer): accuracy[step] for step in STEPS for layer in LAYERS}
        moves = score_rows(flat, knn_share=plus(lambda s, la, a=with_it: a[s, la], drawn), null_knn_share=other)
        trend = score_rows(flat, knn_share=plus(lambda s, la: s / 500, drawn), null_knn_share=other)
        planted.append(unseen.goes_with_accuracy(moves, accuracy))
        null.append(unseen.goes_with_accuracy(trend, accuracy))
        assert unseen.correlations(trend, accuracy, None)["rank correlation"] > 0.95
    assert judged(unseen.STUDY, planted).verdict == "supported"
    assert judged(unseen.STUDY, null).verdict != "supported"


def test_unseen_measures_a_run(cell):
    found = unseen.STUDY.measure({"base": cell})
    assert {"knn_share at the end", "with accuracy, rank correlation given the step"} <= set(found.beside)
    assert all(row["layer"] >= 0 and "val_accuracy" in row for row in found.rows)


def nested_of(rooms, states) -> list[dict]:
    """Score made-up states in the place of a model's."""
    subclusters_states = subclusters.states_of
    try:
        subclusters.states_of = lambda evaluator, instances, **sizes: states(instances)
        return subclusters.nested_rows(rooms)
    finally:
        subclusters.states_of = subclusters_states


def test_subclusters_are_found_where_planted_and_not_where_there_is_only_the_task(cell):
    rooms = untrained_rooms(cell)
    draw = torch.Generator().manual_seed(0)

    def points(labels: torch.Tensor) -> torch.Tensor:
        centers = 5 * torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
        return (centers[labels] + torch.randn(len(labels), 16, generator=draw)).expand(4, -1, -1)

    planted = nested_of(rooms, lambda instances: points(instances.distribution))
    null = nested_of(rooms, lambda instances: points(instances.task))
    of = [subclusters.inside_tasks([{"model": "m", **row} for row in rows], "m") for rows in (planted, null)]
    assert of[0] > 0.9
    assert abs(of[1]) < 0.15


def test_subclusters_judges_the_trained_against_the_untrained_model(cell):
    found = subclusters.STUDY.measure({"base": cell})
    assert {row["model"] for row in found.rows} == {"trained", "untrained"}
    assert found.statistic != found.control


def test_a_grade_moves_as_many_letters_toward_another_task(taskset):
    val = split_instructions(taskset, n_train=5, n_val=3, seed=0).val
    for grade in range(5):
        texts, toward = hard_examples.perturb(taskset, val, grade=grade, seed=0)
        for (task, _), own, moved, others in zip(taskset.distributions, val, texts, toward, strict=True):
            assert task not in others
            for text, new in zip(own, moved, strict=True):
                assert sum(a != b for a, b in zip(text, new, strict=True)) <= grade
    assert hard_examples.perturb(taskset, val, grade=0, seed=0)[0] == [list(own) for own in val]
    whole, toward = hard_examples.perturb(taskset, val, grade=4, seed=0)
    for texts, others in zip(whole, toward, strict=True):
        for text, other in zip(texts, others, strict=True):
            assert any(
                task == other and len(text) == 4 and e.shared_string(type(e)(text)) for task, e in taskset.distributions
            )


def test_hard_examples_finds_states_that_follow_their_own_task_and_those_that_follow_the_other(cell, monkeypatch):
    rooms = untrained_rooms(cell)
    centers = 10 * torch.randn(rooms.taskset.n_tasks, 16, generator=torch.Generator().manual_seed(0))
    val = split_instructions(rooms.taskset, n_train=12, n_val=6, seed=rooms.config.seed).val
    texts, toward = hard_examples.perturb(rooms.taskset, val, grade=1, seed=0)
    n_inputs = rooms.taskset.n_inputs
    other = torch.tensor([task for own in toward for task in own]).repeat_interleave(n_inputs)

    def states_at(labels):
        def states(evaluator, instances, **sizes):
            chosen = labels if len(instances) == len(other) and instances is not rooms.trainer.val else instances.task
            drawn = torch.randn(4, len(instances), 16, generator=torch.Generator().manual_seed(1))
            return centers[chosen].expand(4, -1, -1) + drawn

        return states

    pairs = {}
    for name, labels in (("own", rooms.trainer.val.task), ("other", other)):
        monkeypatch.setattr(hard_examples, "states_of", states_at(labels))
        rows = hard_examples.graded_rows(rooms, texts, toward, 1)
        pairs[name] = hard_examples.joins(rows, 1)
        assert hard_examples.breaking_grade(rows) == (None if name == "own" else 1.0)
    assert pairs["own"][0] > 0.95 and pairs["own"][1] < 0.05
    assert pairs["other"][1] > 0.95
    spread = [1 + 0.01 * seed for seed in range(5)]
    assert judged(hard_examples.STUDY, [(pairs["own"][0] * s, pairs["own"][1]) for s in spread]).verdict == "supported"
    assert (
        judged(hard_examples.STUDY, [(pairs["other"][0], pairs["other"][1] * s) for s in spread]).verdict
        == "not supported"
    )


def test_unmoved_instructions_are_the_validation_instances(cell):
    found = hard_examples.STUDY.measure({"base": cell})
    rooms = trained_rooms(cell)
    unmoved = [row for row in found.rows if row["grade"] == 0]
    assert {row["accuracy"] for row in unmoved} == {rooms.trainer.evaluator.accuracy(rooms.trainer.val)}
    assert all(row["moved"] == 0 for row in unmoved)
    states = states_of(rooms.trainer.evaluator, rooms.trainer.val, n_layers=3, d_model=16)
    assert states.shape == (4, len(rooms.trainer.val), 16)
