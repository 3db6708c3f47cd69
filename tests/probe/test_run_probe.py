"""The probe of a run: the rows that exist, what it keeps, and the settings it refuses."""

from dataclasses import replace

import pytest
import torch

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import Rooms
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.probe.points import label_kinds
from fastcluster_lm.scores.engines import TsneParams
from fastcluster_lm.scores.parts import PLANS, Scoring
from fastcluster_lm.scores.points import Points
from fastcluster_lm.scores.spaces import score_space
from fastcluster_lm.store import SCORE_COLUMNS
from fastcluster_lm.tasks import Task, TaskSet, taskset_of
from tests.laws.conftest import SMALL


@pytest.fixture
def run() -> Rooms:
    """Give the small run, untrained."""
    config = config_from_dict(SMALL)
    return Rooms(config, taskset_of(config.tasks, config.seed))


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


@pytest.mark.parametrize("position", ["input", "instruction"])
def test_a_probe_is_what_the_scores_give_for_the_states_and_settings_of_the_run(position):
    # at the instruction's end all points of an instruction coincide, so withholding them decides every neighbour
    # no setting at its default, so that none can be forgotten
    config = config_from_dict({**SMALL, "scores": {**SMALL["scores"], "n_neighbors": 4}})
    config = replace(config, probe=replace(config.probe, seed=3, position=position))
    run = Rooms(config, taskset_of(config.tasks, config.seed))
    for _ in range(4):
        run.trainer.advance()
    found = run.probe.score(0)
    hidden, on_map = {}, {}
    for name, source in run.probe.sources.items():
        states = torch.empty(3, len(source.instances), 16)
        run.trainer.evaluator.states_into(source.instances, states)
        hidden[name] = Points(name, states, label_kinds(source.instances, 2), source.instances.instruction.numpy())
    kept = {name: source.points.on_map.numpy() for name, source in run.probe.sources.items()}
    joint = torch.cat([hidden[name].X[:, kept[name]] for name in ("train", "val")], 1)
    points, kl = run.engine.tsne(joint, TsneParams(perplexity=5.0, n_iter=30, seed=3))
    assert torch.equal(torch.from_numpy(found.maps["points"]), points)
    assert found.maps["is_val"].tolist() == [0] * 48 + [1] * 48
    for name, place in (("train", points[:, :48]), ("val", points[:, 48:])):
        labels = {key: values[kept[name]] for key, values in hidden[name].labels.items()}
        on_map[name] = Points(name, place, labels, hidden[name].instructions[kept[name]])
    scoring = Scoring(n_neighbors=4, n_init=2, n_nulls=5, seed=3)
    expected = [
        row
        for space, splits in (("hidden", hidden), ("map", on_map))
        for row in score_space(
            splits, splits["train"], space=space, plan=PLANS[space], scoring=scoring, engine=run.engine
        )
    ]
    for row, wanted in zip(found.rows, expected, strict=True):
        assert {key: row[key] for key in wanted} == wanted
        assert row.get("kl") == (float(kl[row["layer"]]) if row["space"] == "map" else None)


def test_only_a_key_frame_starts_cold_and_a_warm_map_takes_fewer_steps(run, monkeypatch):
    asked, draw = [], run.engine.tsne
    monkeypatch.setattr(run.engine, "tsne", lambda X, params: (asked.append(params), draw(X, params))[1])
    maps = [run.probe.score(step).maps["points"] for step in (0, 4, 8, 12)]
    # every fourth step is probed, every second probe is a key frame
    assert [(params.init is None, params.n_iter) for params in asked] == [
        (True, 30),
        (False, 10),
        (True, 30),
        (True, 30),
    ]
    assert (asked[1].init.numpy() == maps[0]).all()
    assert (maps[2] == maps[0]).all()


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
    other = Rooms(config, taskset_of(config.tasks, config.seed))
    other.probe.load_state(state)
    assert other.probe.score(4).rows == expected


def test_the_map_names_its_points(run):
    maps = run.probe.score(0).maps
    n_train = int((maps["is_val"] == 0).sum())
    assert maps["points"].shape == (3, 96, 2) and n_train == 48
    val = run.probe.sources["val"]
    assert torch.equal(torch.from_numpy(maps["task"][n_train:]), val.instances.task[val.points.on_map])


@pytest.mark.parametrize("k", [13, 30])
def test_a_k_that_perfect_clusters_could_not_fill_is_refused(k):
    config = config_from_dict({**SMALL, "scores": {**SMALL["scores"], "n_neighbors": k}})
    with pytest.raises(ConfigError, match=r"scores.n_neighbors: expected at most \d+, .*got"):
        Rooms(config, taskset_of(config.tasks, config.seed))


def test_the_largest_k_is_that_of_the_worst_placed_point():
    # three distributions of one task, two of the other, four points of each with one input
    tasks = (Task("one", ("[ab]{4}", "a[cd]{3}", "d[ab]{3}"), (0, 1)), Task("two", ("[ef]{4}", "b[gh]{3}"), (1, 0)))
    taskset = TaskSet(inputs=("x", "y"), outputs=("0", "1"), lengths=(4,), tasks=tasks)
    small = {**SMALL, "data": {"n_train_instructions": 4, "n_val_instructions": 4}}
    small["probe"] = {"every": 4, "n_points": 40, "map_points": 20}

    def build(k):
        return Rooms(config_from_dict({**small, "scores": {**SMALL["scores"], "n_neighbors": k}}), taskset)

    assert build(4).probe.resolved()["probe_points"] == {"train": 40, "val": 40}
    with pytest.raises(ConfigError, match="expected at most 4, .* under other distributions .* got 5"):
        build(5)


def test_one_distribution_a_task_is_probed_too():
    config = config_from_dict(SMALL)
    config = replace(config, tasks=replace(config.tasks, n_distributions=1), probe=replace(config.probe, n_points=48))
    run = Rooms(config, taskset_of(config.tasks, config.seed))
    rows = [row for row in run.probe.score(0).rows if row["labels"] == "task"]
    # no task has a second distribution: nothing to reassign, and no neighbour of another one that could agree
    assert all(row["null_ari"] is None for row in rows)
    assert all(row["knn_share_across"] == 0 for row in rows if row["group"] == "all")
    assert all(row["ari"] is not None for row in rows)
