"""capture_states in plain torch, all layers at once; never optimised."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def capture_states(
    layers: Sequence[Float[Tensor, "B T D"]], positions: Int[Tensor, " B"]
) -> tuple[Float[Tensor, "B layers D"], Float[Tensor, "B layers"]]:
    """Give every layer's state at each sequence's position, and its squared norm.

    Shapes: layers (B, T, D) each, positions (B,) -> states (B, layers, D), sq_norms (B, layers)
    """
    rows = torch.arange(len(positions), device=positions.device)
    states = torch.stack([x[rows, positions] for x in layers], 1)
    return states, states.square().sum(-1)
