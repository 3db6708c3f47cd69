"""Checks and dispatch of cluster_sums: plain torch on a CPU, Triton on CUDA, imported only when it is launched."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.library import custom_op

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.cluster_sums import reference

# up to so many coordinates a program sums one of them, without a matmul
NARROW = 8
# points that one program sums; a fixed number, so that the order of a sum depends on the points alone
PART = 1024


def cluster_sums(
    X: Float[Tensor, "layers n d"], labels: Int[Tensor, "layers runs n"], n_clusters: int
) -> tuple[Float[Tensor, "layers runs k d"], Int[Tensor, "layers runs k"]]:
    """Sum each cluster's points and count them; the same call on the same device gives the same bits.

    Shapes: X (layers, n, d) f32 or f64, labels (layers, runs, n) i64 -> sums in the dtype of X (layers, runs, k, d),
            sizes i64 (layers, runs, k); a label outside 0..n_clusters-1 counts in no cluster
    Errors: ShapeError if layers or n differ; DataError if n_clusters < 1, or for other dtypes
    """
    if X.ndim != 3 or labels.ndim != 3 or X.shape[:2] != labels.shape[::2]:
        shapes = f"X has shape {tuple(X.shape)}, labels {tuple(labels.shape)}"
        raise ShapeError(f"{shapes}; expected (layers, n, d) and (layers, runs, n)")
    if X.dtype not in (torch.float32, torch.float64) or labels.dtype != torch.int64:
        raise DataError(f"X is {X.dtype}, labels are {labels.dtype}; expected float32 or float64, and int64")
    if n_clusters < 1:
        raise DataError(f"n_clusters is {n_clusters}; expected at least 1")
    return _sum(X, labels, n_clusters)


@custom_op("fclm::cluster_sums", mutates_args=(), device_types="cpu")
def _sum(X: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
    n_layers, runs, n = labels.shape
    width = X.shape[-1]
    # one cell beyond the clusters takes the labels that are none
    own = torch.where((labels >= 0) & (labels < n_clusters), labels, n_clusters)
    first = torch.arange(n_layers * runs).view(n_layers, runs, 1) * (n_clusters + 1)
    flat = (own + first).flatten()
    sums = X.new_zeros(n_layers * runs * (n_clusters + 1), width)
    # on a CPU an index_add has one order
    sums.index_add_(0, flat, X[:, None].expand(-1, runs, -1, -1).reshape(-1, width))
    sizes = torch.bincount(flat, minlength=len(sums)).view(n_layers, runs, n_clusters + 1)
    kept = sums.view(n_layers, runs, n_clusters + 1, width)[:, :, :n_clusters]
    return kept.contiguous(), sizes[..., :n_clusters].contiguous()


@_sum.register_kernel("cuda")
def _launch_on_cuda(X: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
    if X.dtype == torch.float64:
        # asked for once a clustering, where one matmul is enough
        return reference.cluster_sums(X, labels, n_clusters)
    with torch.cuda.device(X.device):
        return launch(X, labels, n_clusters)


@_sum.register_fake
def _describe(X: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor]:
    shape = (*labels.shape[:2], n_clusters)
    return X.new_empty((*shape, X.shape[-1])), labels.new_empty(shape)


def block_sizes(k: int, width: int) -> dict[str, int]:
    """Choose the kernel's tile; no axis of a matmul below 16, which tl.dot needs.

    Source: compiled ahead of time without a GPU; tests/kernels/budgets.toml has the registers
    """
    block_k = 16 if k <= 16 else 32
    if width <= NARROW:
        return {"BLOCK_N": 64, "BLOCK_K": block_k, "BLOCK_D": 1, "PART_N": PART, "num_warps": 4 if k <= 16 else 8}
    return {"BLOCK_N": 16, "BLOCK_K": block_k, "BLOCK_D": 64, "PART_N": PART, "num_warps": 4}


def launch(
    X: Float[Tensor, "layers n d"], labels: Int[Tensor, "layers runs n"], n_clusters: int
) -> tuple[Tensor, Tensor]:
    """Run the Triton kernel: on CUDA tensors, or on any in Triton's interpreter."""
    from fastcluster_lm.kernels.cluster_sums.kernel import cluster_sums_kernel

    X = X if X.stride(-1) == 1 else X.contiguous()
    labels = labels.contiguous()
    n_layers, runs, n = labels.shape
    width = X.shape[-1]
    sizes = block_sizes(n_clusters, width)
    parts = -(-n // sizes["PART_N"])
    shape = (n_layers * runs, parts, n_clusters)
    sums = torch.empty(*shape, width, dtype=torch.float32, device=X.device)
    counts = torch.empty(shape, dtype=torch.int32, device=X.device)
    blocks = -(-n_clusters // sizes["BLOCK_K"]) * -(-width // sizes["BLOCK_D"])
    if sums.numel():
        grid = (blocks, parts, n_layers * runs)
        cluster_sums_kernel[grid](
            X, labels, sums, counts, n, n_clusters, width, runs, X.stride(0), X.stride(1), **sizes, PRECISION="ieee"
        )
    # a reduction's order is fixed by the shape
    return sums.sum(1).view(n_layers, runs, n_clusters, width), counts.sum(1).view(n_layers, runs, n_clusters)
