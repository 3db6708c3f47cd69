"""linear_cross_entropy in plain torch, with all logits at once, in the input's own precision; never optimised."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def linear_cross_entropy(
    X: Float[Tensor, "n d"], weight: Float[Tensor, "v d"], targets: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Give the mean cross entropy of the targets under the logits X @ weight.T.

    Shapes: X (n, d), weight (v, d), targets (n,) -> scalar
    Units:  nats a row; NaN without rows
    """
    return F.cross_entropy(F.linear(X, weight), targets)
