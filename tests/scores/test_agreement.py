"""Agreement scores: worked by hand, against scikit-learn and plain loops, controls, degenerate labels."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.label_agreement.reference import AGREEMENTS
from fastcluster_lm.scores.agreement import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    f1_bcubed_score,
    f1_pairwise_score,
    f1_score,
)
from fastcluster_lm.scores.contingency import contingency_tables

Score = Callable[..., float]
SCORES: list[Score] = [
    adjusted_rand_score,
    adjusted_mutual_info_score,
    f1_score,
    f1_pairwise_score,
    f1_bcubed_score,
]


@st.composite
def labelings(draw: st.DrawFn, max_points: int = 40, max_labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(1, max_points))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k_true, k_pred = draw(st.integers(1, max_labels)), draw(st.integers(1, max_labels))
    true, noise = rng.integers(0, k_true, n), rng.integers(0, k_pred, n)
    return true, np.where(rng.random(n) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])), true, noise)


def test_ari_worked_by_hand() -> None:
    # pairs: 1 in common, 2 true, 1 predicted, 6 in all: (1 - 2/6) / (3/2 - 2/6) = 4/7
    assert adjusted_rand_score([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx(4 / 7, abs=1e-15)
    # 0 in common of 2 and 2: (0 - 4/6) / (2 - 4/6) = -1/2
    assert adjusted_rand_score([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(-1 / 2, abs=1e-15)


def test_ami_worked_by_hand() -> None:
    # MI 0; each of four cells expects P(x=2) * 2/4 * log 2 = log 2 / 12, entropies log 2: (0 - 1/3) / (1 - 1/3)
    assert adjusted_mutual_info_score([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(-1 / 2, abs=1e-14)


def test_f1s_worked_by_hand() -> None:
    true, pred = list("aaabbc"), [0, 0, 1, 1, 1, 1]
    # cell F1s: a-0 4/5, a-1 2/7, b-1 4/6, c-1 2/5; a-0 and b-1 are matched, c is not
    assert f1_score(true, pred) == pytest.approx((4 / 5 + 4 / 6) / 3, abs=1e-15)
    # pairs: 2 in common, 4 true, 7 predicted
    assert f1_pairwise_score(true, pred) == pytest.approx(4 / 11, abs=1e-15)
    # precision 7/12, recall 7/9
    assert f1_bcubed_score(true, pred) == pytest.approx(2 / 3, abs=1e-15)


def test_f1_matches_by_f1_and_not_by_overlap() -> None:
    # overlap would match a with the large cluster 0 (3 points); F1 matches it with its pure cluster 1
    true, pred = [0] * 5 + [1] * 20, [0] * 3 + [1] * 2 + [0] * 20
    assert f1_score(true, pred) == pytest.approx((4 / 7 + 40 / 43) / 2, abs=1e-15)


@settings(max_examples=80, deadline=None)
@given(labelings(max_points=200, max_labels=15))
def test_ari_and_ami_equal_scikit_learn(labels: tuple[np.ndarray, np.ndarray]) -> None:
    true, pred = labels
    assert adjusted_rand_score(true, pred) == pytest.approx(metrics.adjusted_rand_score(true, pred), abs=1e-12)
    expected = metrics.adjusted_mutual_info_score(true, pred)
    assert adjusted_mutual_info_score(true, pred) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("n", "k", "skew"), [(2_000, 300, 1.0), (10_000, 20, 6.0), (100_000, 12, 2.0)])
def test_many_points_equal_scikit_learn(n: int, k: int, skew: float) -> None:
    rng = np.random.default_rng(n)
    true = (k * rng.random(n) ** skew).astype(int)
    pred = np.where(rng.random(n) < 0.3, true, rng.integers(0, k, n))
    assert adjusted_rand_score(true, pred) == pytest.approx(metrics.adjusted_rand_score(true, pred), abs=1e-12)
    expected = metrics.adjusted_mutual_info_score(true, pred)
    assert adjusted_mutual_info_score(true, pred) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_five_million_points_equal_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    true = rng.integers(0, 10, 5_000_000)
    pred = np.where(rng.random(len(true)) < 0.2, true, rng.integers(0, 10, len(true)))
    assert adjusted_rand_score(true, pred) == pytest.approx(metrics.adjusted_rand_score(true, pred), abs=1e-12)
    expected = metrics.adjusted_mutual_info_score(true, pred)
    assert adjusted_mutual_info_score(true, pred) == pytest.approx(expected, abs=1e-6)


def test_pair_counts_do_not_overflow_at_five_million_points() -> None:
    # half of the points of each label move over: known in closed form, in Python's exact integers
    quarter = 1_250_000
    table = np.array([[[quarter, quarter], [0, 2 * quarter]]])
    both = sum(x * x for x in (quarter, quarter, 2 * quarter)) - 4 * quarter
    pairs_true, pairs_pred = 8 * quarter**2 - 4 * quarter, 10 * quarter**2 - 4 * quarter
    total = 4 * quarter * (4 * quarter - 1)
    exact = (both * total - pairs_true * pairs_pred) / ((pairs_true + pairs_pred) * total / 2 - pairs_true * pairs_pred)
    assert AGREEMENTS["ari"](table)[0] == pytest.approx(exact, abs=1e-12)
    assert AGREEMENTS["f1_pairwise"](table)[0] == pytest.approx(2 * both / (pairs_true + pairs_pred), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(labelings(max_points=25, max_labels=4))
def test_f1s_equal_plain_loops(labels: tuple[np.ndarray, np.ndarray]) -> None:
    true, pred = labels
    assert f1_score(true, pred) == pytest.approx(_loop_f1(true, pred), abs=1e-12)
    pairs = list(itertools.combinations(range(len(true)), 2))
    same_true, same_pred = ({(i, j) for i, j in pairs if side[i] == side[j]} for side in (true, pred))
    wanted = 2 * len(same_true & same_pred) / (len(same_true) + len(same_pred)) if same_true or same_pred else 1.0
    assert f1_pairwise_score(true, pred) == pytest.approx(wanted, abs=1e-12)
    precision, recall = [], []
    for i in range(len(true)):
        both = sum(true[i] == true[j] and pred[i] == pred[j] for j in range(len(true)))
        precision.append(both / sum(pred[i] == pred[j] for j in range(len(true))))
        recall.append(both / sum(true[i] == true[j] for j in range(len(true))))
    p, r = math.fsum(precision) / len(true), math.fsum(recall) / len(true)
    assert f1_bcubed_score(true, pred) == pytest.approx(2 * p * r / (p + r), abs=1e-12)


def _loop_f1(true: np.ndarray, pred: np.ndarray) -> float:
    labels, clusters = sorted(set(true)), sorted(set(pred))
    # None stands for "no cluster", as often as there are labels
    options: list[int | None] = [*clusters, *[None] * len(labels)]
    best = 0.0
    for matching in itertools.permutations(options, len(labels)):
        total = 0.0
        for label, cluster in zip(labels, matching, strict=True):
            if cluster is not None:
                hits = int(((true == label) & (pred == cluster)).sum())
                total += 2 * hits / int((true == label).sum() + (pred == cluster).sum())
        best = max(best, total / len(labels))
    return best


@pytest.mark.parametrize("score", SCORES)
@settings(max_examples=25, deadline=None)
@given(labels=labelings(), seed=st.integers(0, 1000))
def test_names_and_order_of_labels_do_not_matter(
    score: Score, labels: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    true, pred = labels
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(len(true)), rng.permutation(100) - 50
    renamed = [f"task {name}" for name in names[true][order]]
    assert score(renamed, names[::-1][pred][order]) == pytest.approx(score(true, pred), abs=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_the_same_partition_scores_one(score: Score) -> None:
    for true in ([0] * 5, list(range(5)), [0, 0, 1, 1, 1], [3], []):
        assert score(true, [-x for x in true]) == 1.0
    assert score(torch.tensor([4, 4, 9]), np.array(["x", "x", "y"])) == 1.0


@pytest.mark.parametrize(("true", "pred"), [([0] * 4, [0, 1, 2, 3]), ([0, 1, 2, 3], [0] * 4), ([0, 0], [0, 1])])
def test_one_class_against_many_is_zero_and_never_nan(true: list[int], pred: list[int]) -> None:
    assert adjusted_rand_score(true, pred) == 0.0
    assert adjusted_mutual_info_score(true, pred) == 0.0
    assert all(0.0 <= score(true, pred) <= 1.0 for score in SCORES)


@pytest.mark.parametrize("score", SCORES)
def test_a_point_shuffle_scores_chance(score: Score) -> None:
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(10), 60)
    shuffled = [score(true, rng.permutation(true)) for _ in range(30)]
    # the F1s of a random labeling are near 1 / 10, matched ones a little above
    low, high = (-0.01, 0.01) if score in SCORES[:2] else (0.08, 0.16)
    assert low < np.mean(shuffled) < high


def test_a_batch_scores_as_its_tables_do_alone() -> None:
    rng = np.random.default_rng(1)
    true, pred = rng.integers(0, 5, (40, 30)), rng.integers(0, 7, (40, 30))
    # some labels are absent from some tables, one table is of one class, one is perfect, one has fewer points
    true[3], pred[4] = 2, true[4]
    tables = np.asarray(contingency_tables(true, pred, n_true=6, n_pred=8))
    tables[5] //= 2
    for name, score in zip(AGREEMENTS, SCORES, strict=True):
        batched = AGREEMENTS[name](tables)
        for i, table in enumerate(tables):
            rows, columns = (np.repeat(axis.ravel(), table.ravel()) for axis in np.indices(table.shape))
            assert batched[i] == pytest.approx(score(rows, columns), abs=1e-12)


def test_ami_of_unlike_margins_needs_no_dense_lookup() -> None:
    # 600 tables of 600 totals and many margins pass the limit of the lookup table
    rng = np.random.default_rng(2)
    tables = rng.integers(0, 400, (600, 3, 3))
    batched = AGREEMENTS["ami"](tables)
    alone = [AGREEMENTS["ami"](table[None])[0] for table in tables[::50]]
    assert np.abs(batched[::50] - alone).max() < 1e-12


def test_refuses_labels_that_are_not_one_a_point() -> None:
    with pytest.raises(ShapeError, match=r"\(2,\), labels_pred \(3,\)"):
        adjusted_rand_score([0, 1], [0, 1, 2])
    with pytest.raises(ShapeError, match=r"must be \(n,\)"):
        f1_score(np.zeros((2, 2), int), np.zeros((2, 2), int))
