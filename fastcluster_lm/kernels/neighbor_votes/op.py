"""Dispatch of neighbor_votes: compiled C++ on a CPU, plain torch elsewhere."""

import ctypes
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.native import address, check_codes, library, thread_count
from fastcluster_lm.kernels.neighbor_votes import reference
from fastcluster_lm.kernels.transfer import to_device

SOURCE = Path(__file__).with_name("cpu.cpp")


def neighbor_votes(
    indices: Int[Tensor, "layers groups q k"],
    query_labels: Int[Tensor, "sets groups q"],
    bank_labels: Int[Tensor, "sets groups m"],
    *,
    winners: bool,
) -> Float[Tensor, "sets layers groups"]:
    """Give the share of neighbours with the query's label, or of queries whose label wins their vote.

    Shapes: indices (layers, groups, q, k) into a group's bank, nearest first; labels (sets, groups, q) and
            (sets, groups, m) -> (sets, layers, groups) f64
    Notes:  a tie goes to the label whose nearest member is nearest; without queries or neighbours a score is NaN
    Errors: ShapeError if the labels do not fit the indices; DataError for an index outside the bank
    """
    groups, queries = indices.shape[1:3] if indices.ndim == 4 else (-1, -1)
    if query_labels.shape[1:] != (groups, queries) or query_labels.shape[:2] != bank_labels.shape[:2]:
        raise ShapeError(
            f"indices have shape {tuple(indices.shape)}, query_labels {tuple(query_labels.shape)}, bank_labels "
            f"{tuple(bank_labels.shape)}; expected (layers, groups, q, k), (sets, groups, q) and (sets, groups, m)"
        )
    tensors, n_bank = (indices, query_labels, bank_labels), bank_labels.shape[-1]
    native = library(SOURCE) if all(tensor.device.type == "cpu" for tensor in tensors) else None
    if native is None or indices.numel() == 0:
        # a GPU has launches to spare for votes, not for a look at indices that its own search gave
        if indices.is_cpu:
            check_codes(indices, n_bank, "indices")
        return reference.neighbor_votes(indices, query_labels, bank_labels, winners=winners)
    indices, query_labels, bank_labels = (tensor.long().contiguous() for tensor in tensors)
    sizes = [ctypes.c_int64(size) for size in (*indices.shape, len(query_labels), n_bank)]
    scores = torch.empty(len(query_labels), *indices.shape[:2], dtype=torch.float64)
    native.neighbor_votes.restype = ctypes.c_int64
    outside = native.neighbor_votes(
        *(address(tensor, torch.int64) for tensor in (indices, query_labels, bank_labels)),
        *sizes,
        ctypes.c_int32(winners),
        address(scores, torch.float64),
        ctypes.c_int32(thread_count()),
    )
    if outside:
        check_codes(indices, n_bank, "indices")
    return scores


def first_others(
    indices: Int[Tensor, "layers q many"], query_ids: Int[Tensor, " q"], bank_ids: Int[Tensor, " m"], k: int
) -> Int[Tensor, "layers q k"] | None:
    """Keep each query's first k neighbours of another identity than its own; None: some query has fewer in this list.

    On a GPU, which would have to wait to learn that, None too where the ids alone leave it open
    Shapes: indices (layers, q, many) into the bank, nearest first; ids (q,) and (m,) on the host -> (layers, q, k)
    Errors: ShapeError if the ids do not fit; DataError for an index outside the bank
    """
    if indices.ndim != 3 or len(query_ids) != indices.shape[1]:
        raise ShapeError(f"indices have shape {tuple(indices.shape)}; expected (layers, {len(query_ids)}, many)")
    if indices.numel() == 0:
        return None if k else indices
    native = library(SOURCE) if indices.device.type == "cpu" else None
    if native is None:
        check_codes(indices, len(bank_ids), "indices")
        if not indices.is_cpu and indices.shape[-1] - most_shared(query_ids, bank_ids) < k:
            return None
        query_ids, bank_ids = (to_device(ids, indices.device) for ids in (query_ids, bank_ids))
        return reference.first_others(indices, query_ids, bank_ids, k)
    indices, query_ids, bank_ids = (tensor.long().contiguous() for tensor in (indices, query_ids, bank_ids))
    chosen = torch.empty(*indices.shape[:2], k, dtype=torch.int64)
    native.first_others.restype = ctypes.c_int64
    lacking = native.first_others(
        *(address(tensor, torch.int64) for tensor in (indices, query_ids, bank_ids)),
        *(ctypes.c_int64(size) for size in (*indices.shape, len(bank_ids), k)),
        address(chosen, torch.int64),
        ctypes.c_int32(thread_count()),
    )
    if lacking < 0:
        check_codes(indices, len(bank_ids), "indices")
    return None if lacking else chosen


def most_shared(query_ids: Int[Tensor, "*layers q"], bank_ids: Int[Tensor, "*layers m"]) -> Int[Tensor, "*layers"]:
    """Count, by binary searches, the most bank points that share the identity of one query.

    Shapes: ids (q,) and (m,) -> a number, (layers, q) and (layers, m) -> (layers,)
    """
    native = library(SOURCE) if query_ids.device.type == bank_ids.device.type == "cpu" else None
    if native is not None and query_ids.shape[:-1] == bank_ids.shape[:-1]:
        own, others = query_ids.long().contiguous(), bank_ids.long().contiguous()
        most = torch.empty(own.shape[:-1], dtype=torch.int64)
        sizes = [ctypes.c_int64(size) for size in (most.numel(), own.shape[-1], others.shape[-1])]
        places = (address(own, torch.int64), address(others, torch.int64), *sizes, address(most, torch.int64))
        native.most_shared(*places, ctypes.c_int32(thread_count()))
        return most
    return reference.most_shared(query_ids, bank_ids)
