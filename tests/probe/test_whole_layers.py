"""A layer whose states are not finite is named and not scored; the others are as they would be without it."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcluster_lm.config import ScoresConfig, config_from_dict
from fastcluster_lm.engine import Rooms
from fastcluster_lm.probe.pending import Captured
from fastcluster_lm.probe.points import labelled_points
from fastcluster_lm.probe.scorer import Scorer
from fastcluster_lm.probe.whole_layers import Whole, describe_broken
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.points import Points
from fastcluster_lm.store.rows import score_row
from fastcluster_lm.tasks import taskset_of
from tests.laws.conftest import SMALL

SCORES = ScoresConfig(n_neighbors=3, n_init=2, n_iter=40, warm_iter=10, n_nulls=3, perplexity=5.0)
# what a row says of the points without a look at them
KNOWN = {"step", "layer", "split", "space", "group", "labels", "tier", "source", "age_steps", "n_points", "n_clusters"}


def a_run(source: str = "fresh", **probe) -> Rooms:
    config = config_from_dict({**SMALL, "probe": {**SMALL["probe"], "source": source, **probe}})
    return Rooms(config, taskset_of(config.tasks, config.seed))


def poisoned(run: Rooms, when: dict[int, tuple[list[int], float]], sets: tuple[str, ...] = ("train", "val")) -> None:
    """Let the states of some layers and sets hold a value at some probes, counted by what the probe runs."""
    whole, scored = run.trainer.evaluator.states_into, [-1]
    held = {len(run.probe.sources[name].instances) for name in sets} if len(sets) == 1 else None
    score = run.probe.score

    def count(step):
        scored[0] += 1
        return score(step)

    def states_into(instances, buffer):
        norms = whole(instances, buffer)
        layers, value = when.get(scored[0], ([], 0.0))
        is_val = instances.instruction is run.probe.sources["val"].instances.instruction
        if layers and (held is None or is_val == (sets == ("val",))):
            buffer[layers, 3, 1] = value
            if norms is not None:
                norms[layers, 3] = value
        return norms

    run.probe.score = count
    run.trainer.evaluator.states_into = states_into


def a_scorer() -> Scorer:
    return Scorer(SCORES, choose_engine("fused", "cpu"), torch.device("cpu"), 0)


def captured(step: int, points: dict[str, Points], states: dict[str, Tensor]) -> Captured:
    return Captured(step, {name: own.at(states[name]) for name, own in points.items()}, key_frame=step == 0)


def of_layers(rows: list[dict], layers: list[int]) -> list[dict]:
    return [row for row in rows if row["layer"] in layers]


def points_of(layers: int, n: int = 60) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Make states of two splits that gather by task a little, and labels."""
    draw = torch.Generator().manual_seed(0)
    task = torch.arange(n) % 3
    centre = torch.randn(layers, 3, 8, generator=draw)
    states = {name: centre[:, task] + torch.randn(layers, n, 8, generator=draw) for name in ("train", "val")}
    return states, {name: {"task": task, "distribution": torch.arange(n) % 6} for name in states}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_other_layers_are_scored_as_if_there_were_no_such_layer(value, split):
    states, labels = points_of(3)
    points, _ = labelled_points(labels, map_points=60, n_neighbors=3, seed=0)
    ours, alone = (a_scorer() for _ in range(2))
    for step in range(6):
        # points wander, so that maps depend on all that was before
        states = {name: own + 0.1 * step for name, own in states.items()}
        given = {name: own.clone() for name, own in states.items()}
        if step in (2, 3):
            given[split][1, 7, 2] = value
        found = ours.score(captured(step, points, given))
        others = {name: own[[0, 2]] for name, own in states.items()}
        expected = alone.score(captured(step, points, others))
        for at, layer in enumerate((0, 2)):
            wanted = [{**row, "layer": layer} for row in of_layers(expected.rows, [at])]
            assert of_layers(found.rows, [layer]) == wanted
            assert (found.maps["points"][layer] == expected.maps["points"][at]).all()
        broken = of_layers(found.rows, [1])
        assert len(broken) == len(of_layers(found.rows, [0]))
        if step in (2, 3):
            assert found.skipped == f"layer 1: states of {split} are not finite"
            assert all(row[name] is None for row in broken for name in row.keys() - KNOWN - {"engine"})
            assert np.isnan(found.maps["points"][1]).all()
        else:
            assert found.skipped is None and all(row["knn_share"] is not None for row in broken)
            assert np.isfinite(found.maps["points"]).all()
        # a map that was there goes on once the layer can be scored
        assert found.warm == (step > 0)
        first = next(row for row in broken if (row["space"], row["group"]) == ("hidden", "all"))
        # what its neighbours were at a probe that skipped it is not known
        assert (first.get("neighbor_overlap") is None) == (step in (0, 2, 3, 4))


@pytest.mark.parametrize("layers", [[1], [0], [0, 1, 2], [2, 1]])
@pytest.mark.parametrize("source", ["fresh", "batch"])
@pytest.mark.parametrize("worker", ["full", "step"])
def test_probes_of_a_run_skip_the_layer_and_go_on_with_it(layers, source, worker):
    changes = {"every": 1, "full_every": 3} if worker == "step" else {}
    run, undisturbed = a_run(source, **changes), a_run(source, **changes)
    poisoned(run, {2: (layers, float("nan")), 3: (layers, float("inf"))})
    others = [layer for layer in range(3) if layer not in layers]
    for number in range(7):
        step = number * (1 if worker == "step" else 4)
        found, expected = run.probe.score(step), undisturbed.probe.score(step)
        for row in found.rows:
            json.dumps(score_row(row), allow_nan=False)
        assert of_layers(found.rows, others) == of_layers(expected.rows, others)
        if number not in (2, 3):
            assert found.skipped is None and len(found.rows) == len(expected.rows)
            assert all(row["ari"] is not None for row in of_layers(found.rows, layers) if row["group"] == "all")
        elif found.rows:
            assert found.skipped.count("not finite") == len(layers)
            assert all(row["ari"] is None for row in of_layers(found.rows, layers))


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_split_alone_takes_the_layer_out(split):
    run = a_run()
    poisoned(run, {1: ([1], float("nan"))}, (split,))
    run.probe.score(0)
    found = run.probe.score(4)
    assert found.skipped == f"layer 1: states of {split} are not finite"
    assert {row["split"] for row in of_layers(found.rows, [1])} == {"train", "val"}
    assert all(row["ari"] is None for row in of_layers(found.rows, [1]))


@pytest.mark.parametrize("layers", [[2], [0, 1, 2]])
def test_a_layer_that_was_never_whole_makes_its_first_map_cold(layers):
    for changes in ({}, {"every": 1, "full_every": 3}):
        run = a_run(**changes)
        poisoned(run, dict.fromkeys((0, 1, 2), (layers, float("nan"))))
        steps = (0, 1, 2, 3, 4, 5) if changes else (0, 4, 20, 28, 36)
        found = [run.probe.score(step) for step in steps]
        assert [one.skipped is None for one in found] == [False] * 3 + [True] * (len(steps) - 3)
        # the others' maps went on meanwhile
        assert not found[0].warm and found[1].warm
        if not changes:
            assert [one.warm for one in found] == [False, True, True, False, True]
        for one in found[3:]:
            assert all(row["ari"] is not None for row in of_layers(one.rows, layers) if row["group"] == "all")
        assert np.isfinite(found[3].maps["points"]).all()


def test_a_step_probe_has_no_map_of_a_layer_that_has_none_yet():
    run = a_run(every=1, full_every=6)
    poisoned(run, dict.fromkeys((0, 1), ([2], float("nan"))))
    found = [run.probe.score(step) for step in range(4)]
    for one in found[2:]:
        assert one.skipped is None
        by_space = {row["space"]: row["ari"] for row in of_layers(one.rows, [2])}
        assert by_space["hidden"] is not None and by_space["map"] is None
        assert all(row["ari"] is not None for row in of_layers(one.rows, [0, 1]))


@pytest.mark.parametrize("first", [0, 1])
def test_a_saved_probe_goes_on_in_the_same_way(first):
    when = {number: ([1], float("nan")) for number in (first, first + 1)}
    run, other = a_run(every=1, full_every=4), a_run(every=1, full_every=4)
    poisoned(run, when)
    found = []
    for step in range(8):
        if step == 2:
            state = {name: value.clone() for name, value in run.probe.state().items()}
        found.append(run.probe.score(step))
    other.probe.load_state(state)
    poisoned(other, {number - 2: what for number, what in when.items() if number >= 2})
    for step in range(2, 8):
        again = other.probe.score(step)
        assert again.rows == found[step].rows and again.skipped == found[step].skipped


def test_values_whose_sum_alone_overflows_are_scored():
    states, labels = points_of(2)
    states = {name: own * 1e37 for name, own in states.items()}
    points, _ = labelled_points(labels, map_points=60, n_neighbors=3, seed=0)
    found = a_scorer().score(captured(0, points, states))
    assert found.skipped is None and all(row["ari"] is not None for row in found.rows)


def test_what_stands_in_is_a_layer_that_is_whole_or_zero():
    values = torch.tensor([[torch.nan, 1.0], [2.0, 3.0], [torch.inf, 0.0]])
    whole = Whole.of(torch.tensor([False, True, False]))
    assert whole.stand_in(values).tolist() == [[2.0, 3.0]] * 3
    assert Whole.of(torch.zeros(3, dtype=torch.bool)).stand_in(values).tolist() == [[0.0, 0.0]] * 3
    assert whole.keep(values, torch.full((3, 2), 9.0)).tolist() == [[9.0, 9.0], [2.0, 3.0], [9.0, 9.0]]


def test_a_description_names_layers_and_splits():
    finite = {"train": [True, False, False], "val": [True, True, False]}
    assert describe_broken(finite) == (
        "layer 1: states of train are not finite; layer 2: states of train and val are not finite"
    )
    assert describe_broken({}) is None and describe_broken({"val": [True]}) is None
