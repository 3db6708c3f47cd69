"""Runs the kmeans_assign kernel in Triton's interpreter on poisoned memory, a JSON line a shape; it judges nothing."""

import json

import torch

from fastcluster_lm.kernels.kmeans_assign import op

SHAPES = [(2, 97, 5, d) for d in (1, 2, 15, 16, 17, 32, 33)]
SHAPES += [(1, 1, 1, 3), (3, 0, 4, 8), (0, 5, 4, 8), (1, 65, 37, 17)]
TAIL = 64
poisoned: list[torch.Tensor] = []
plain_empty = torch.empty


def poisoned_empty(*shape: int, **options: torch.dtype) -> torch.Tensor:
    """Give memory full of NaN or -7 instead of zeros or leftovers, with a tail that nobody may write."""
    count = 1
    for length in shape:
        count *= length
    buffer = plain_empty(count + TAIL, **options)
    buffer.fill_(torch.nan if buffer.is_floating_point() else -7)
    poisoned.append(buffer)
    return buffer[:count].view(shape)


def padded(X: torch.Tensor) -> torch.Tensor:
    """Put the points inside a larger block of NaN, so that a read outside them shows."""
    block = torch.full((X.shape[0], X.shape[1] + 3, X.shape[2] + 5), torch.nan)
    block[:, : X.shape[1], : X.shape[2]] = X
    return block[:, : X.shape[1], : X.shape[2]]


for n_batch, n, k, width in SHAPES:
    generator = torch.Generator().manual_seed(width)
    X = torch.randn(n_batch, n, width, generator=generator)
    centroids = torch.randn(n_batch, k, width, generator=generator)
    # duplicates of the first centroid, the last one in another block where k is large: the lower label must win
    copies = [3, k - 1] if k > 3 else []
    centroids[:, copies] = centroids[:, :1].clone()
    poisoned.clear()
    torch.empty = poisoned_empty
    labels, sq_dist = op.launch(padded(X), padded(centroids))
    torch.empty = plain_empty
    tails = [buffer[-TAIL:] for buffer in poisoned]
    truth = (X.double()[:, :, None] - centroids.double()[:, None]).square().sum(-1)
    nearest = truth.min(-1) if n_batch * n else None
    own = op.kmeans_assign(X, centroids)
    untouched = [bool((tail.isnan() if tail.is_floating_point() else tail == -7).all()) for tail in tails]
    row = {"shape": [n_batch, n, k, width], "tails": all(untouched)}
    row["complete"] = bool(sq_dist.isfinite().all()) and bool((labels >= 0).all()) and labels.shape == (n_batch, n)
    if nearest is not None:
        chosen = truth.gather(-1, labels[..., None])[..., 0]
        row["worst_choice"] = float((chosen - nearest.values).max())
        row["duplicates_chosen"] = sum(int((labels == copy).sum()) for copy in copies)
        row["error"] = float((sq_dist - nearest.values).abs().max())
        row["torch_error"] = float((own[1] - nearest.values).abs().max())
    print(json.dumps(row))
