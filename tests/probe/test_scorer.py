"""One scorer for all: whose points they are and what their splits are called makes no difference; its state goes on."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.probe.pending import Captured, Found, numbers_of
from fastcluster_lm.probe.plan import EVERYTHING, narrowest_group
from fastcluster_lm.probe.points import labelled_points
from fastcluster_lm.probe.scorer import STEP_PLAN, Scorer
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.parts import PLANS
from fastcluster_lm.scores.points import Points

CPU = torch.device("cpu")
SCORES = ScoresConfig(n_neighbors=3, n_init=2, n_iter=40, warm_iter=10, step_iter=3, n_nulls=3, perplexity=5.0)
LAYERS, N = 3, 60


def a_scorer(**changes) -> Scorer:
    return Scorer(replace(SCORES, **changes), choose_engine("fused", CPU), CPU, 0)


def two_splits() -> dict[str, Points]:
    """Label points of two splits, half of each on the map."""
    at = torch.arange(N)
    labels = {"task": at % 3, "distribution": at % 6, "input": at // 6 % 2, "output": at // 12 % 2}
    return labelled_points({"train": labels, "val": labels}, map_points=30, n_neighbors=3, seed=0)[0]


def states_at(step: int) -> dict[str, Tensor]:
    """Make states that gather by task, a little elsewhere at every step."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.randn(LAYERS, 3, 8, generator=draw)
    return {
        name: centre[:, torch.arange(N) % 3] + (1 + 0.05 * step) * torch.randn(LAYERS, N, 8, generator=draw)
        for name in ("train", "val")
    }


def probe_of(points: dict[str, Points], step: int, *, full: bool = True) -> Captured:
    states = states_at(step)
    placed = {name: own.at(states[name]) for name, own in points.items()}
    if not full:
        placed = {name: own.shown() for name, own in list(placed.items())[:1]}
    return Captured(step, placed, full, key_frame=step == 0)


def test_splits_may_have_any_name_in_full_and_in_step_probes():
    ours, theirs = a_scorer(), a_scorer()
    points = two_splits()
    other = {f"my {name}": replace(own, name=f"my {name}") for name, own in points.items()}
    renamed = {f"my {name}": state for name, state in states_at(0).items()}
    found = ours.score(probe_of(points, 0)).rows
    placed = {name: own.at(renamed[name]) for name, own in other.items()}
    assert [{**row, "split": f"my {row['split']}"} for row in found] == theirs.score(Captured(0, placed)).rows
    # a step probe goes on from the bank's task clusters, whatever it is called
    placed = {name: own.shown() for name, own in list(placed.items())[:1]}
    step = [scorer.score(Captured(1, own, full=False)).rows for scorer, own in (
        (ours, {"train": replace(placed["my train"], name="train")}), (theirs, placed),
    )]  # fmt: skip
    assert step[0] and [{**row, "split": "my train"} for row in step[0]] == step[1]
    assert {(row["group"], row["labels"]) for row in step[0]} == set(STEP_PLAN)


def test_a_scorer_that_is_stopped_goes_on_with_the_same_rows_and_maps():
    points, whole = two_splits(), a_scorer()
    for step in range(3):
        whole.score(probe_of(points, step, full=step != 2))
    again = a_scorer()
    again.load_state({name: value.clone() for name, value in whole.state().items()})
    for step in (3, 4):
        ours, theirs = (one.score(probe_of(points, step, full=step != 3)) for one in (whole, again))
        assert ours.rows and ours.rows == theirs.rows
        assert all((ours.maps[name] == theirs.maps[name]).all() for name in ours.maps)
    assert ours.warm and ours.maps


def test_a_scorer_that_begins_anew_remembers_nothing():
    points, scorer = two_splits(), a_scorer()
    first = scorer.score(probe_of(points, 1))
    assert scorer.score(probe_of(points, 1)).warm
    scorer.begin_anew()
    assert scorer.state() == {}
    again = scorer.score(probe_of(points, 1))
    assert not again.warm and again.rows == first.rows and (again.maps["points"] == first.maps["points"]).all()


def test_labels_decide_which_rows_there_are_and_which_group_is_the_narrowest():
    points = two_splits()["val"]
    assert EVERYTHING.rows("hidden", points.labels) == PLANS["hidden"] and narrowest_group(points) == "input_output"
    alone = replace(points, labels={"task": points.labels["task"]})
    assert EVERYTHING.rows("hidden", alone.labels) == (("all", "task"),) and narrowest_group(alone) == "all"
    for space in ("hidden", "map"):
        assert set(EVERYTHING.rows(space, ("task", "input"))) < set(PLANS[space])


@pytest.mark.parametrize("has_map", [False, True])
def test_what_is_fetched_comes_back_under_its_own_name(has_map):
    def found(first: int) -> Found:
        numbers = iter(range(first, first + 100))
        one = lambda *shape: torch.full(shape or (LAYERS,), next(numbers))  # noqa: E731
        return Found(
            [[one(2, 2), one()], [one()]],
            {"kl": one(), "trustworthiness": one()},
            {("val", "task", "hidden"): one(), ("val", "task", "map"): one()},
            one(LAYERS, 4, 2) if has_map else None,
            None if has_map else one(),
            {"train": one(), "val": one()},
            warm=has_map,
        )

    ours, other = found(0), found(1000)
    again = other.with_tensors(iter(ours.tensors()))
    assert [part.tolist() for part in again.tensors()] == [part.tolist() for part in ours.tensors()]
    assert (again.columns["kl"] == ours.columns["kl"]).all() and (again.finite["val"] == ours.finite["val"]).all()
    assert again.warm is ours.warm is has_map
    assert all((again.spread[key] == ours.spread[key]).all() for key in ours.spread)
    for name in ("place", "placed"):
        mine, given = getattr(again, name), getattr(ours, name)
        assert (mine is None) == (given is None) and (mine is None or torch.equal(mine, given))


def test_points_without_numbers_are_no_points_of_a_probe():
    points = two_splits()
    with pytest.raises(AssertionError, match="numbers its points"):
        numbers_of([points["train"], replace(points["val"], ids=None)])
