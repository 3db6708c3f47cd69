"""Which rows a probe has is the caller's to choose: what is left out costs nothing, and changes no other row."""

from dataclasses import replace

import numpy as np
import pytest

from fastcluster_lm import ProbePlan
from fastcluster_lm.errors import UsageError
from fastcluster_lm.probe import scorer
from tests.probe.attached import QUICK, Net, instances
from tests.probe.attached_loops import attach

tokens, labels = instances()
KINDS = ("task", "distribution", "input", "output", "task_input")


def score(path, **options):
    """Score a still model once."""
    model = Net()
    model.noise = 0.0
    for weight in model.parameters():
        weight.data.copy_(np_like(weight))
    return attach(model, path, **options).step(0)


def np_like(weight):
    """Give a weight's numbers, the same for every model."""
    return weight.new_tensor(np.random.default_rng(weight.numel()).normal(size=tuple(weight.shape)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Score all there is."""
    return score(tmp_path_factory.mktemp("plan") / "run", plan=ProbePlan(KINDS))


def places(rows):
    """Give where rows stand."""
    return {(row["space"], row["group"], row["labels"]) for row in rows}


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (ProbePlan(("task",), (), map=False), {("hidden", "all", "task")}),
        (ProbePlan(("distribution",), ("input",), map=False),
         {("hidden", "all", "task"), ("hidden", "all", "distribution"), ("hidden", "input", "task"),
          ("hidden", "input", "distribution")}),
        (ProbePlan((), ("input_output",)),
         {("hidden", "all", "task"), ("hidden", "input_output", "task"), ("map", "all", "task")}),
    ],
)  # fmt: skip
def test_rows_are_those_of_the_plan_and_what_they_were(tmp_path, whole, plan, expected):
    rows = score(tmp_path / "run", plan=plan)
    assert places(rows) == expected
    assert rows == [row for row in whole if (row["space"], row["group"], row["labels"]) in expected]
    assert any((tmp_path / "run/maps").iterdir()) is plan.map


def test_what_is_left_out_is_not_made(tmp_path, monkeypatch):
    """Neither clusters nor spreads nor nulls nor a map: a plan is there to spare their time."""
    clustered, drawn, spread = [], [], []
    start, draw, cdnv = scorer.start_space, scorer.WarmMap.draw, scorer.class_distance_normalized_variance
    monkeypatch.setattr(
        scorer, "start_space", lambda space, **options: (clustered.append(space.plan), start(space, **options))[1]
    )
    monkeypatch.setattr(scorer.WarmMap, "draw", lambda *args, **options: drawn.append(1) or draw(*args, **options))
    monkeypatch.setattr(
        scorer, "class_distance_normalized_variance", lambda X, codes: (spread.append(1), cdnv(X, codes))[1]
    )
    rows = score(tmp_path / "run", plan=ProbePlan(("task",), (), map=False), scores=replace(QUICK, n_nulls=0))
    assert (clustered, len(drawn), len(spread)) == ([(("all", "task"),)], 0, 1)
    assert all(row["null_ari"] is None and row["ari"] is not None for row in rows)


@pytest.mark.parametrize(("n_words", "scored"), [(6, False), (18, True)])
def test_task_input_is_scored_where_its_clusters_have_points(tmp_path, n_words, scored):
    """Two words a task and input are two points a cluster; six words are six."""
    tokens, labels = instances(6)
    copies = n_words // 6
    given = {kind: values.repeat(copies) for kind, values in labels.items()}
    given["distribution"] = given["distribution"] + 6 * (np.arange(len(given["task"])) // 48)
    probe = attach(Net(), tmp_path / "run", inputs=tokens.repeat(copies, 1), labels=given)
    rows = probe.step(0)
    assert (
        ("hidden", "all", "task_input") in places(rows) if scored else "task_input" not in {r["labels"] for r in rows}
    )
    assert ("task_input" in probe.folder.config()["probe"]["plan"]["labels"]) is scored


@pytest.mark.parametrize(
    ("plan", "part"),
    [
        (lambda: ProbePlan(("taks",)), "labels of task, distribution, .* got 'taks'; did you mean 'task'"),
        (lambda: ProbePlan(groups=("inputs",)), "groups of all, input, input_output, got 'inputs'; did you mean"),
        (lambda: ProbePlan(("output",)), "asks for output, but labels= gives task alone"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path, plan, part):
    with pytest.raises(UsageError, match=part):
        attach(Net(), tmp_path / "run", labels=labels["task"], plan=plan())
    assert not (tmp_path / "run").exists()
