"""Cluster scores: every row of the plan against plain loops, controls, degenerate points."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from fastcluster_lm.errors import DataError, EngineError, ShapeError, UsageError
from fastcluster_lm.scores.agreement import f1_bcubed_score, f1_pairwise_score, f1_score
from fastcluster_lm.scores.clusters import score_clusters
from fastcluster_lm.scores.engines import KMeansParams, choose_engine
from fastcluster_lm.scores.nulls import derive_seed
from fastcluster_lm.scores.parts import PLANS, Divisions, Scoring
from fastcluster_lm.scores.points import Points
from fastcluster_lm.scores.rows import ClusterSet
from fastcluster_lm.scores.spaces import Space, score_space, start_space

ENGINE = choose_engine("fused", "cpu")
SCORING = Scoring(n_neighbors=4, n_init=2, n_nulls=3, seed=11)
NULLED = {("all", "task"), ("input", "task"), ("input_output", "task"), ("all", "task_input")}


def _cells(points_a_cell: int) -> np.ndarray:
    """List (task, distribution within it, input) of 4 tasks x 2 distributions x 2 inputs."""
    return np.array([c for c in itertools.product(range(4), range(2), range(2)) for _ in range(points_a_cell)])


def _make_split(name: str, cells: np.ndarray, seed: int, first_instance: int = 0) -> Points:
    """Place points by task, input and distribution, two layers; two tasks share each output of an input."""
    rng = np.random.default_rng(seed)
    task, place, given = cells.T
    centers = np.random.default_rng(99).normal(size=(3, 8, 3))
    mean = np.stack([centers[0][given], centers[1][task] + 0.5 * centers[2][task * 2 + place]])
    labels = {
        "task": task,
        "distribution": task * 2 + place,
        "input": given,
        "output": (task + given) % 2,
        "task_input": task * 2 + given,
    }
    # two points of a distribution share an instruction
    instructions = first_instance + (task * 2 + place) * 100 + np.arange(len(task)) // 2
    X = torch.from_numpy((mean + 0.7 * rng.normal(size=mean.shape)).astype("f4"))
    return Points(name, X, {k: torch.from_numpy(v) for k, v in labels.items()}, torch.from_numpy(instructions))


def _balanced() -> tuple[Points, Points]:
    return _make_split("train", _cells(5), 1), _make_split("val", _cells(5), 2, 10_000)


def _uneven() -> tuple[Points, Points]:
    """Make groups of unlike size and k, too small ones, and one with too few points in the bank, in random order."""
    rng = np.random.default_rng(3)
    train, val = rng.permutation(_cells(8)), rng.permutation(_cells(7))
    # input 1 has no task 0 in train and two points of task 2: too few neighbours for val
    rare = (train[:, 2] == 1) & (train[:, 0] == 2)
    train = train[~((train[:, 0] == 0) & (train[:, 2] == 1)) & ~(rare & (np.cumsum(rare) > 2))]
    # input 0 has three points of task 1 in val: the group does not count
    rare = (val[:, 2] == 0) & (val[:, 0] == 1)
    val = val[~((val[:, 0] == 3) & (val[:, 1] == 1)) & ~(rare & (np.cumsum(rare) > 3))]
    return _make_split("train", train, 1), _make_split("val", val, 2, 10_000)


def _plain_rows(split: Points, bank: Points, space: str, scoring: Scoring) -> list[dict[str, Any]]:
    """Score a space as docs/architecture.md words it: one point, one group, one layer at a time."""
    rows = []
    own, banked = ({k: v.tolist() for k, v in s.labels.items()} for s in (split, bank))
    for group, labels in PLANS[space]:
        keys, bank_keys = (
            [{"all": 0, "input": o["input"][i], "input_output": o["input"][i] * 2 + o["output"][i]}[group] for i in ids]
            for o, ids in ((own, range(len(own["task"]))), (banked, range(len(banked["task"]))))
        )
        scores: list[list[dict[str, float | None]]] = [[] for _ in split.X]
        sizes, ks = [], []
        for value in sorted(set(keys)):
            at = [i for i, key in enumerate(keys) if key == value]
            bank_at = [i for i, key in enumerate(bank_keys) if key == value]
            counts = Counter(own[labels][i] for i in at)
            if group != "all" and (len(counts) < 2 or min(counts.values()) < 5):
                continue
            sizes.append(len(at))
            ks.append(len(counts))
            nulls = []
            if (group, labels) in NULLED:
                nulls = _plain_nulls(own, banked, at, bank_at, labels, scoring, derive_seed(11, "null", group, value))
            for layer in range(len(split.X)):
                params = KMeansParams(
                    n_clusters=len(counts), n_init=2, seed=derive_seed(11, "kmeans", space, group, len(counts))
                )
                pred = ENGINE.kmeans(split.X[layer : layer + 1, at], params).labels[0].tolist()
                scores[layer].append(_plain_scores(split, bank, layer, at, bank_at, own, banked, labels, pred, nulls))
        for layer, found in enumerate(scores):
            row: dict[str, Any] = {"layer": layer, "split": split.name, "space": space, "group": group}
            row |= {"labels": labels, "n_points": sum(sizes), "n_clusters": ks[0] if len(set(ks)) == 1 else None}
            for name in found[0] if found else ():
                values = [score[name] for score in found]
                row[name] = None if None in values else math.fsum(v for v in values if v is not None) / len(values)
            rows.append(row)
    return rows


def _plain_nulls(
    own: dict[str, list[int]],
    banked: dict[str, list[int]],
    at: list[int],
    bank_at: list[int],
    labels: str,
    scoring: Scoring,
    seed: int,
) -> list[tuple[list[Any], list[Any]]]:
    task_of = {own["distribution"][i]: own["task"][i] for i in at}
    task_of |= {banked["distribution"][i]: banked["task"][i] for i in bank_at}
    blocks = sorted(task_of)
    names = sorted(set(task_of.values()))
    codes = [[names.index(task_of[b]) for b in blocks]] * scoring.n_nulls
    drawn = np.random.default_rng(seed).permuted(np.array(codes), axis=1)
    nulls = []
    for row in drawn.tolist():
        new = dict(zip(blocks, row, strict=True))
        sides = []
        for side, ids in ((own, at), (banked, bank_at)):
            tasks = [new[side["distribution"][i]] for i in ids]
            inputs = [side["input"][i] for i in ids]
            sides.append(tasks if labels == "task" else list(zip(tasks, inputs, strict=True)))
        nulls.append((sides[0], sides[1]))
    return nulls


def _plain_scores(
    split: Points,
    bank: Points,
    layer: int,
    at: list[int],
    bank_at: list[int],
    own: dict[str, list[int]],
    banked: dict[str, list[int]],
    labels: str,
    pred: list[int],
    nulls: list[tuple[list[Any], list[Any]]],
) -> dict[str, float | None]:
    true, bank_true = [own[labels][i] for i in at], [banked[labels][i] for i in bank_at]
    assert split.instructions is not None and bank.instructions is not None
    distance = torch.cdist(split.X[layer, at].double(), bank.X[layer, bank_at].double()).tolist()
    everywhere, across = [], []
    for q, i in enumerate(at):
        ranked = np.argsort(distance[q], kind="stable").tolist()
        distinct = [j for j in ranked if split is not bank or bank.instructions[bank_at[j]] != split.instructions[i]]
        everywhere.append(distinct[:4])
        across.append([j for j in ranked if banked["distribution"][bank_at[j]] != own["distribution"][i]][:4])

    def share(neighbors: list[list[int]], true: list[Any], bank_true: list[Any]) -> float | None:
        if min(map(len, neighbors)) < 4:
            return None
        return float(np.mean([[bank_true[j] == true[q] for j in found] for q, found in enumerate(neighbors)]))

    wins = []
    for q, found in enumerate(everywhere):
        votes = Counter(bank_true[j] for j in found)
        wins.append(next((bank_true[j] for j in found if votes[bank_true[j]] == max(votes.values())), None) == true[q])
    null_true = [[str(x) for x in null] for null, _ in nulls]
    return {
        "ari": metrics.adjusted_rand_score(true, pred),
        "ami": metrics.adjusted_mutual_info_score(true, pred),
        "f1": f1_score(true, pred),
        "f1_pairwise": f1_pairwise_score(true, pred),
        "f1_bcubed": f1_bcubed_score(true, pred),
        "knn_share": share(everywhere, true, bank_true),
        "knn_accuracy": float(np.mean(wins)) if min(map(len, everywhere)) == 4 else None,
        "knn_share_across": None if labels == "distribution" else share(across, true, bank_true),
        "null_ari": _mean(metrics.adjusted_rand_score(n, pred) for n in null_true),
        "null_ami": _mean(metrics.adjusted_mutual_info_score(n, pred) for n in null_true),
        "null_f1": _mean(f1_score(n, pred) for n in null_true),
        "null_knn_share": _mean(share(everywhere, a, b) for a, b in nulls),
        "null_knn_share_across": _mean(share(across, a, b) for a, b in nulls),
        "ceiling_output": None
        if labels == "output"
        else metrics.adjusted_rand_score(true, [own["output"][i] for i in at]),
    }


def _mean(values: Any) -> float | None:
    found = list(values)
    return None if not found or None in found else math.fsum(found) / len(found)


@pytest.mark.parametrize("make", [_balanced, _uneven])
@pytest.mark.parametrize("space", ["hidden", "map"])
def test_every_row_of_the_plan_equals_plain_loops(make: Any, space: str) -> None:
    train, val = make()
    rows = score_space({"train": train, "val": val}, train, space=space, scoring=SCORING, engine=ENGINE)
    expected = [row for split in (train, val) for row in _plain_rows(split, train, space, SCORING)]
    assert len(rows) == len(expected) == 2 * 2 * len(PLANS[space])
    for row, plain in zip(rows, expected, strict=True):
        for name, value in plain.items():
            assert row[name] == (pytest.approx(value, abs=1e-9) if isinstance(value, float) else value), (name, plain)
    scored = [row for row in rows if row["ari"] is not None]
    assert any(row["null_ari"] is not None for row in scored) and any(row["ari"] > 0.2 for row in scored)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    train, val = _balanced()
    every = score_space({"train": train, "val": val}, train, space="hidden", scoring=SCORING, engine=ENGINE)
    alone = score_space({"val": val}, train, space="hidden", plan=[("input", "task")], scoring=SCORING, engine=ENGINE)
    assert alone == [r for r in every if (r["split"], r["group"], r["labels"]) == ("val", "input", "task")]
    again = score_space({"train": train, "val": val}, train, space="hidden", scoring=SCORING, engine=ENGINE)
    assert again == every


def test_centroids_start_the_next_call() -> None:
    train, val = _balanced()
    plan = [("all", "task"), ("input", "task"), ("all", "distribution")]
    cold = start_space(Space("hidden", {"train": train, "val": val}, train, plan), engine=ENGINE, scoring=SCORING)
    of_inputs = ClusterSet("hidden", "val", "input", 4)
    assert cold.centroids[of_inputs].shape == (2, 2, 4, 3)
    # without fresh restarts and with one iteration, only the right centroids lead to the same clusters
    going_on = Space("hidden", {"train": train, "val": val}, train, plan, cold.centroids)
    warm = start_space(going_on, engine=ENGINE, scoring=replace(SCORING, n_init=0, max_iter=1))
    assert warm.finish(warm.tensors()) == cold.finish(cold.tensors())
    broken = {of_inputs: cold.centroids[of_inputs][:1]}
    with pytest.raises(ShapeError, match="hidden/val/input/4'] holds 1 groups, the data 2"):
        start_space(Space("hidden", {"val": val}, train, plan, broken), engine=ENGINE, scoring=SCORING)


def test_the_name_under_which_centroids_are_saved_names_them() -> None:
    of_tasks = ClusterSet("hidden", "train", "all", 12)
    assert str(of_tasks) == "hidden/train/all/12"
    assert ClusterSet.named("hidden/train/all/12") == of_tasks


def test_centroids_of_groups_of_unlike_size_stand_in_the_groups_order() -> None:
    # the second of three groups is the larger one; each lies elsewhere
    given = torch.tensor([0] * 10 + [1] * 14 + [2] * 10)
    X = 100.0 * given[:, None] + torch.randn(34, 3, generator=torch.Generator().manual_seed(0))
    split = Points("train", X[None], {"task": torch.arange(34) % 2, "input": given})
    scored = start_space(Space("hidden", {"train": split}, split, [("input", "task")]), engine=ENGINE, scoring=SCORING)
    places = scored.centroids[ClusterSet("hidden", "train", "input", 2)].mean((1, 2, 3))
    torch.testing.assert_close(places, torch.tensor([0.0, 100, 200]), rtol=0, atol=3)


def test_states_that_hold_only_the_distribution_score_about_the_null() -> None:
    task, place, given = _cells(5).T
    centers = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 6)).astype("f4")) * 20
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=(80, 6)).astype("f4"))
    X = (centers[task * 2 + place] + noise)[None]
    rows = []
    for seed in range(30):
        # which distributions make up a task is drawn anew, so that the observed score is one of the null's draws
        drawn = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), 2))[task * 2 + place]
        rows += score_clusters(X, drawn, blocks=task * 2 + place, spaces=["hidden"], n_init=3, seed=seed)
    for name in ("ari", "knn_share", "knn_share_across"):
        score, null = (np.array([row[key] for row in rows]) for key in (name, f"null_{name}"))
        # within the null's interval: the mean of 30 differences is 0 up to their standard error
        assert abs((score - null).mean()) < 3 * (score - null).std() / 30**0.5 + 1e-9, name
    assert np.mean([row["ari"] for row in rows]) > 0.2


def _alone(labels: np.ndarray, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Score points without clusters by labels that are given."""
    X = np.random.default_rng(5).normal(size=(len(labels), 8)).astype("f4")
    return score_clusters(X, labels, spaces=["hidden"], n_init=2, seed=seed, **options)[0]


def test_labels_alone_have_a_permutation_for_a_null_and_a_base_rate() -> None:
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    row = _alone(labels, n_nulls=200)
    assert row["null_kind"] == "permutation" and row["base_rate"] == 0.5
    # neighbours drawn at random: another point has the query's label
    assert row["null_knn_share"] == pytest.approx(sum(n * (n - 1) for n in (30, 20, 10)) / (60 * 59), abs=0.01)
    assert abs(row["null_ari"]) < 0.01 and abs(row["null_ami"]) < 0.01 and 0.2 < row["null_f1"] < 0.5
    assert row["null_knn_share_across"] is None
    assert _alone(labels, n_nulls=200) == row and _alone(labels, 1, n_nulls=200)["null_ari"] != row["null_ari"]
    assert _alone(labels, n_nulls=0)["null_kind"] is None


def test_random_labels_score_about_their_permutation_null() -> None:
    rows = [_alone(np.random.default_rng(seed).permutation(np.arange(60) % 3), seed) for seed in range(30)]
    for name in ("ari", "ami", "f1", "knn_share"):
        score, null = (np.array([row[key] for row in rows]) for key in (name, f"null_{name}"))
        assert abs((score - null).mean()) < 3 * (score - null).std() / 30**0.5, name


def test_points_of_one_instruction_are_permuted_as_one() -> None:
    instances, labels = np.repeat(np.arange(12), 5), np.repeat(np.arange(12) % 3, 5)
    X = np.eye(12)[instances] * 50 + np.random.default_rng(0).normal(size=(60, 12))
    given = {"spaces": ["hidden"], "n_init": 2, "n_clusters": 12}
    # every cluster is an instruction: points that are drawn one by one would score 0
    as_one = score_clusters(X, labels, instances=instances, **given)[0]
    one_by_one = score_clusters(X, labels, **given)[0]
    assert as_one["null_kind"] == one_by_one["null_kind"] == "permutation"
    assert as_one["null_ari"] > 0.2 and abs(one_by_one["null_ari"]) < 0.05
    # an instruction of several tasks cannot move as one, so its points do
    mixed = score_clusters(X, np.arange(60) % 3, instances=instances, **given)[0]
    assert mixed["null_kind"] == "permutation" and abs(mixed["null_ari"]) < 0.05


def test_a_bank_and_its_queries_are_permuted_together() -> None:
    labels = np.arange(60) % 3
    split = Points("train", torch.randn(1, 60, 4, generator=torch.Generator().manual_seed(0)), {"task": labels})
    other = replace(split, name="val")
    plan, scoring = [("all", "task")], replace(SCORING, n_nulls=5)
    (own,) = Divisions().of(split, split, plan, scoring).parts
    # a point has one label, as a query and in the bank
    assert np.array_equal(own.nulls, own.bank_nulls) and own.null_kind == "permutation"
    bank = replace(split, X=split.X.clone())
    (one,) = Divisions().of(other, bank, plan, scoring).parts
    assert one.nulls is not None and not np.array_equal(one.nulls, one.bank_nulls)


def test_points_are_divided_anew_where_labels_or_instructions_are_others_alone() -> None:
    known, n = Divisions(), 12
    split = Points("train", torch.zeros(1, n, 2), {"task": np.arange(n) % 2}, np.arange(n) // 2)
    first = known.of(split, split, [("all", "task")], SCORING)
    assert known.of(split, split, [("all", "task")], SCORING) is first
    # written into by whoever has them
    split.instructions[:] = np.arange(n) // 3
    second = known.of(split, split, [("all", "task")], SCORING)
    assert first.withheld["knn_share"][0].tolist() == (np.arange(n) // 2).tolist()
    assert second.withheld["knn_share"][1].tolist() == (np.arange(n) // 3).tolist()
    split.labels["task"][:] = np.arange(n) // 6
    assert known.of(split, split, [("all", "task")], SCORING).parts[0].true.tolist() == [0] * 6 + [1] * 6


def test_known_distributions_name_their_null() -> None:
    rows = score_space(
        {"train": _make_split("train", _cells(5), 1)}, _make_split("train", _cells(5), 1),
        space="hidden", scoring=SCORING, engine=ENGINE,
    )  # fmt: skip
    for row in rows:
        expected = "distributions" if (row["group"], row["labels"]) in NULLED else None
        assert row["null_kind"] == expected and (row["null_ari"] is None) == (expected is None), row
    # one distribution a task cannot be reassigned, and nothing stands in for it
    assert _alone(np.arange(60) % 3, blocks=np.arange(60) % 3)["null_kind"] is None


def test_separated_blobs_score_one_in_both_spaces() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.array(["a", "b", "c"]), 20)
    X = rng.normal(size=(3, 8))[np.repeat(np.arange(3), 20)] * 50 + rng.normal(size=(2, 60, 8))
    blocks = np.arange(60) // 10
    with pytest.warns(UserWarning, match="perplexity 30 lowered to 19.7 for 60 points"):
        rows = score_clusters(X.astype("f4"), labels, blocks=blocks, groups=np.arange(60) % 2)
    assert [(r["space"], r["group"], r["layer"]) for r in rows] == list(
        itertools.product(("hidden", "map"), ("all", "groups"), (0, 1))
    )
    for row in rows:
        ones = ("ari", "ami", "f1", "f1_pairwise", "f1_bcubed", "knn_share", "knn_accuracy", "knn_share_across")
        assert [row[name] for name in ones] == pytest.approx([1.0] * 8), row
        assert row["null_ari"] < 0.8 and row["null_knn_share"] < 0.9
        assert (row["kl"] is None) == (row["space"] == "hidden")
        assert "split" not in row and "labels" not in row


def test_shuffled_labels_score_chance() -> None:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(4, 6))[np.repeat(np.arange(4), 50)] * 50 + rng.normal(size=(20, 200, 6))
    rows = score_clusters(X.astype("f4"), rng.permutation(np.repeat(np.arange(4), 50)), spaces=["hidden"], n_init=1)
    assert abs(np.mean([row["ari"] for row in rows])) < 0.03
    assert abs(np.mean([row["ami"] for row in rows])) < 0.03
    assert 0.2 < np.mean([row["knn_share"] for row in rows]) < 0.3


def test_a_bank_gives_the_neighbors_and_withholds_instances() -> None:
    X = np.array([[0.0], [10.0]], dtype="f4")
    bank = np.array([[0.1], [0.3], [10.1], [10.4]], dtype="f4")
    given: dict[str, Any] = {"bank": bank, "bank_labels": [5, 6, 6, 5], "n_neighbors": 1, "spaces": ["hidden"]}
    assert score_clusters(X, [5, 6], **given)[0]["knn_share"] == 1.0
    # the nearest is of the query's own instance, the second nearest bears the other label
    withheld = score_clusters(X, [5, 6], instances=["p", "q"], bank_instances=["p", "r", "q", "s"], **given)
    assert withheld[0]["knn_share"] == 0.0


@pytest.mark.filterwarnings("ignore:perplexity")
def test_queries_and_bank_share_one_map() -> None:
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(3), 10)
    X, bank = 40 * np.eye(3, 4)[labels] + rng.normal(size=(2, 30, 4))
    row = score_clusters(X, labels, bank=bank, bank_labels=labels, spaces=["map"])[0]
    assert (row["knn_share"], row["ari"], row["n_points"]) == (1.0, 1.0, 30)


def test_a_point_and_its_instance_are_not_neighbors_without_a_bank() -> None:
    X = np.array([[0.0], [0.1], [0.5], [0.6]], dtype="f4")
    labels = [0, 0, 1, 1]
    given: dict[str, Any] = {"n_neighbors": 1, "spaces": ["hidden"]}
    assert score_clusters(X, labels, **given)[0]["knn_share"] == 1.0
    assert score_clusters(X, labels, instances=[0, 0, 1, 1], **given)[0]["knn_share"] == 0.0


@pytest.mark.parametrize("spaces", [["hidden"], ["hidden", "map"]])
@pytest.mark.filterwarnings("ignore:perplexity")
def test_degenerate_points_have_defined_scores(spaces: list[str]) -> None:
    rng = np.random.default_rng(0)
    cases: dict[str, tuple[np.ndarray, Any, dict[str, Any]]] = {
        "equal": (np.ones((12, 3)), np.arange(12) % 3, {}),
        "one class": (rng.normal(size=(12, 3)), np.zeros(12), {}),
        "own class each": (rng.normal(size=(12, 3)), np.arange(12), {}),
        "few distinct": (np.repeat(rng.normal(size=(2, 3)), 6, 0), np.arange(12) % 5, {"n_clusters": 5}),
        "one dimension": (rng.normal(size=(12, 1)), np.arange(12) % 2, {}),
        "one point": (np.ones((1, 3)), [0], {}),
        "two points": (np.array([[0.0], [1.0]]), [0, 1], {}),
        "huge": (rng.normal(size=(12, 3)) * 1e30, np.arange(12) % 2, {}),
    }
    for name, (X, labels, options) in cases.items():
        rows = score_clusters(X, labels, blocks=np.arange(len(X)) // 2, spaces=spaces, n_init=2, **options)
        assert [row["space"] for row in rows] == spaces
        for row in rows:
            values = [value for value in row.values() if isinstance(value, float)]
            assert all(math.isfinite(value) for value in values), (name, row)
            assert row["ari"] is not None or (name, row["space"]) == ("one point", "map"), (name, row)
    hidden = {name: score_clusters(X, y, spaces=["hidden"], **o)[0] for name, (X, y, o) in cases.items()}
    assert (hidden["equal"]["ari"], hidden["one class"]["ari"]) == (0.0, 1.0)
    assert hidden["one point"]["knn_share"] is None and hidden["two points"]["knn_share"] is None
    assert hidden["own class each"]["ari"] == 1.0 and hidden["own class each"]["null_ari"] is None


def test_refuses_what_cannot_be_scored() -> None:
    X, labels = np.random.default_rng(0).normal(size=(6, 2)), [0, 0, 0, 1, 1, 1]
    with pytest.raises(DataError, match="NaN or infinity in layer 0"):
        score_clusters(np.where(np.eye(6, 2), np.nan, X), labels)
    with pytest.raises(DataError, match="no points"):
        score_clusters(X[:0], [])
    with pytest.raises(DataError, match="n_clusters is 9, but there are only 6"):
        score_clusters(X, labels, n_clusters=9)
    with pytest.raises(ShapeError, match=r"labels_true has shape \(5,\); expected \(6,\)"):
        score_clusters(X, labels[:5])
    with pytest.raises(ShapeError, match="layers and d must match"):
        score_clusters(X, labels, bank=X[:, :1], bank_labels=labels)
    with pytest.raises(DataError, match="blocks and bank_blocks go together"):
        score_clusters(X, labels, bank=X, bank_labels=labels, blocks=labels)
    with pytest.raises(DataError, match="bank_labels was given without a bank"):
        score_clusters(X, labels, bank_labels=labels)
    with pytest.raises(UsageError, match="did you mean 'hidden'"):
        score_clusters(X, labels, spaces=["hiden"])
    with pytest.raises(EngineError, match="fused"):
        score_clusters(X, labels, engine="fussed")
    train, val = _balanced()
    with pytest.raises(DataError, match="the plan scores labels 'tasks'"):
        score_space({"val": val}, train, space="hidden", plan=[("all", "tasks")], engine=ENGINE)
    with pytest.raises(DataError, match="the plan has group 'in_out'"):
        score_space({"val": val}, train, space="hidden", plan=[("in_out", "task")], engine=ENGINE)
