"""The clip of the gradient's norm and the optimiser's step, as one: compiled on a CPU, torch's own elsewhere."""

import torch
from torch import Tensor, nn

from fastcluster_lm.kernels.adamw_step import AdamWStep, Moments


class Update:
    """Moves a model's weights by the gradients that they hold; what AdamW keeps stays in torch's optimiser."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, limit: float) -> None:
        # walking the modules anew at each step would cost a fortieth of a small one
        self._weights = list(model.parameters())
        self._optimizer, self._limit = optimizer, limit
        self._native: AdamWStep | None = None
        self._prepared = False

    def take(self, rate: float) -> float:
        """Clip, move by one step of this learning rate, and give the norm before the clip.

        Notes:  where the norm is not finite the weights stay as they are
        """
        gradients = [weight.grad for weight in self._weights]
        if not self._prepared and all(gradient is not None for gradient in gradients):
            self._native, self._prepared = self._prepare(), True
        if self._native is not None and all(given is not None and given.is_contiguous() for given in gradients):
            return self._native.take([given for given in gradients if given is not None], rate, self._limit)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self._weights, self._limit)
        if bool(norm.isfinite()):
            self._optimizer.step()
        return norm.item()

    def _prepare(self) -> AdamWStep | None:
        """Look up what AdamW keeps, or lay it out as its first step would; None for another optimiser or device."""
        optimizer = self._optimizer
        if not isinstance(optimizer, torch.optim.AdamW) or not all(weight.is_cpu for weight in self._weights):
            return None
        decays: dict[Tensor, float] = {}
        for group in optimizer.param_groups:
            if group["amsgrad"] or group["maximize"]:
                return None
            decays.update({weight: group["weight_decay"] for weight in group["params"]})
        if set(decays) != set(self._weights):
            return None
        for weight in self._weights:
            if not optimizer.state[weight]:
                optimizer.state[weight] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(weight, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(weight, memory_format=torch.preserve_format),
                }
        kept = [optimizer.state[weight] for weight in self._weights]
        means, square_means, steps = ([part[name] for part in kept] for name in ("exp_avg", "exp_avg_sq", "step"))
        first = optimizer.param_groups[0]
        moments = Moments(
            weights=[weight.detach() for weight in self._weights],
            means=means,
            square_means=square_means,
            steps=steps,
            decays=[decays[weight] for weight in self._weights],
            beta1=first["betas"][0],
            beta2=first["betas"][1],
            eps=first["eps"],
        )
        step = AdamWStep(moments)
        # torch's own is quicker than what takes the step else
        return step if step.compiled else None
