"""nearest_neighbors with no N x N block and no wait for the device: Triton on CUDA, the reference on a CPU."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.library import custom_op

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.nearest_neighbors import reference

# most neighbours that the kernel keeps in registers
MOST_NEIGHBORS = 256
FLOATS = (torch.float32, torch.float64)


def nearest_neighbors_on_cuda(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    k: int,
    query_ids: Int[Tensor, "*layers nq"] | None = None,
    bank_ids: Int[Tensor, "*layers nb"] | None = None,
) -> tuple[Float[Tensor, "layers nq k"], Int[Tensor, "layers nq k"]]:
    """Give each query its nearest bank points, nearest first, without waiting for the device.

    Shapes: queries (layers, nq, d), bank (layers, nb, d) -> distances f32, indices i64, both (layers, nq, k);
            a bank point whose id is the query's own is not among them: each query needs k others, which is not checked
    Units:  Euclidean, in the units of the points
    Notes:  squares must fit in float32. Distances are float32 sums of differences taken in the points' own
            dtype, so that nothing cancels and no candidate is lost: no spare ones, no second look. Sums in chunks keep
            the rounding of a distance below (16 + d / 16) / 2 units of 2^-24, under 1e-5 up to d = 4096
    Errors: ShapeError if layers, d or ids differ; DataError for other dtypes, or k above MOST_NEIGHBORS or the bank
    """
    if queries.ndim != 3 or bank.ndim != 3 or queries.shape[::2] != bank.shape[::2]:
        shapes = f"queries have shape {tuple(queries.shape)}, bank {tuple(bank.shape)}"
        raise ShapeError(f"{shapes}; layers and d must match")
    if queries.dtype not in FLOATS or queries.dtype != bank.dtype:
        raise DataError(
            f"queries are {queries.dtype}, bank is {bank.dtype}; expected float32 or float64, both the same"
        )
    if not 1 <= k <= min(MOST_NEIGHBORS, bank.shape[1]):
        raise DataError(f"k is {k}, the bank has {bank.shape[1]} points; expected 1 to {MOST_NEIGHBORS}, and no more")
    if query_ids is None or bank_ids is None:
        return _find(queries, bank, k, None, None)
    for name, ids, points in (("query_ids", query_ids, queries), ("bank_ids", bank_ids, bank)):
        if ids.shape not in (points.shape[:2], points.shape[1:2]):
            raise ShapeError(f"{name} have shape {tuple(ids.shape)}; expected {tuple(points.shape[:2])} or its last")
    return _find(queries, bank, k, query_ids.long(), bank_ids.long())


@custom_op("fclm::nearest_neighbors", mutates_args=(), device_types="cpu")
def _find(
    queries: Tensor, bank: Tensor, k: int, query_ids: Tensor | None, bank_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    distances, indices = reference.nearest_neighbors(queries, bank, k, query_ids, bank_ids)
    return distances.float(), indices


@_find.register_kernel("cuda")
def _launch_on_cuda(
    queries: Tensor, bank: Tensor, k: int, query_ids: Tensor | None, bank_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device(queries.device):
        return launch(queries, bank, k, query_ids, bank_ids)


@_find.register_fake
def _describe(
    queries: Tensor, bank: Tensor, k: int, query_ids: Tensor | None, bank_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = (*queries.shape[:2], k)
    return queries.new_empty(shape, dtype=torch.float32), queries.new_empty(shape, dtype=torch.int64)


def block_sizes(k: int, dtype: torch.dtype) -> dict[str, int]:
    """Choose the kernel's tile: as many bank points a block as neighbours are kept, a power of two.

    Source: compiled ahead of time without a GPU; tests/kernels/budgets.toml has the registers
    """
    if k <= 32:
        queries, kept = 32, 32
    else:
        queries, kept = 8, 128 if k <= 128 else MOST_NEIGHBORS
    if dtype == torch.float64 and kept == 128:
        # at 8 queries sm_100 spills two registers, at 16 none does
        queries = 16
    return {"BLOCK_Q": queries, "BLOCK_B": kept, "CHUNK": 16, "num_warps": 4, "num_stages": 1}


def launch(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    k: int,
    query_ids: Int[Tensor, "*layers nq"] | None,
    bank_ids: Int[Tensor, "*layers nb"] | None,
) -> tuple[Tensor, Tensor]:
    """Run the Triton kernel: on CUDA tensors, or on any in Triton's interpreter."""
    from fastcluster_lm.kernels.nearest_neighbors.kernel import nearest_neighbors_kernel

    n_layers, n_queries, width = queries.shape
    n_bank = bank.shape[1]
    distances = torch.empty(n_layers, n_queries, k, dtype=torch.float32, device=queries.device)
    indices = torch.empty(n_layers, n_queries, k, dtype=torch.int64, device=queries.device)
    if indices.numel() == 0:
        return distances, indices
    own_bank = queries is bank
    # coordinate by coordinate, so that a block of points is read in one piece
    bank = _by_coordinate(bank)
    queries = bank if own_bank else _by_coordinate(queries)
    if query_ids is None or bank_ids is None:
        # one id for all queries and another for the whole bank
        query_ids = torch.zeros(1, dtype=torch.int64, device=queries.device)
        bank_ids = torch.ones(1, dtype=torch.int64, device=queries.device)
    own, other = query_ids.expand(n_layers, n_queries), bank_ids.expand(n_layers, n_bank)
    sizes = block_sizes(k, queries.dtype)
    nearest_neighbors_kernel[(-(-n_queries // sizes["BLOCK_Q"]), n_layers)](
        queries, bank, own, other, distances, indices, n_queries, n_bank, width, k,
        queries.stride(0), queries.stride(1), bank.stride(0), bank.stride(1),
        own.stride(0), other.stride(0), own.stride(1), other.stride(1), **sizes,
    )  # fmt: skip
    return distances, indices


def _by_coordinate(X: Tensor) -> Tensor:
    columns = X.mT
    return columns if columns.stride(-1) == 1 else columns.contiguous()
