"""Checks and dispatch of kmeans_assign: plain torch on a CPU, Triton on CUDA, imported only when it is launched."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.library import custom_op

from fastcluster_lm.errors import DataError, ShapeError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# most bytes of one block of distances on a CPU
MEMORY_BUDGET = 256 * 2**20
# up to so many coordinates are taken one by one, as differences
NARROW = 8


def kmeans_assign(
    X: Float[Tensor, "*batch n d"], centroids: Float[Tensor, "*batch_and_runs k d"]
) -> tuple[Int[Tensor, "*batch_and_runs n"], Float[Tensor, "*batch_and_runs n"]]:
    """Give each point its nearest centroid.

    Shapes: X (*batch, n, d), centroids (*batch, k, d) -> labels i64 (*batch, n), sq_dist f32 (*batch, n);
            with centroids (*batch, runs, k, d) every run has the same points -> both (*batch, runs, n)
    Units:  sq_dist in squared input units
    Notes:  sq_dist comes from float32 products: centre the points first where they lie far from 0
    Errors: ShapeError if batch or d differ; DataError if k == 0 or the dtypes differ or are not 16 or 32 bit floats
    Source: Lloyd 1982, assignment step; ties to the lower index, as scikit-learn
    """
    fits = centroids.ndim - X.ndim in (0, 1) and X.shape[:-2] == centroids.shape[: X.ndim - 2]
    if X.ndim < 2 or not fits or X.shape[-1] != centroids.shape[-1]:
        raise ShapeError(f"X has shape {tuple(X.shape)}, centroids {tuple(centroids.shape)}; batch and d must match")
    if X.shape[-1] == 0 or centroids.shape[-2] == 0:
        raise DataError(f"centroids have shape {tuple(centroids.shape)}; expected at least one centroid and d >= 1")
    if X.dtype not in FLOATS or X.dtype != centroids.dtype:
        raise DataError(f"X is {X.dtype}, centroids are {centroids.dtype}; expected one of float32, float16, bfloat16")
    shape = (*centroids.shape[:-2], X.shape[-2])
    runs = centroids if centroids.ndim > X.ndim else centroids.unsqueeze(-3)
    labels, sq_dist = _assign(_batched(X, 2), _batched(runs, 3))
    return labels.view(shape), sq_dist.view(shape)


def _batched(X: Tensor, own_axes: int) -> Tensor:
    return X.flatten(0, -own_axes - 1) if X.ndim > own_axes else X[None]


@custom_op("fclm::kmeans_assign", mutates_args=(), device_types="cpu")
def _assign(X: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    X, centroids = X.float(), centroids.float()
    n_batch, n, _ = X.shape
    runs, k = centroids.shape[1:3]
    labels = torch.empty(n_batch, runs, n, dtype=torch.int64)
    sq_dist = torch.empty(n_batch, runs, n)
    c_sq = centroids.square().sum(-1)[:, :, None, :]
    rows = max(1, MEMORY_BUDGET // (4 * max(n_batch, 1) * k))
    for run in range(runs):
        for start in range(0, n, rows):
            tile = slice(start, start + rows)
            nearest = torch.baddbmm(c_sq[:, run], X[:, tile], centroids[:, run].mT, alpha=-2).min(-1)
            labels[:, run, tile], sq_dist[:, run, tile] = nearest.indices, nearest.values
    return labels, sq_dist.add_(X.square().sum(-1)[:, None]).clamp_(min=0)


@_assign.register_kernel("cuda")
def _launch_on_cuda(X: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    with torch.cuda.device(X.device):
        return launch(X, centroids)


@_assign.register_fake
def _describe(X: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    shape = (*centroids.shape[:2], X.shape[1])
    return X.new_empty(shape, dtype=torch.int64), X.new_empty(shape, dtype=torch.float32)


def block_sizes(k: int, width: int) -> dict[str, int]:
    """Choose the kernel's tile; no axis of a matmul below 16, which tl.dot needs.

    Source: compiled ahead of time without a GPU; tests/kernels/budgets.toml has the registers
    """
    block_k = 16 if k <= 16 else 32
    if width <= NARROW:
        return {"BLOCK_N": 64, "BLOCK_K": block_k, "BLOCK_D": 1, "num_warps": 4}
    if k <= 16:
        return {"BLOCK_N": 32, "BLOCK_K": block_k, "BLOCK_D": 16, "num_warps": 4, "num_stages": 2}
    return {"BLOCK_N": 64, "BLOCK_K": block_k, "BLOCK_D": 16, "num_warps": 4, "num_stages": 1}


def launch(X: Float[Tensor, "batch n d"], centroids: Float[Tensor, "batch runs k d"]) -> tuple[Tensor, Tensor]:
    """Run the Triton kernel: on CUDA tensors, or on any in Triton's interpreter."""
    from fastcluster_lm.kernels.kmeans_assign.kernel import kmeans_assign_kernel

    X = X if X.stride(-1) == 1 else X.contiguous()
    n_batch, n, width = X.shape
    runs, k = centroids.shape[1:3]
    labels = torch.empty(n_batch, runs, n, dtype=torch.int64, device=X.device)
    sq_dist = torch.empty(n_batch, runs, n, dtype=torch.float32, device=X.device)
    if labels.numel() == 0:
        return labels, sq_dist
    centroids = centroids.flatten(0, 1)
    centroids = centroids if centroids.stride(-1) == 1 else centroids.contiguous()
    sizes = block_sizes(k, width)
    grid = (-(-n // sizes["BLOCK_N"]), n_batch * runs)
    kmeans_assign_kernel[grid](
        X, centroids, labels, sq_dist, n, k, width, runs,
        X.stride(0), X.stride(1), centroids.stride(0), centroids.stride(1),
        **sizes, PRECISION="ieee",
    )  # fmt: skip
    return labels, sq_dist
