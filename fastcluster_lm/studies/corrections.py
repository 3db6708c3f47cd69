"""Losses that change what a trained model answers: a pull on its states, or other answers; it takes no step."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from fastcluster_lm.data import BatchSampler, Instances
from fastcluster_lm.engine import Rooms
from fastcluster_lm.model import GPT2, Evaluator
from fastcluster_lm.studies.states import group_means, kept_states, states_of

# steps of a correction, instances of a step, and of a forward that measures
STEPS, BATCH, CHUNK = 100, 64, 512


def pulling(
    rooms: Rooms, model: GPT2, source: Instances, goal: Int[Tensor, " n"], sampler: BatchSampler
) -> Callable[[], Tensor]:
    """Make a loss: the squared distance of source states to the goal's centroid of their input, in the middle layer.

    Centroids are the model's as it is now, before anything is changed; the loss is in units of the states' variance
    """
    train, config = rooms.trainer.train, rooms.config.model
    layer, n_inputs = config.n_layers // 2, rooms.taskset.n_inputs
    evaluator = Evaluator(model, model, CHUNK, fixed_shape=False)
    states = states_of(evaluator, train, n_layers=config.n_layers, d_model=config.d_model)[layer]
    centers = group_means(states, train.task * n_inputs + train.input, rooms.taskset.n_tasks * n_inputs)
    unit = (states - states.mean(0)).square().mean()

    def loss() -> Tensor:
        batch = sampler.draw()
        with kept_states(model, layer) as kept:
            model(*source.inputs(batch))
        return (kept[0] - centers[goal[batch] * n_inputs + source.input[batch]]).square().mean() / unit

    return loss


def answer(model: GPT2, instances: Instances, batch: Tensor) -> Tensor:
    """Give the cross-entropy of a batch's answers."""
    return F.cross_entropy(model(*instances.inputs(batch)).logits, instances.targets[batch])
