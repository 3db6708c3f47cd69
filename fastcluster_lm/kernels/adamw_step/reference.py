"""adamw_step in plain torch, weight by weight; never optimised."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcluster_lm.kernels.adamw_step.moments import Moments


def adamw_step(moments: Moments, gradients: Sequence[Tensor], rate: float, limit: float) -> float:
    """Clip the whole gradient's norm and move all weights by one step, in place; give the norm before the clip.

    Notes:  a norm that is not finite moves nothing
    Source: Loshchilov and Hutter 2019, algorithm 2; Kingma and Ba 2015 for the bias of the moments
    """
    norm = float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt())
    if not torch.tensor(norm).isfinite():
        return norm
    share, beta1, beta2 = min(1.0, limit / (norm + 1e-6)), moments.beta1, moments.beta2
    columns = (moments.weights, gradients, moments.means, moments.square_means, moments.steps, moments.decays)
    for weight, gradient, mean, square_mean, step, decay in zip(*columns, strict=True):
        step += 1
        clipped = gradient * share
        weight *= 1 - rate * decay
        mean.lerp_(clipped, 1 - beta1)
        square_mean.mul_(beta2).add_(clipped.square() * (1 - beta2))
        unbiased = mean / (1 - beta1 ** float(step)), square_mean / (1 - beta2 ** float(step))
        weight -= rate * unbiased[0] / (unbiased[1].sqrt() + moments.eps)
    return norm
