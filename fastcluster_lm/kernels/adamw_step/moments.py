"""Weights of a model beside what AdamW keeps of each; it takes no step."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """A model's weights, in one order, with the tensors of torch.optim.AdamW's state and a decay for each."""

    weights: Sequence[Tensor]
    means: Sequence[Tensor]
    square_means: Sequence[Tensor]
    steps: Sequence[Tensor]
    decays: Sequence[float]
    beta1: float
    beta2: float
    eps: float
