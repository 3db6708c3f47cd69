"""nearest_neighbors in plain torch, by direct differences with the whole bank; never optimised."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def nearest_neighbors(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    k: int,
    query_ids: Int[Tensor, "*layers nq"] | None = None,
    bank_ids: Int[Tensor, "*layers nb"] | None = None,
) -> tuple[Float[Tensor, "layers nq k"], Int[Tensor, "layers nq k"]]:
    """Give each query its nearest bank points of another id, nearest first; ties to the lower index.

    Shapes: -> distances in the dtype of the points, indices i64, both (layers, nq, k)
    """
    # direct differences: a matmul would cancel where the points lie close to each other
    block = torch.cdist(queries, bank, compute_mode="donot_use_mm_for_euclid_dist")  # (layers, nq, nb)
    if query_ids is not None and bank_ids is not None:
        block.masked_fill_(query_ids[..., :, None] == bank_ids[..., None, :], torch.inf)
    distances, indices = block.sort(dim=-1, stable=True)
    return distances[..., :k].contiguous(), indices[..., :k].contiguous()
