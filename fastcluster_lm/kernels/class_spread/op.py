"""Dispatch of class_spread: compiled C++ on a CPU, plain torch elsewhere."""

import ctypes
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.class_spread.reference import pairs_of, spread_of
from fastcluster_lm.kernels.native import address, check_codes, library, thread_count

SOURCE = Path(__file__).with_name("cpu.cpp")


def class_spread(
    X: Float[Tensor, "layers n d"], codes: Int[Tensor, " n"], n_classes: int
) -> tuple[Float[Tensor, "layers classes d"], Float[Tensor, "layers classes"]]:
    """Give each class's mean, and the mean squared distance of its points from it.

    Shapes: X (layers, n, d), codes (n,) of 0..n_classes-1, each at least once -> means (layers, classes, d) and
            variances (layers, classes), both f64
    Errors: ShapeError if the codes do not fit; DataError for one out of range
    """
    native = _compiled(X, codes, n_classes)
    if native is None:
        return spread_of(X, codes, n_classes)
    X, codes = X.contiguous(), codes.long().contiguous()
    means = torch.empty(len(X), n_classes, X.shape[2], dtype=torch.float64)
    variances = torch.empty(len(X), n_classes, dtype=torch.float64)
    native.class_spread(
        address(X, torch.float32),
        address(codes, torch.int64),
        *(ctypes.c_int64(size) for size in (*X.shape, n_classes)),
        address(means, torch.float64),
        address(variances, torch.float64),
        ctypes.c_int32(thread_count()),
    )
    return means, variances


def class_pairs(
    X: Float[Tensor, "layers n d"], codes: Int[Tensor, " n"], n_classes: int, rounding: float
) -> Float[Tensor, " layers"]:
    """Average (var_a + var_b) / (2 |mean_a - mean_b|^2) over pairs of classes.

    Shapes: X (layers, n, d), codes (n,) of 0..n_classes-1, each at least once, two classes or more -> (layers,) f64
    Notes:  means whose squared distance is at most rounding times the variance of all points count as one
    Errors: ShapeError if the codes do not fit; DataError for one out of range
    """
    native = _compiled(X, codes, n_classes)
    if native is None:
        return pairs_of(X, codes, n_classes, rounding)
    X, codes = X.contiguous(), codes.long().contiguous()
    found = torch.empty(len(X), dtype=torch.float64)
    native.class_pairs(
        address(X, torch.float32),
        address(codes, torch.int64),
        *(ctypes.c_int64(size) for size in (*X.shape, n_classes)),
        ctypes.c_double(rounding),
        address(found, torch.float64),
        ctypes.c_int32(thread_count()),
    )
    return found


def _compiled(X: Tensor, codes: Tensor, n_classes: int) -> ctypes.CDLL | None:
    """Refuse codes that do not fit; give the compiled code, or None where it cannot take these points."""
    if codes.shape != X.shape[1:2]:
        raise ShapeError(f"codes have shape {tuple(codes.shape)}; expected ({X.shape[1]},), one a point")
    check_codes(codes, n_classes, "codes")
    return library(SOURCE) if X.device.type == codes.device.type == "cpu" and X.dtype == torch.float32 else None
