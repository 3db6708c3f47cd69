"""The compiled agreement scores against the NumPy ones: counts, matchings, expected information, odd tables."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.label_agreement import label_agreement, op, reference
from fastcluster_lm.kernels.label_agreement.reference import AGREEMENTS

pytestmark = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])


def expected(tables: np.ndarray) -> np.ndarray:
    return np.stack([AGREEMENTS[name](tables) for name in AGREEMENTS], -1)


def compiled(tables: np.ndarray) -> np.ndarray:
    """Score tables (count, k_true, k_pred) of equally many points through labelings that have them."""
    count, *shape = tables.shape
    cells = [np.repeat(np.arange(table.size), table.ravel()) for table in tables]
    true, pred = np.stack([np.unravel_index(own, shape) for own in cells], 1)
    found = label_agreement(torch.from_numpy(true[:, None]), torch.from_numpy(pred[:, None]), *shape)
    return found.view(count, len(AGREEMENTS)).numpy()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14), st.integers(1, 14), st.integers(0, 300), st.floats(0, 1))
def test_tables_score_as_in_numpy(seed, k_true, k_pred, n_points, empty):
    rng = np.random.default_rng(seed)
    # labels and clusters without points
    shares = rng.dirichlet(np.full(k_true * k_pred, 0.3)).reshape(k_true, k_pred)
    shares[rng.random(k_true) < empty / 2] = 0
    shares[:, rng.random(k_pred) < empty / 2] = 0
    n_points *= bool(shares.any())
    tables = rng.multinomial(n_points, shares.ravel() / (shares.sum() or 1), size=6).reshape(6, k_true, k_pred)
    found = compiled(tables)
    np.testing.assert_allclose(found, expected(tables), atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", [(96, 96), (96, 12), (12, 96), (1, 9), (9, 1), (37, 36)])
@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_labelings_score_as_their_tables(shape, noise):
    rng = np.random.default_rng(0)
    n_true, n_pred = shape
    true = rng.integers(0, n_true, (2, 3, 500))
    pred = np.where(rng.random((2, 4, 500)) < noise, rng.integers(0, n_pred, (2, 4, 500)), true[:, :1] % n_pred)
    found = label_agreement(torch.from_numpy(true), torch.from_numpy(pred), n_true, n_pred).numpy()
    for j, s, layer in np.ndindex(2, 3, 4):
        table = np.zeros((1, n_true, n_pred), dtype=np.int64)
        np.add.at(table[0], (true[j, s], pred[j, layer]), 1)
        np.testing.assert_allclose(found[j, s, layer], expected(table)[0], atol=1e-10, rtol=0)


def test_both_ways_agree(monkeypatch):
    rng = np.random.default_rng(1)
    true, pred = (torch.from_numpy(rng.integers(0, k, (3, n, 60))) for k, n in ((5, 40), (7, 2)))
    fast = label_agreement(true, pred, 5, 7)
    monkeypatch.setattr(op, "library", lambda source: None)
    # so that the tables are counted in several parts
    monkeypatch.setattr(reference, "_TABLES", 3 * 2 * 5 * 7 * 6)
    plain = label_agreement(true, pred, 5, 7)
    assert plain.shape == fast.shape == (3, 40, 2, len(AGREEMENTS))
    np.testing.assert_allclose(fast, plain, atol=1e-10, rtol=0)
    monkeypatch.setattr(reference, "MOST_CELLS", 209)
    with pytest.raises(DataError, match="6 tables of 5 true x 7 predicted labels exceed 209 cells"):
        label_agreement(true, pred, 5, 7)


def test_pair_counts_do_not_overflow_at_five_million_points():
    quarter = 1_250_000
    tables = np.array([[[quarter, quarter], [0, 2 * quarter]]])
    np.testing.assert_allclose(compiled(tables), expected(tables), atol=1e-6)


def test_scores_do_not_depend_on_the_threads():
    rng = np.random.default_rng(2)
    true, pred = torch.from_numpy(rng.integers(0, 12, (4, 20, 300))), torch.from_numpy(rng.integers(0, 9, (4, 7, 300)))
    before = native.thread_count()
    try:
        native.use_threads(1)
        one = label_agreement(true, pred, 12, 9)
        native.use_threads(3)
        assert torch.equal(one, label_agreement(true, pred, 12, 9))
    finally:
        native.use_threads(before)


def test_codes_out_of_range_and_shapes_that_differ_are_refused():
    codes = torch.zeros(1, 2, 5, dtype=torch.int64)
    with pytest.raises(DataError, match="clusterings run from 0 to 0; expected 0 to -1"):
        label_agreement(codes, codes, 1, 0)
    with pytest.raises(DataError, match="labelings run from -1 to -1"):
        label_agreement(codes - 1, codes, 3, 3)
    with pytest.raises(ShapeError, match=r"labelings have shape \(1, 2, 5\), clusterings \(1, 2, 4\)"):
        label_agreement(codes, codes[..., :4], 1, 1)
