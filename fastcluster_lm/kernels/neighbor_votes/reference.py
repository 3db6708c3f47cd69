"""neighbor_votes in plain torch: also what runs where no C++ compiler is, and on CUDA."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def neighbor_votes(
    indices: Int[Tensor, "layers groups q k"],
    query_labels: Int[Tensor, "sets groups q"],
    bank_labels: Int[Tensor, "sets groups m"],
    *,
    winners: bool,
) -> Float[Tensor, "sets layers groups"]:
    """Give the share of neighbours with the query's label, or of queries whose label wins their vote.

    Shapes: as op.py's
    """
    groups, n_bank = bank_labels.shape[1:]
    flat = indices + torch.arange(groups, device=indices.device)[:, None, None] * n_bank
    found = bank_labels.reshape(len(bank_labels), groups * n_bank)[:, flat]  # (sets, layers, groups, q, k)
    own = query_labels[:, None]  # (sets, 1, groups, q)
    if not winners:
        hits = (found == own[..., None]).sum((-1, -2))
        return hits.to(torch.float64) / (found.shape[-1] * found.shape[-2])
    k = found.shape[-1]
    votes = (found[..., :, None] == found[..., None, :]).sum(-1)
    # among equal votes the earlier neighbour ranks higher, so the largest rank is unique
    rank = votes * k - torch.arange(k, device=votes.device)
    winner = found.gather(-1, rank.argmax(-1, keepdim=True)).squeeze(-1)
    return (winner == own).to(torch.float64).mean(-1)


def first_others(
    indices: Int[Tensor, "layers q many"], query_ids: Int[Tensor, " q"], bank_ids: Int[Tensor, " m"], k: int
) -> Int[Tensor, "layers q k"] | None:
    """Keep each query's first k neighbours of another identity; None on a CPU: some query has fewer.

    Shapes: as op.py's, all on one device
    """
    other = bank_ids[indices] != query_ids[None, :, None]
    # a GPU would have to wait for the answer, which its caller knows
    if indices.is_cpu and bool((other.sum(-1) < k).any()):
        return None
    # a stable sort brings the others to the front, in their order
    return indices.gather(-1, (~other).to(torch.uint8).argsort(dim=-1, stable=True)[..., :k])


def most_shared(query_ids: Int[Tensor, "*layers q"], bank_ids: Int[Tensor, "*layers m"]) -> Int[Tensor, "*layers"]:
    """Count the most bank points that share the identity of one query."""
    sought, ordered = query_ids.contiguous(), bank_ids.contiguous().sort(dim=-1).values
    counts = torch.searchsorted(ordered, sought, right=True) - torch.searchsorted(ordered, sought)
    return counts.amax(-1)
