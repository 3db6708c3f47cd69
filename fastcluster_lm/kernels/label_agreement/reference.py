"""label_agreement in NumPy, from tables counted by torch: also what runs where no C++ compiler is, and on CUDA."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fastcluster_lm.errors import DataError

Tables = Int[np.ndarray, "tables k_true k_pred"]
Scores = Float[np.ndarray, " tables"]
_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

# terms of the hypergeometric sums held at once, in about ten float64 arrays: 80 MB
_CHUNK = 1_000_000
# cells of contingency tables held at once, in a few int64 or float64 arrays: 32 MB each
_TABLES = 4_000_000
# and the most of all tables of one labeling, in int64: 800 MB
MOST_CELLS = 100_000_000


def label_agreement(
    labelings: Int[Tensor, "sets s n"], clusterings: Int[Tensor, "sets l n"], n_true: int, n_pred: int
) -> Float[Tensor, "sets s l 5"]:
    """Score every labeling against every clustering of the same points, by their tables.

    Shapes: labelings (sets, s, n), clusterings (sets, l, n) -> (sets, s, l, 5) f64 on the host, in the order of
            AGREEMENTS
    Errors: DataError for tables of one labeling beyond MOST_CELLS
    """
    n_sets, n_labelings, _ = labelings.shape
    n_clusterings = clusterings.shape[1]
    n_cells = n_sets * n_clusterings * n_true * n_pred
    if n_cells > MOST_CELLS:
        raise DataError(
            f"{n_sets * n_clusterings} tables of {n_true} true x {n_pred} predicted labels exceed {MOST_CELLS} cells; "
            "give labels that repeat, or fewer clusterings at a time"
        )
    # counted where the clusterings lie
    pred = clusterings[:, None].long()  # (sets, 1, l, n)
    true = labelings.to(pred.device)[:, :, None].long()  # (sets, s, 1, n)
    scores = torch.empty(n_sets, n_labelings, n_clusterings, len(AGREEMENTS), dtype=torch.float64)
    # a few labelings at a time, so that their tables stay within the chunk
    step = max(1, _TABLES // max(1, n_cells))
    for start in range(0, n_labelings, step):
        some = true[:, start : start + step]
        shape = (n_sets, some.shape[1], n_clusterings)
        n_tables = n_sets * some.shape[1] * n_clusterings
        place = torch.arange(n_tables, device=pred.device).view(*shape, 1) * (n_true * n_pred)
        cells = (place + some * n_pred + pred).flatten()
        counts = torch.bincount(cells, minlength=n_tables * n_true * n_pred)
        tables = counts.view(n_tables, n_true, n_pred).cpu().numpy()
        found = np.stack([score(tables) for score in AGREEMENTS.values()], -1)  # (tables, 5)
        scores[:, start : start + step] = torch.from_numpy(found).view(*shape, len(AGREEMENTS))
    return scores


def adjusted_rand(tables: Tables) -> Scores:
    """Give the adjusted Rand index of every table; empty rows and columns do not count."""
    both, pairs_true, pairs_pred, total = _pairs(tables)
    only_true, only_pred = pairs_true - both, pairs_pred - both
    neither = total - both - only_true - only_pred
    # products of pair counts pass 2**63 from 70,000 points on: float64 from here
    b, t, p, o = (x.astype(np.float64) for x in (both, only_true, only_pred, neither))
    same = (only_true == 0) & (only_pred == 0)
    below = (b + t) * (t + o) + (b + p) * (p + o)
    return np.where(same, 1.0, 2.0 * (b * o - t * p) / np.where(same, 1.0, below))


def adjusted_mutual_information(tables: Tables) -> Scores:
    """Give the adjusted mutual information (arithmetic mean of the entropies) of every table."""
    rows, columns, totals = _margins(tables)
    n_rows, n_columns = (rows > 0).sum(1), (columns > 0).sum(1)
    both, pairs_true, pairs_pred, _ = _pairs(tables)
    # the same partition is 1 by definition, also where MI, its mean and the entropies coincide (all singletons)
    same = (both == pairs_true) & (both == pairs_pred)
    wanted = np.flatnonzero(~same & (n_rows > 1) & (n_columns > 1))
    scores = np.where(same, 1.0, 0.0)
    if len(wanted):
        tables, rows, columns, totals = tables[wanted], rows[wanted], columns[wanted], totals[wanted]
        expected = _expected_information(rows, columns, totals)
        largest = 0.5 * (_entropy(rows, totals) + _entropy(columns, totals))
        tiny = np.finfo(np.float64).eps
        scores[wanted] = (_information(tables, rows, columns, totals) - expected) / np.maximum(largest - expected, tiny)
    return scores


def matched_f1(tables: Tables) -> Scores:
    """Give the macro F1 over true labels under the best one-to-one matching, for every table."""
    # half a second to load, and compiled kernels do without it
    from scipy.optimize import linear_sum_assignment

    rows, columns, _ = _margins(tables)
    f1 = 2.0 * tables / np.maximum(rows[:, :, None] + columns[:, None, :], 1)
    n_labels = (rows > 0).sum(1)
    matched = np.array([linear_sum_assignment(table, maximize=True) for table in f1]).reshape(len(f1), 2, -1)
    sums = f1[np.arange(len(f1))[:, None], matched[:, 0], matched[:, 1]].sum(1)
    return np.where(n_labels > 0, sums / np.maximum(n_labels, 1), 1.0)


def pairwise_f1(tables: Tables) -> Scores:
    """Give the F1 over pairs of points, for every table."""
    both, pairs_true, pairs_pred, _ = _pairs(tables)
    below = (pairs_true + pairs_pred).astype(np.float64)
    return np.where(below > 0, 2.0 * both / np.maximum(below, 1.0), 1.0)


def bcubed_f1(tables: Tables) -> Scores:
    """Give the BCubed F1 of every table."""
    rows, columns, totals = _margins(tables)
    squares = np.square(tables, dtype=np.float64)
    n = np.maximum(totals, 1).astype(np.float64)
    recall = np.einsum("brc,br->b", squares, 1.0 / np.maximum(rows, 1)) / n
    precision = np.einsum("brc,bc->b", squares, 1.0 / np.maximum(columns, 1)) / n
    return np.where(totals > 0, 2.0 * precision * recall / np.maximum(precision + recall, 1e-300), 1.0)


# the columns of a score row, each with the function that fills it
AGREEMENTS: dict[str, Callable[[Tables], Scores]] = {
    "ari": adjusted_rand,
    "ami": adjusted_mutual_information,
    "f1": matched_f1,
    "f1_pairwise": pairwise_f1,
    "f1_bcubed": bcubed_f1,
}


def _margins(tables: Tables) -> tuple[_Ints, _Ints, _Ints]:
    rows, columns = tables.sum(2), tables.sum(1)
    return rows, columns, rows.sum(1)


def _pairs(tables: Tables) -> tuple[_Ints, _Ints, _Ints, _Ints]:
    """Count ordered pairs of distinct points: in one cell, of one true label, of one cluster, all; exact in int64."""
    rows, columns, n = _margins(tables)
    both = np.einsum("brc,brc->b", tables, tables) - n
    return both, np.einsum("br,br->b", rows, rows) - n, np.einsum("bc,bc->b", columns, columns) - n, n * (n - 1)


def _entropy(margins: _Ints, totals: _Ints) -> _Floats:
    shares = margins / totals[:, None]
    return -np.where(margins > 0, shares * np.log(np.where(margins > 0, shares, 1.0)), 0.0).sum(1)


def _information(tables: Tables, rows: _Ints, columns: _Ints, totals: _Ints) -> _Floats:
    at, row, column = np.nonzero(tables)
    cells, n = tables[at, row, column].astype(np.float64), totals[at].astype(np.float64)
    ratio = (cells * n) / (rows[at, row].astype(np.float64) * columns[at, column])
    sums: _Floats = np.bincount(at, weights=cells / n * np.log(ratio), minlength=len(tables)).astype(np.float64)
    return sums


def _expected_information(rows: _Ints, columns: _Ints, totals: _Ints) -> _Floats:
    """Sum the expected information over the cells of each table, computing each distinct (a, b, n) only once."""
    n_tables, k_true = rows.shape
    a_values, a_codes = np.unique(rows, return_inverse=True)
    b_values, b_codes = np.unique(columns, return_inverse=True)
    n_values, n_codes = np.unique(totals, return_inverse=True)
    size = (len(n_values), len(a_values), len(b_values))
    # a key numbers the triple; one row of a table at a time keeps any chunk small
    row_keys = ((n_codes.reshape(-1, 1) * size[1] + a_codes.reshape(rows.shape)) * size[2]).reshape(-1)  # (B * R,)
    b_codes = b_codes.reshape(columns.shape)
    step = max(1, _CHUNK // max(1, columns.shape[1]))
    chunks = [slice(start, start + step) for start in range(0, len(row_keys), step)]

    def keys(chunk: slice) -> _Ints:
        owner = np.arange(len(row_keys))[chunk] // k_true
        return row_keys[chunk, None] + b_codes[owner]

    dense = size[0] * size[1] * size[2] <= 16_000_000
    if dense:
        present = np.zeros(size[0] * size[1] * size[2], dtype=bool)
        for chunk in chunks:
            present[keys(chunk)] = True
        found = np.flatnonzero(present)
    else:
        found = np.unique(np.concatenate([np.unique(keys(chunk)) for chunk in chunks]))
    rest, b_at = np.divmod(found, size[2])
    n_at, a_at = np.divmod(rest, size[1])
    values = _expected_cells(a_values[a_at], b_values[b_at], n_values[n_at])
    sums = np.empty(len(row_keys))
    if dense:
        lookup = np.zeros(len(present))
        lookup[found] = values
        for chunk in chunks:
            sums[chunk] = lookup[keys(chunk)].sum(1)
    else:
        for chunk in chunks:
            sums[chunk] = values[np.searchsorted(found, keys(chunk))].sum(1)
    return sums.reshape(rows.shape).sum(1)


def _expected_cells(a: _Ints, b: _Ints, n: _Ints) -> _Floats:
    """Give E[x/n log(n x / (a b))] for x hypergeometric: the overlap of random sets of a and b points among n.

    Units:  nats
    Notes:  weights are normalised by their own sum, which removes the common error of the log factorials
    Source: Vinh, Epps & Bailey 2010, eq. 24a. The sum leaves out |x - ab/n| > 7 sqrt(m) + 2, m = min(a, b, n-a, n-b),
            whose probability is below 2 exp(-98) (Hoeffding 1963, section 6)
    """
    # loaded where it is needed, as in matched_f1
    from scipy.special import gammaln

    values = np.zeros(len(a))
    at = np.flatnonzero((a > 0) & (b > 0))
    a, b, n = a[at], b[at], n[at]
    width = 7.0 * np.sqrt(np.minimum(np.minimum(a, b), n - np.maximum(a, b))) + 2.0
    mean = a.astype(np.float64) * b / n
    low = np.maximum(np.maximum(0, a + b - n), np.floor(mean - width).astype(np.int64))
    lengths = np.minimum(np.minimum(a, b), np.ceil(mean + width).astype(np.int64)) - low + 1
    ends = np.cumsum(lengths)
    start = 0
    while start < len(at):
        # as many whole sums as fit the chunk, at least one
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start] - lengths[start]) + _CHUNK, side="right")))
        part, count = slice(start, stop), lengths[start:stop]
        first = np.cumsum(count) - count
        x = np.arange(int(count.sum())) - np.repeat(first - low[part], count)
        x_a, x_b, x_n = (np.repeat(margin[part], count) for margin in (a, b, n))
        log_weight = -(gammaln(x + 1) + gammaln(x_a - x + 1) + gammaln(x_b - x + 1) + gammaln(x_n - x_a - x_b + x + 1))
        weight = np.exp(log_weight - np.repeat(np.maximum.reduceat(log_weight, first), count))
        ratio = np.maximum(x, 1) * x_n.astype(np.float64) / (x_a.astype(np.float64) * x_b)
        terms = weight * x / x_n * np.log(ratio)
        values[at[part]] = np.add.reduceat(terms, first) / np.add.reduceat(weight, first)
        start = stop
    return values
