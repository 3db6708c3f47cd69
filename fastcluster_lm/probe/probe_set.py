"""The instances whose states are scored: fixed for a run and balanced over distributions and inputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fastcluster_lm.config import ProbeConfig
from fastcluster_lm.data import Instances
from fastcluster_lm.device import generator
from fastcluster_lm.errors import ConfigError


@dataclass(frozen=True)
class ProbeSet:
    """The probed instances of one split, their numbers within it, and which of them are on the map."""

    instances: Instances
    on_map: Bool[Tensor, " n"]
    index: Int[Tensor, " n"]

    def labels(self, n_inputs: int) -> dict[str, Int[Tensor, " n"]]:
        """Give each instance's label of every kind that is scored."""
        return label_kinds(self.instances, n_inputs)


def label_kinds(instances: Instances, n_inputs: int) -> dict[str, Int[Tensor, " n"]]:
    """Give each instance's label of every kind that is scored."""
    return {
        "task": instances.task,
        "distribution": instances.distribution,
        "input": instances.input,
        "output": instances.output,
        "task_input": instances.task * n_inputs + instances.input,
    }


def choose_probe_sets(splits: Mapping[str, Instances], settings: ProbeConfig) -> dict[str, ProbeSet]:
    """Choose the probe set of each split, by its name.

    Errors: ConfigError as in choose_probe_set
    """
    return {
        name: choose_probe_set(
            instances, n_points=settings.n_points, map_points=settings.map_points, seed=settings.seed, split=name
        )
        for name, instances in splits.items()
    }


def choose_probe_set(instances: Instances, *, n_points: int, map_points: int, seed: int, split: str) -> ProbeSet:
    """Choose the same number of instances for each (distribution, input), at random and without replacement.

    Shapes: n = n_points rounded down to a multiple of the number of (distribution, input) cells; likewise the map
    Errors: ConfigError if a cell would get none on the map or has fewer instances than asked
    """
    cell = instances.distribution * (int(instances.input.max()) + 1) + instances.input
    cells, counts = cell.unique(return_counts=True)
    n_cells = len(cells)
    per_cell, per_cell_map = n_points // n_cells, map_points // n_cells
    if per_cell_map < 1:
        raise ConfigError(
            f"probe.map_points: expected at least {n_cells}, one for each distribution and input, got {map_points}"
        )
    if int(counts.min()) < per_cell:
        raise ConfigError(
            f"probe.n_points: expected at most {int(counts.min()) * n_cells}, all {split} instances "
            f"({int(counts.min())} for each distribution and input), got {n_points}; "
            f"raise data.n_{split}_instructions or lower it"
        )
    draw = generator(seed, torch.device("cpu"))
    chosen, on_map = [], []
    for value in cells.tolist():
        members = (cell == value).nonzero()[:, 0].cpu()
        picked = members[torch.randperm(len(members), generator=draw)[:per_cell]]
        chosen.append(picked)
        on_map.append(torch.arange(per_cell) < per_cell_map)
    device = instances.tokens.device
    index = torch.cat(chosen).to(device)
    return ProbeSet(instances.select(index), torch.cat(on_map).to(device), index)
