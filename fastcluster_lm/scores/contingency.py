"""Count how often labels of two clusterings meet, as int64 tables; it computes no score from them."""

from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, bincount
from torch import arange as torch_arange
from torch import as_tensor as torch_as_tensor

from fastcluster_lm.errors import DataError, ShapeError

# 1e8 int64 cells are 800 MB: two labelings of 10,000 labels each
MAX_CELLS = 100_000_000


def factorize(labels: ArrayLike | Tensor) -> tuple[Int[np.ndarray, "..."], int]:
    """Replace labels by the integers 0..k-1 in sorted order of the labels, and say how many there are.

    Shapes: labels (...) of integers, strings, booleans or finite floats -> codes (...) int64, k
    Errors: DataError for NaN or infinite labels, or labels of kinds that have no common order
    """
    values = host_array(labels)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError("labels hold NaN or infinity; give every point a label, an integer or a string")
    if values.dtype == np.int64 and values.size and values.min() >= 0 and values.max() < 2 * values.size:
        # whole numbers that are codes already, or nearly so, need no sorting
        present = np.bincount(values.ravel()) > 0
        return (present.cumsum() - 1)[values], int(present.sum())
    try:
        found, codes = np.unique(values, return_inverse=True)
    except TypeError as error:
        raise DataError(f"labels mix kinds that cannot be sorted ({error}); use integers or strings only") from error
    return codes.reshape(values.shape).astype(np.int64, copy=False), len(found)


def host_array(values: ArrayLike | Tensor) -> NDArray[Any]:
    """Give a tensor or array-like as a NumPy array on the host."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def contingency_tables(
    labels_true: ArrayLike | Tensor,
    labels_pred: ArrayLike | Tensor,
    *,
    n_true: int | None = None,
    n_pred: int | None = None,
) -> Int[np.ndarray, "*batch k_true k_pred"] | Int[Tensor, "*batch k_true k_pred"]:
    """Count the points of every pair of a true and a predicted label, for a whole batch in one bincount.

    Shapes: labels_true and labels_pred (n,) or (..., n), batch axes broadcast -> tables (..., k_true, k_pred) int64.
            Labels without n_true / n_pred are factorised over the whole batch, so a table may hold empty rows;
            with them they must be 0..n-1 already. The tables lie where labels_pred lies.
    Errors: ShapeError if the numbers of points differ; DataError for labels outside 0..n-1 or too many cells
    """
    true, k_true = _codes(labels_true, n_true, "labels_true")
    pred, k_pred = _codes(labels_pred, n_pred, "labels_pred")
    if true.ndim < 1 or pred.ndim < 1 or true.shape[-1] != pred.shape[-1]:
        raise ShapeError(
            f"labels_true has shape {tuple(true.shape)}, labels_pred {tuple(pred.shape)}; both need one label a point, "
            "(n,) or (..., n), with the same n"
        )
    batch = np.broadcast_shapes(tuple(true.shape[:-1]), tuple(pred.shape[:-1]))
    n_tables = int(np.prod(batch, dtype=np.int64))
    if n_tables * k_true * k_pred > MAX_CELLS:
        raise DataError(
            f"{n_tables} tables of {k_true} true x {k_pred} predicted labels exceed {MAX_CELLS} cells; "
            "give labels that repeat, or fewer labelings at a time"
        )
    shape, size = (*batch, k_true, k_pred), n_tables * k_true * k_pred
    if isinstance(labels_pred, Tensor):
        true, pred = torch_as_tensor(true, device=labels_pred.device), torch_as_tensor(pred, device=labels_pred.device)
        offsets = torch_arange(n_tables, device=labels_pred.device).reshape(*batch, 1) * (k_true * k_pred)
        return bincount((offsets + true * k_pred + pred).reshape(-1), minlength=size).reshape(shape)
    host_offsets = np.arange(n_tables).reshape(*batch, 1) * (k_true * k_pred)
    counts = np.bincount((host_offsets + host_array(true) * k_pred + host_array(pred)).reshape(-1), minlength=size)
    return counts.astype(np.int64, copy=False).reshape(shape)


def _codes(labels: ArrayLike | Tensor, n_labels: int | None, name: str) -> tuple[Any, int]:
    if n_labels is None:
        return factorize(labels)
    codes = labels if isinstance(labels, Tensor) else np.asarray(labels)
    if codes.ndim and 0 not in codes.shape:
        low, high = int(codes.min()), int(codes.max())
        # a code out of range would be counted in the table of a neighbour
        if low < 0 or high >= n_labels:
            raise DataError(f"{name} runs from {low} to {high}; expected codes 0 to {n_labels - 1}")
    return codes, n_labels
