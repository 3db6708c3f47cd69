"""class_spread in plain torch: also what runs where no C++ compiler is, and on CUDA."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def spread_of(
    X: Float[Tensor, "layers n d"], codes: Int[Tensor, " n"], n_classes: int
) -> tuple[Float[Tensor, "layers classes d"], Float[Tensor, "layers classes"]]:
    """Give means and mean squared distances from them, by matmuls with the classes' indicator, in a fixed order.

    Shapes: X (layers, n, d), codes (n,) -> means (layers, classes, d), variances (layers, classes), both f64
    """
    member = torch.nn.functional.one_hot(codes, n_classes).double()
    member /= member.sum(0)
    means = member.T @ X.double()
    own = X.double() - means[:, codes]
    return means, own.square().sum(-1) @ member
