"""States of chosen instances, run afresh through a model's evaluation graph at every probe."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastcluster_lm.config import ProbeConfig
from fastcluster_lm.data import Instances
from fastcluster_lm.device import generator
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.model import Evaluator
from fastcluster_lm.probe.points import points_of
from fastcluster_lm.scores.points import Points


class EvaluatorSource:
    """The chosen instances of one split, what is known of them, and the evaluation graph that gives their states.

    Shapes: n instances and n points, in one order; shape is (layers, d) of a state
    """

    def __init__(self, evaluator: Evaluator, instances: Instances, points: Points, shape: tuple[int, int]) -> None:
        assert points.on_map is not None
        self.evaluator, self.instances, self.points, self._shape = evaluator, instances, points, shape
        self._shown_instances = instances.select(points.on_map.to(instances.tokens.device))
        # every probe writes its states into the same buffers: of all points, and of those on the map alone
        self._buffers: dict[bool, Points] = {}

    def capture(self, *, shown: bool) -> Points:
        """Run the instances, all of them or those on the map alone, and give their points where they are now.

        Shapes: -> X (layers, n, d), good until the next call
        """
        if shown not in self._buffers:
            known = self.points.shown() if shown else self.points
            layers, d = self._shape
            self._buffers[shown] = known.at(torch.zeros(layers, len(known), d, device=self.instances.tokens.device))
        points = self._buffers[shown]
        sq_norms = self.evaluator.states_into(self._shown_instances if shown else self.instances, points.X)
        return points.at(points.X, sq_norms)

    def chunks(self) -> Iterator[Float[Tensor, "layers chunk d"]]:
        """Give the states some instances at a time, in their order, so that they never lie in memory all at once."""
        return self.evaluator.states_in_chunks(self.instances)


def choose_sources(
    splits: Mapping[str, Instances],
    evaluator: Evaluator,
    settings: ProbeConfig,
    *,
    n_inputs: int,
    shape: tuple[int, int],
) -> dict[str, EvaluatorSource]:
    """Choose the probed instances of each split, by its name; shape is (layers, d) of a state.

    Errors: ConfigError as in choose_instances
    """
    sources = {}
    for name, instances in splits.items():
        index, on_map = choose_instances(
            instances, n_points=settings.n_points, map_points=settings.map_points, seed=settings.seed, split=name
        )
        chosen = instances.select(index)
        points = points_of(chosen, name, n_inputs, index, on_map.nonzero()[:, 0])
        sources[name] = EvaluatorSource(evaluator, chosen, points, shape)
    return sources


def choose_instances(
    instances: Instances, *, n_points: int, map_points: int, seed: int, split: str
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """Choose the same number of instances for each (distribution, input), at random and without replacement.

    Shapes: n = n_points rounded down to a multiple of the number of (distribution, input) cells; likewise the map
            -> numbers of the chosen (n,), and which of them are on the map (n,)
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
    return torch.cat(chosen).to(device), torch.cat(on_map).to(device)
