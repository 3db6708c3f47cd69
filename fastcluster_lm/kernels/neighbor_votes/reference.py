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
