"""Dispatch of label_agreement: compiled C++ on a CPU, torch and NumPy elsewhere."""

import ctypes
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.label_agreement import reference
from fastcluster_lm.kernels.native import address, check_codes, library, thread_count

SOURCE = Path(__file__).with_name("cpu.cpp")


def label_agreement(
    labelings: Int[Tensor, "sets s n"], clusterings: Int[Tensor, "sets l n"], n_true: int, n_pred: int
) -> Float[Tensor, "sets s l 5"]:
    """Score every labeling against every clustering of the same points.

    Shapes: labelings (sets, s, n) of codes 0..n_true-1, clusterings (sets, l, n) of codes 0..n_pred-1
            -> scores (sets, s, l, 5) f64 on the host: ARI, AMI, macro, pairwise and BCubed F1, as reference.AGREEMENTS
    Errors: ShapeError if sets or points differ in number; DataError for a code out of range, or as reference.py's
    """
    if labelings.ndim != 3 or clusterings.ndim != 3 or labelings.shape[::2] != clusterings.shape[::2]:
        raise ShapeError(
            f"labelings have shape {tuple(labelings.shape)}, clusterings {tuple(clusterings.shape)}; "
            "expected (sets, s, n) and (sets, l, n)"
        )
    check_codes(labelings, n_true, "labelings")
    check_codes(clusterings, n_pred, "clusterings")
    native = library(SOURCE) if labelings.device.type == clusterings.device.type == "cpu" else None
    if native is None:
        return reference.label_agreement(labelings, clusterings, n_true, n_pred)
    labelings, clusterings = labelings.long().contiguous(), clusterings.long().contiguous()
    n_sets, n_labelings, n_points = labelings.shape
    scores = torch.empty(n_sets, n_labelings, clusterings.shape[1], len(reference.AGREEMENTS), dtype=torch.float64)
    sizes = [ctypes.c_int64(size) for size in (*scores.shape[:3], n_points, n_true, n_pred)]
    native.score_labelings(
        address(labelings, torch.int64),
        address(clusterings, torch.int64),
        *sizes,
        address(scores, torch.float64),
        ctypes.c_int32(thread_count()),
    )
    return scores
