"""Tables of label pairs: hand counts, batches against loops, what is refused."""

import numpy as np
import pytest
import torch

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.scores.contingency import contingency_tables, factorize


def test_counts_pairs_of_strings_and_integers() -> None:
    tables = contingency_tables(["b", "a", "b", "b"], [7, -3, -3, 7])
    assert tables.dtype == np.int64
    assert tables.tolist() == [[1, 0], [1, 2]]


@pytest.mark.parametrize("shape", [(1,), (40,), (4, 10)])
@pytest.mark.parametrize("offset", [0, 3, 10**9, -2])
def test_whole_numbers_are_factorized_as_a_sort_would(shape: tuple[int, ...], offset: int) -> None:
    labels = np.random.default_rng(0).integers(0, 9, shape) * 2 + offset
    found, expected = np.unique(labels, return_inverse=True)
    codes, n_labels = factorize(labels)
    assert n_labels == len(found) and codes.dtype == np.int64
    np.testing.assert_array_equal(codes, expected.reshape(shape))


def test_factorizes_in_sorted_order() -> None:
    codes, n_labels = factorize([30, -5, 30, 12])
    assert (codes.tolist(), n_labels) == ([2, 0, 2, 1], 3)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_counts_a_batch_as_a_loop_does(kind: str) -> None:
    rng = np.random.default_rng(0)
    true, pred = rng.integers(0, 4, (3, 1, 50)), rng.integers(0, 5, (2, 50))
    expected = np.zeros((3, 2, 4, 5), dtype=np.int64)
    for i in range(3):
        for j in range(2):
            for a, b in zip(true[i, 0], pred[j], strict=True):
                expected[i, j, a, b] += 1
    given = torch.from_numpy(pred) if kind == "torch" else pred
    tables = contingency_tables(true, given, n_true=4, n_pred=5)
    assert isinstance(tables, torch.Tensor if kind == "torch" else np.ndarray)
    assert np.array_equal(np.asarray(tables), expected)


def test_one_true_labeling_serves_a_whole_batch() -> None:
    tables = contingency_tables([0, 0, 1], torch.tensor([[0, 0, 1], [1, 0, 1]]))
    assert tables.tolist() == [[[2, 0], [0, 1]], [[1, 1], [0, 1]]]


def test_empty_labels_give_an_empty_table() -> None:
    assert contingency_tables([], []).shape == (0, 0)
    assert contingency_tables(np.zeros((2, 0), int), np.zeros(0, int), n_true=3, n_pred=1).tolist() == [[[0]] * 3] * 2


def test_refuses_what_cannot_be_counted() -> None:
    with pytest.raises(ShapeError, match=r"\(3,\).*\(2,\).*same n"):
        contingency_tables([0, 1, 2], [0, 1])
    with pytest.raises(DataError, match="runs from 0 to 2; expected codes 0 to 1"):
        contingency_tables([0, 2], [0, 1], n_true=2)
    with pytest.raises(DataError, match="NaN"):
        contingency_tables([0.0, float("nan")], [0, 1])
    with pytest.raises(DataError, match="cannot be sorted"):
        contingency_tables(np.array([None, "a"], dtype=object), [0, 1])
    with pytest.raises(DataError, match="exceed 100000000 cells"):
        contingency_tables(np.arange(20_000), np.arange(20_000))
