"""Instances of some tasks, and instances that are asked for something else than their answer; it trains nothing."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fastcluster_lm.data import Instances
from fastcluster_lm.engine import Rooms
from fastcluster_lm.tasks import TaskSet


def relabel(rooms: Rooms, instances: Instances, goal: Int[Tensor, " n"]) -> Instances:
    """Give each instance the answer of another task, named by its number."""
    tables = torch.tensor([task.table for task in rooms.taskset.tasks], device=goal.device)
    output = tables[goal, instances.input]
    return replace(instances, targets=output_ids(rooms)[output], output=output)


def only(instances: Instances, task: int) -> Instances:
    """Keep the instances of a task."""
    return instances.select((instances.task == task).nonzero()[:, 0])


def without(instances: Instances, task: int) -> Instances:
    """Leave out the instances of a task."""
    return instances.select((instances.task != task).nonzero()[:, 0])


def where_answers_differ(rooms: Rooms, relabelled: Instances) -> Instances:
    """Keep the relabelled instances whose answer is another than their own task's."""
    tables = torch.tensor([task.table for task in rooms.taskset.tasks], device=relabelled.task.device)
    return relabelled.select((tables[relabelled.task, relabelled.input] != relabelled.output).nonzero()[:, 0])


def shuffled_tasks(instances: Instances, seed: int) -> Int[Tensor, " n"]:
    """Reassign whole distributions to tasks at random, as the block null does."""
    n = int(instances.distribution.max()) + 1
    task_of = torch.zeros(n, dtype=torch.int64, device=instances.task.device)
    task_of[instances.distribution] = instances.task
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n)).to(task_of.device)
    return task_of[order][instances.distribution]


def with_identities(taskset: TaskSet) -> TaskSet:
    """Add a token for the identity of each task to the outputs; tables stay."""
    return replace(taskset, outputs=(*taskset.outputs, *(f"id{index}" for index in range(taskset.n_tasks))))


def asking(kind: str, instances: Instances, outputs: Tensor, n_answers: int, seed: int) -> Instances:
    """Ask for the identity of an instance's task, or of the task that its distribution is reassigned to.

    kind:    identity, or any other word for the reassigned one
    outputs: token ids of all outputs, of which the first n_answers are answers and the others identities
    """
    identity = instances.task if kind == "identity" else shuffled_tasks(instances, seed)
    return replace(instances, targets=outputs[n_answers + identity])


def of_tasks(instances: Instances, chosen: range) -> Instances:
    """Keep the instances of some tasks."""
    kept = (instances.task >= chosen.start) & (instances.task < chosen.stop)
    return instances.select(kept.nonzero()[:, 0])


def output_ids(rooms: Rooms) -> Tensor:
    """Give the token ids of a task set's outputs."""
    return torch.tensor(rooms.vocabulary.encode(rooms.taskset.outputs), device=rooms.device.torch_device)
