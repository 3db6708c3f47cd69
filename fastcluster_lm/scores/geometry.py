"""How points lie, from neighbours that were found for other scores: spread, dimension, overlap, trustworthiness."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.class_spread import class_pairs
from fastcluster_lm.kernels.nearest_neighbors import count_nearer
from fastcluster_lm.kernels.transfer import to_device
from fastcluster_lm.scores.precision import full_precision

# points with two different neighbour distances that an estimate of the dimension needs; floats of a block of ranks
FEWEST_POINTS, BLOCK = 10, 2**22


def class_distance_normalized_variance(
    X: Float[Tensor, "layers n d"], labels: Int[Tensor, " n"]
) -> Float[Tensor, " layers"]:
    """Average (var_a + var_b) / (2 |mean_a - mean_b|^2) over pairs of classes: 0 is full collapse (CDNV).

    Shapes: X (layers, n, d), labels (n,), best on the host -> (layers,) float64; NaN with one class, infinite where two
            means coincide
    Errors: ShapeError if the labels do not fit
    Source: Galanti, Gyorgy and Hutter 2021, definition 1; in language models Wu and Papyan 2024
    """
    if labels.shape != X.shape[1:2]:
        raise ShapeError(f"labels has shape {tuple(labels.shape)}; expected ({X.shape[1]},), one label a point")
    found, codes = labels.unique(return_inverse=True)
    n_classes = len(found)
    if n_classes < 2:
        return X.new_full((len(X),), torch.nan, dtype=torch.float64)
    # what rounding alone makes of equal means counts as 0
    rounding = (8 * torch.finfo(X.dtype).eps) ** 2
    return class_pairs(X.detach(), to_device(codes, X.device), n_classes, rounding)


def intrinsic_dimension(distances: Float[Tensor, "layers n k"]) -> Float[Tensor, " layers"]:
    """Estimate the dimension from the ratio of each point's two nearest distances (TwoNN).

    Shapes: distances (layers, n, k >= 2) ascending, without the point itself -> (layers,) float64
    Notes:  NaN where fewer than 10 points have a nearest distance above 0 and below the second
    Errors: ShapeError for fewer than two neighbours
    Source: Facco, d'Errico, Rodriguez and Laio 2017; the maximum-likelihood form, with its factor n - 1
    """
    if distances.shape[-1] < 2:
        raise ShapeError(f"distances has shape {tuple(distances.shape)}; expected two neighbours or more")
    first, second = distances[..., 0].double(), distances[..., 1].double()
    usable = (first > 0) & (second > first)
    logs = torch.where(usable, second / torch.where(usable, first, 1.0), 1.0).log()
    count = usable.sum(-1)
    estimate = (count - 1) / logs.sum(-1)
    return torch.where(count >= FEWEST_POINTS, estimate, torch.nan)


def neighbor_overlap(one: Int[Tensor, "layers n k"], other: Int[Tensor, "layers n k"]) -> Float[Tensor, " layers"]:
    """Give the share of each point's neighbours in one list that the other has too, averaged over points.

    Shapes: two lists (layers, n, k) of indices, distinct within a row -> (layers,) float64 in [0, 1]
    Errors: ShapeError if the lists differ in shape
    Source: Doimo, Glielmo, Ansuini and Laio 2020, with a point's neighbours for its class
    """
    if one.shape != other.shape:
        raise ShapeError(f"neighbours have shapes {tuple(one.shape)} and {tuple(other.shape)}; expected the same")
    shared = torch.zeros(one.shape, dtype=torch.bool, device=one.device)
    for place in range(other.shape[-1]):
        shared |= one == other[..., place : place + 1]
    return shared.double().mean((1, 2))


def trustworthiness(X: Float[Tensor, "layers n d"], map_indices: Int[Tensor, "layers n k"]) -> Float[Tensor, " layers"]:
    """Say how far the neighbours on a map are neighbours in the points themselves: 1 if all are, 0.5 by chance.

    Shapes: X (layers, n, d), map_indices (layers, n, k) without the point itself -> (layers,) float64
    Notes:  NaN unless 3 k + 1 < 2 n; equal distances rank alike, at the nearest rank
    Source: Venna and Kaski 2001
    """
    n_layers, n, k = map_indices.shape
    if 2 * n <= 3 * k + 1:
        return X.new_full((n_layers,), torch.nan, dtype=torch.float64)
    X = (X - X.mean(1, keepdim=True)).float()
    with full_precision():
        nearer = count_nearer(X, map_indices, 4 * BLOCK)
    excess = (nearer + 1 - k).clamp_(min=0).sum((1, 2)).double()
    return 1 - excess * 2 / (n * k * (2 * n - 3 * k - 1))
