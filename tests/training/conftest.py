"""Training of a small model for a few steps, and torch.compile without its compiler; it tests nothing."""

import copy

import pytest
import torch

from fastcluster_lm.config import TrainingConfig
from fastcluster_lm.device import choose_device
from fastcluster_lm.training import Trainer

CONFIG = TrainingConfig(steps=30, batch_size=16, warmup_steps=3, learning_rate=1e-2)


def trained(model, splits, config, steps=5):
    """Take steps of a copy of the model; give its trainer and what each step gave."""
    trainer = Trainer(copy.deepcopy(model), *splits, config, choose_device("cpu"), seed=0)
    return trainer, [trainer.advance() for _ in range(steps)]


@pytest.fixture
def traced_only(monkeypatch):
    """Let torch.compile trace its graph, and fail at a break if asked to, but run it operation by operation."""
    torch._dynamo.reset()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
