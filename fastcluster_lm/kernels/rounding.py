"""What float32 matmuls of centred points cost in precision, and squares of their rows; it finds no neighbours."""

import torch
from jaxtyping import Float
from torch import Tensor

# candidates beyond k that a matmul proposes; they absorb its rounding, what they cannot absorb is computed in full
SPARE = 8


def matmul_rounding(width: int, dtype: torch.dtype = torch.float32) -> float:
    """Bound the rounding of a squared distance that a matmul gave, as a share of the two points' squares."""
    # the rounding of a dot product of d terms grows like the root of d; centring rounds like 8 of them
    return torch.finfo(dtype).eps * (8 + 2 * width**0.5)


def row_squares(X: Float[Tensor, "layers n d"]) -> Float[Tensor, "layers n"]:
    """Give each row's squared norm without a copy of the points."""
    return torch.linalg.vector_norm(X, dim=-1).square_()
