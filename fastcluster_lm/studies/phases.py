"""Training in phases: a model goes on with other instances or answers, without a probe or a run folder."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastcluster_lm.config import RunConfig
from fastcluster_lm.data import Instances
from fastcluster_lm.engine import Rooms
from fastcluster_lm.engine.rooms import device_of
from fastcluster_lm.model import TrainableModel
from fastcluster_lm.tasks import TaskSet
from fastcluster_lm.training import Trainer
from fastcluster_lm.training.optimizer import build_optimizer


@dataclass(frozen=True)
class Phase:
    """One phase of training: the trainer as it stands at the end, and the validation accuracy by step."""

    trainer: Trainer
    accuracy: dict[int, float]


def fit(
    model: TrainableModel,
    train: Instances,
    val: Instances,
    config: RunConfig,
    *,
    steps: int,
) -> Phase:
    """Train a model in place with a fresh optimiser and schedule, validating it at step 0 too."""
    training = config.training
    own = replace(training, steps=steps, warmup_steps=min(training.warmup_steps, steps // 10))
    trainer = Trainer(model, train, val, own, device_of(config), config.seed)
    accuracy = {0: trainer.validate()}
    while trainer.step < steps:
        trainer.advance()
        if trainer.step % training.eval_every == 0 or trainer.step == steps:
            accuracy[trainer.step] = trainer.validate()
    return Phase(trainer, accuracy)


def descend(
    model: TrainableModel,
    loss_of: Callable[[], Tensor],
    config: RunConfig,
    *,
    steps: int,
    learning_rate: float,
    look: Callable[[int], bool | None] = lambda step: None,
) -> None:
    """Take steps of AdamW on a loss of the caller's own, at a fixed rate; `look` is called after each, and at 0.

    The first step after which it says True is the last
    """
    optimizer = build_optimizer(model, replace(config.training, learning_rate=learning_rate, weight_decay=0.0))
    look(0)
    for step in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        loss_of().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.grad_clip or float("inf"))
        optimizer.step()
        if look(step):
            break


def rooms_without_probe(config: RunConfig, taskset: TaskSet) -> Rooms:
    """Build the rooms of a run that nobody probes."""
    return Rooms(replace(config, probe=replace(config.probe, every=0)), taskset)


def first_reaching(accuracy: dict[int, float], level: float) -> int | None:
    """Give the first step with at least this accuracy; None if none has it."""
    return next((step for step in sorted(accuracy) if accuracy[step] >= level), None)
