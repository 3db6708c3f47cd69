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


def pairs_of(
    X: Float[Tensor, "layers n d"], codes: Int[Tensor, " n"], n_classes: int, rounding: float
) -> Float[Tensor, " layers"]:
    """Average (var_a + var_b) / (2 |mean_a - mean_b|^2) over pairs of classes, from direct differences of the means.

    Shapes: X (layers, n, d), codes (n,) -> (layers,) f64
    """
    means, variances = spread_of(X, codes, n_classes)
    apart = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()
    size = (X - X.mean(1, keepdim=True)).square().sum(-1).mean(-1).double()  # (layers,)
    apart = torch.where(apart > rounding * size[:, None, None], apart, 0.0)
    a, b = torch.triu_indices(n_classes, n_classes, offset=1, device=X.device)
    return ((variances[:, a] + variances[:, b]) / (2 * apart[:, a, b])).mean(-1)
