"""Checks and dispatch of kmeans_assign: plain torch on a CPU, Triton on CUDA, imported only when it is launched."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.library import custom_op

from fastcluster_lm.errors import DataError, ShapeError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# most bytes of one block of distances on a CPU
MEMORY_BUDGET = 256 * 2**20


def kmeans_assign(
    X: Float[Tensor, "*batch n d"], centroids: Float[Tensor, "*batch k d"]
) -> tuple[Int[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
    """Give each point its nearest centroid.

    Shapes: X (*batch, n, d), centroids (*batch, k, d) -> labels i64 (*batch, n), sq_dist f32 (*batch, n)
    Units:  sq_dist in squared input units, from float32 products: centre the points first where they lie far from 0
    Errors: ShapeError if batch or d differ; DataError if k == 0 or the dtypes differ or are not 16 or 32 bit floats
    Source: Lloyd 1982, assignment step; ties to the lower index, as scikit-learn
    """
    fits = X.ndim == centroids.ndim and X.shape[:-2] == centroids.shape[:-2] and X.shape[-1] == centroids.shape[-1]
    if X.ndim < 2 or not fits:
        raise ShapeError(f"X has shape {tuple(X.shape)}, centroids {tuple(centroids.shape)}; batch and d must match")
    if X.shape[-1] == 0 or centroids.shape[-2] == 0:
        raise DataError(f"centroids have shape {tuple(centroids.shape)}; expected at least one centroid and d >= 1")
    if X.dtype not in FLOATS or X.dtype != centroids.dtype:
        raise DataError(f"X is {X.dtype}, centroids are {centroids.dtype}; expected one of float32, float16, bfloat16")
    labels, sq_dist = _assign(_batched(X), _batched(centroids))
    return labels.view(X.shape[:-1]), sq_dist.view(X.shape[:-1])


def _batched(X: Tensor) -> Tensor:
    return X.flatten(0, -3) if X.ndim > 2 else X[None]


@custom_op("fclm::kmeans_assign", mutates_args=(), device_types="cpu")
def _assign(X: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    X, centroids = X.float(), centroids.float()
    n_batch, n, _ = X.shape
    k = centroids.shape[1]
    labels = torch.empty(n_batch, n, dtype=torch.int64)
    sq_dist = torch.empty(n_batch, n)
    c_sq = centroids.square().sum(-1)[:, None, :]
    rows = max(1, MEMORY_BUDGET // (4 * max(n_batch, 1) * k))
    for start in range(0, n, rows):
        tile = slice(start, start + rows)
        nearest = torch.baddbmm(c_sq, X[:, tile], centroids.mT, alpha=-2).min(-1)
        labels[:, tile], sq_dist[:, tile] = nearest.indices, nearest.values
    return labels, sq_dist.add_(X.square().sum(-1)).clamp_(min=0)


@_assign.register_kernel("cuda")
def _launch_on_cuda(X: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    with torch.cuda.device(X.device):
        return launch(X, centroids)


@_assign.register_fake
def _describe(X: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    return X.new_empty(X.shape[:2], dtype=torch.int64), X.new_empty(X.shape[:2], dtype=torch.float32)


def block_sizes(k: int) -> dict[str, int]:
    """Choose the kernel's tile; no axis below 16, which tl.dot needs.

    Source: compiled for sm_80 and sm_90 without a GPU: 64 x 32 x 16 takes 168 and 188 registers, 64 x 32 x 32 takes 255
    """
    return {"BLOCK_N": 64, "BLOCK_K": 16 if k <= 16 else 32, "BLOCK_D": 16}


def launch(X: Float[Tensor, "batch n d"], centroids: Float[Tensor, "batch k d"]) -> tuple[Tensor, Tensor]:
    """Run the Triton kernel: on CUDA tensors, or on any in Triton's interpreter."""
    from fastcluster_lm.kernels.kmeans_assign.kernel import kmeans_assign_kernel

    X = X if X.stride(-1) == 1 else X.contiguous()
    centroids = centroids if centroids.stride(-1) == 1 else centroids.contiguous()
    n_batch, n, width = X.shape
    k = centroids.shape[1]
    labels = torch.empty(n_batch, n, dtype=torch.int64, device=X.device)
    sq_dist = torch.empty(n_batch, n, dtype=torch.float32, device=X.device)
    if labels.numel() == 0:
        return labels, sq_dist
    sizes = block_sizes(k)
    grid = ((n + sizes["BLOCK_N"] - 1) // sizes["BLOCK_N"], n_batch)
    kmeans_assign_kernel[grid](
        X,
        centroids,
        labels,
        sq_dist,
        n,
        k,
        width,
        X.stride(0),
        X.stride(1),
        centroids.stride(0),
        centroids.stride(1),
        **sizes,
        PRECISION="ieee",
    )
    return labels, sq_dist
