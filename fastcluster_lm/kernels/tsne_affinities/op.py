"""Dispatch of tsne_affinities: compiled C++ on a CPU, plain torch elsewhere."""

import ctypes
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.edges import PAIRED_POINTS, VECTOR, Affinities, Edges, Pairs
from fastcluster_lm.kernels.native import address, check_codes, library, thread_count
from fastcluster_lm.kernels.pages import room
from fastcluster_lm.kernels.tsne_affinities.reference import symmetrise, symmetrise_padded, weights_of

SOURCE = Path(__file__).with_name("cpu.cpp")
# up to so many points a layer, and points for each neighbour, whole matrices are the faster way to the edges
DENSE_POINTS, DENSE_SHARE = 1024, 8


def tsne_affinities(
    distances: Float[Tensor, "layers n k"], indices: Int[Tensor, "layers n k"], perplexity: float
) -> Edges:
    """Turn each point's nearest neighbours into the symmetrised affinities of t-SNE.

    Shapes: distances f32 ascending and indices i64, both (layers, n, k), no point its own neighbour -> edges
    Units:  distances in any unit; a layer's affinities sum to 1
    Errors: ShapeError if the shapes differ; DataError for an index that is no point
    Source: van der Maaten and Hinton 2008, section 2; where more points coincide than the perplexity, they share alike
    """
    _check_shapes(distances, indices)
    check_codes(indices, distances.shape[1], "indices")
    native = library(SOURCE) if distances.device.type == "cpu" else None
    if native is None:
        on_cpu = distances.device.type == "cpu"
        return (symmetrise if on_cpu else symmetrise_padded)(weights_of(distances, perplexity), indices)
    native.tsne_edges_dense.restype = ctypes.c_int64
    n_layers, n, k = distances.shape
    indices, weights = indices.long().contiguous(), _weights(native, distances, perplexity)
    out, threads = address(weights, torch.float32), ctypes.c_int32(thread_count())
    sizes = [ctypes.c_int64(size) for size in (n_layers, n, k)]
    if n <= DENSE_POINTS and n <= DENSE_SHARE * k:
        starts = torch.empty(n_layers * n + 1, dtype=torch.int64)
        columns = room(2 * n_layers * n * k, dtype=torch.int32)
        values = room(2 * n_layers * n * k, dtype=torch.float32)
        places = (address(starts, torch.int64), address(columns, torch.int32), address(values, torch.float32))
        count = native.tsne_edges_dense(address(indices, torch.int64), out, *sizes, *places, threads)
        return Edges(starts, columns[:count], values[:count])
    lengths = torch.empty(n_layers * n, dtype=torch.int64)
    first = torch.empty(n_layers, n + 1, dtype=torch.int64)
    choosers, chosen_by = (room(n_layers, n, k, dtype=dtype) for dtype in (torch.int32, torch.float32))
    chosen = (address(indices, torch.int64), out, *sizes, address(first, torch.int64))
    chosen += (address(choosers, torch.int32), address(chosen_by, torch.float32))
    native.tsne_choosers(*chosen, address(lengths, torch.int64), threads)
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    columns = room(int(starts[-1]), dtype=torch.int32)
    values = room(int(starts[-1]), dtype=torch.float32)
    places = (address(starts, torch.int64), address(columns, torch.int32), address(values, torch.float32))
    native.tsne_edges(*chosen, *places, threads)
    return Edges(starts, columns, values)


def pair_affinities(
    distances: Float[Tensor, "layers n k"], indices: Int[Tensor, "layers n k"], perplexity: float
) -> Affinities:
    """Give the affinities of tsne_affinities as whole matrices, for few points and where compiled code can.

    Shapes, units, errors, source: as there
    """
    _check_shapes(distances, indices)
    native = library(SOURCE) if distances.device.type == "cpu" else None
    n_layers, n, k = distances.shape
    if native is None or n > PAIRED_POINTS:
        return tsne_affinities(distances, indices, perplexity)
    padded = -(-n // VECTOR) * VECTOR
    indices, weights = indices.long().contiguous(), _weights(native, distances, perplexity)
    values = room(n_layers, padded, padded, dtype=torch.float32)
    native.tsne_pairs.restype = ctypes.c_int64
    wrong = native.tsne_pairs(
        address(indices, torch.int64), address(weights, torch.float32),
        *(ctypes.c_int64(size) for size in (n_layers, n, k, padded)),
        address(values, torch.float32), ctypes.c_int32(thread_count()),
    )  # fmt: skip
    if wrong:
        check_codes(indices, n, "indices")
    return Pairs(values, n)


def _check_shapes(distances: Tensor, indices: Tensor) -> None:
    if distances.ndim != 3 or distances.shape != indices.shape:
        shapes = f"distances have shape {tuple(distances.shape)}, indices {tuple(indices.shape)}"
        raise ShapeError(f"{shapes}; both must be (layers, n, k)")


def _weights(native: ctypes.CDLL, distances: Tensor, perplexity: float) -> Float[Tensor, "layers n k"]:
    distances = distances.float().contiguous()
    weights = room(*distances.shape, dtype=torch.float32)
    sizes = [ctypes.c_int64(size) for size in distances.shape]
    out, threads = address(weights, torch.float32), ctypes.c_int32(thread_count())
    native.tsne_weights(address(distances, torch.float32), *sizes, ctypes.c_float(perplexity), out, threads)
    return weights
