"""The probe of a run: the rows that exist, what it keeps, and the settings it refuses."""

from dataclasses import replace

import pytest
import torch

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import _Run
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.store import SCORE_COLUMNS
from fastcluster_lm.tasks import taskset_of
from tests.laws.conftest import SMALL


@pytest.fixture
def run() -> _Run:
    """Give the small run, untrained."""
    config = config_from_dict(SMALL)
    return _Run(config, taskset_of(config.tasks, config.seed))


def test_the_rows_are_those_of_the_design(run):
    rows = run.probe.score(0).rows
    hidden = {(row["group"], row["labels"]) for row in rows if row["space"] == "hidden"}
    on_map = {(row["group"], row["labels"]) for row in rows if row["space"] == "map"}
    everywhere = {("all", labels) for labels in ("task", "distribution", "input", "output", "task_input")}
    assert on_map == everywhere
    assert hidden == everywhere | {
        ("input", "task"),
        ("input", "distribution"),
        ("input", "output"),
        ("input_output", "task"),
    }
    # every row once for each layer and split
    assert len(rows) == 3 * 2 * (9 + 5)
    assert {key for row in rows for key in row} <= set(SCORE_COLUMNS)
    assert all(row["kl"] > 0 and row["warm"] is False for row in rows if row["space"] == "map" and row["layer"])


def test_a_warm_map_goes_on_from_the_last_one(run):
    first = run.probe.score(0)
    second = run.probe.score(4)
    assert not first.warm and second.warm
    # the states are the same, so a map that goes on stays near, and a cold one lies anywhere
    moved = abs(second.maps["points"] - first.maps["points"]).max()
    assert 0 < moved < abs(first.maps["points"]).max()
    assert all(row["warm"] == (row["space"] == "map") for row in second.rows)


def test_a_saved_probe_goes_on_with_the_same_rows(run):
    run.probe.score(0)
    state = {key: value.clone() for key, value in run.probe.state().items()}
    expected = run.probe.score(4).rows
    config = config_from_dict(SMALL)
    other = _Run(config, taskset_of(config.tasks, config.seed))
    other.probe.load_state(state)
    assert other.probe.score(4).rows == expected


def test_the_map_names_its_points(run):
    maps = run.probe.score(0).maps
    n_train = int((maps["is_val"] == 0).sum())
    assert maps["points"].shape == (3, 96, 2) and n_train == 48
    on_map = run.probe.sets["val"].on_map
    assert torch.equal(torch.from_numpy(maps["task"][n_train:]), run.probe.sets["val"].instances.task[on_map])


@pytest.mark.parametrize("k", [13, 30])
def test_a_k_that_perfect_clusters_could_not_fill_is_refused(k):
    config = config_from_dict({**SMALL, "scores": {**SMALL["scores"], "n_neighbors": k}})
    with pytest.raises(ConfigError, match=r"scores.n_neighbors: expected at most \d+, .*got"):
        _Run(config, taskset_of(config.tasks, config.seed))


def test_one_distribution_a_task_is_probed_too():
    config = config_from_dict(SMALL)
    config = replace(config, tasks=replace(config.tasks, n_distributions=1), probe=replace(config.probe, n_points=48))
    run = _Run(config, taskset_of(config.tasks, config.seed))
    rows = [row for row in run.probe.score(0).rows if row["labels"] == "task"]
    # no task has a second distribution: nothing to reassign, and no neighbour of another one that could agree
    assert all(row["null_ari"] is None for row in rows)
    assert all(row["knn_share_across"] == 0 for row in rows if row["group"] == "all")
    assert all(row["ari"] is not None for row in rows)
