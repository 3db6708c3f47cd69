"""A small model and instances of three tasks, for all tests of the attached probe."""

import hashlib
import random

import numpy as np
import torch
from torch import Tensor, nn

from fastcluster_lm.config import ScoresConfig

QUICK = ScoresConfig(n_init=2, n_iter=30, warm_iter=10, perplexity=5.0, n_nulls=5)


def instances(n_words: int = 6, n_inputs: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
    """Give tokens (n, 2), a word (two a task) before an input, and their labels."""
    word, x = (part.flatten() for part in torch.meshgrid(torch.arange(n_words), torch.arange(n_inputs), indexing="ij"))
    task = word // 2
    labels = {"task": task, "distribution": word, "input": x, "output": (x + task) % 3}
    return torch.stack([word, x + n_words], 1), labels


class Net(nn.Module):
    """Blocks with dropout and batch norm, and noise that is there in evaluation too, from every global generator."""

    def __init__(self, width: int = 16, n_blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(14, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Dropout(0.2)) for _ in range(n_blocks))
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.noise = 0.01

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens) + self.noise * torch.rand(())
        h = h + h.mean(1, keepdim=True)
        for block in self.blocks:
            h = h + torch.relu(block(h))
        # a model that counts its calls, whatever the mode
        self.calls.add_(1)
        return self.head(self.norm(h[:, -1]))


class NoisyNet(Net):
    """The same with noise from NumPy and Python, which no compiler takes."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * (1 + 0.01 * random.random() + 0.01 * float(np.random.rand()))


def fingerprint(model: nn.Module, losses: list[float]) -> str:
    """Hash weights, buffers, modes, losses and where every global generator stands."""
    digest = hashlib.sha256(repr(losses).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().float().numpy().tobytes())
    digest.update(repr([part.training for part in model.modules()]).encode())
    digest.update(torch.get_rng_state().numpy().tobytes())
    digest.update(repr((random.getstate(), np.random.get_state()[1].tolist())).encode())
    return digest.hexdigest()


def seed_all() -> None:
    """Set every global generator."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
