"""AdamW and its learning rate by step; it takes no step itself."""

import inspect
import math

import torch
from torch import nn

from fastcluster_lm.config import TrainingConfig


class AdamW(torch.optim.AdamW):
    """torch's, whose first use does not load torch's compiler.

    torch wraps these methods so that compiled code leaves them alone, which takes 2 s of imports and 100 MiB; no
    compiled code reaches them here
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


def build_optimizer(model: nn.Module, config: TrainingConfig, *, capturable: bool = False) -> torch.optim.AdamW:
    """Build AdamW with weight decay on matrices and embeddings, none on biases and norms; capturable in a CUDA graph.

    Source: Loshchilov & Hutter 2019; which weights decay is GPT-2 practice
    """
    decayed = [weight for weight in model.parameters() if weight.ndim >= 2]
    plain = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True, capturable=capturable)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Give the learning rate of optimiser step `step` (the first is 1): linear warm-up, then cosine to the end.

    Source: Loshchilov & Hutter 2017, one cycle
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    low = config.min_learning_rate_share
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
