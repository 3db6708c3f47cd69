"""cluster_sums in plain torch, by the clusters' indicator; never optimised."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def cluster_sums(
    X: Float[Tensor, "layers n d"], labels: Int[Tensor, "layers runs n"], n_clusters: int
) -> tuple[Float[Tensor, "layers runs k d"], Int[Tensor, "layers runs k"]]:
    """Sum each cluster's points, in their own dtype, and count them.

    Shapes: X (layers, n, d), labels (layers, runs, n) -> sums (layers, runs, k, d), sizes i64 (layers, runs, k)
    """
    member = labels[..., None, :] == torch.arange(n_clusters, device=labels.device)[:, None]  # (layers, runs, k, n)
    return member.to(X.dtype) @ X[:, None], member.sum(-1)
