"""The run folder of a model that was trained elsewhere: begun, written probe after probe, ended; it scores nothing."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.device import describe_environment
from fastcluster_lm.probe.scorer import Scorer, narrowest_group
from fastcluster_lm.scores.points import Points
from fastcluster_lm.store import RunFolder

# names of one kind of labels that run.toml holds at most
MOST_NAMES = 1000


@dataclass(frozen=True)
class Subject:
    """A model that others train or have trained, and what is asked of its states.

    n_layers: layers above the one that stands for the embedding
    points:   by split, those that are scored
    names:    by kind of labels their names, in the order of their numbers
    scores:   as asked for, where the scorer's own may have been lowered to what the points allow
    of:       what else is known of the model
    """

    model: nn.Module
    n_layers: int
    width: int
    points: Mapping[str, Points]
    names: Mapping[str, Sequence[str]]
    scores: ScoresConfig
    of: Mapping[str, Any] = field(default_factory=dict)

    def described(self, name: str, scorer: Scorer, probe: Mapping[str, Any], space: str) -> dict[str, Any]:
        """Say for run.toml what the run is; what only the trainer of the model knows is left out.

        probe: when and which points; space: which one the report leads with
        """
        group = narrowest_group(list(self.points.values())[-1]) if space == "hidden" else "all"
        return {
            "name": name,
            "seed": scorer.seed,
            "attached": {
                "model": type(self.model).__name__,
                "n_parameters": sum(weight.numel() for weight in self.model.parameters()),
                "instances": {split: len(own) for split, own in self.points.items()},
                "names": {kind: list(own) for kind, own in self.names.items() if len(own) <= MOST_NAMES},
                **self.of,
            },
            "model": {"n_layers": self.n_layers, "d_model": self.width},
            "probe": dict(probe),
            "scores": asdict(self.scores),
            "report": {"space": space, "group": group, "layer": self.n_layers},
            "resolved": {
                "engine": scorer.engine.name,
                "perplexity": scorer.config.perplexity,
                "threads": torch.get_num_threads(),
                "device": str(scorer.device),
            },
        }


class Record:
    """A run folder that this process writes until it is closed, and that is then finished or stopped."""

    def __init__(self, path: str | Path, described: Mapping[str, Any]) -> None:
        """Begin a new one.

        Errors: RunExistsError if the path exists; RunFolderError if the disk refuses
        """
        self.folder = RunFolder.create(path, described, describe_environment())
        self.probes, self.seconds = 0, 0.0
        self._open = ExitStack()
        self._open.enter_context(self.folder.lock())

    def write_scores(
        self, step: int, rows: Sequence[Mapping[str, Any]], maps: Mapping[str, np.ndarray], *, warm: bool
    ) -> None:
        """Write what a probe found; without a map there is no file of one.

        Errors: RunFolderError if the disk refuses
        """
        if maps:
            self.folder.write_map(step, maps, {"warm": str(warm).lower()})
        self.folder.append_scores(rows)
        self.probes += 1

    def write_step(self, step: int, seconds: float, **columns: Any) -> None:
        """Write how long a probe took, and what else is known of its step; training stood still for all of it.

        Errors: RunFolderError if the disk refuses
        """
        self.seconds += seconds
        self.folder.append_steps([{"step": step, "probe_ms": seconds * 1e3, "probe_wait_ms": seconds * 1e3} | columns])

    def finish(self, last_step: int) -> None:
        """Mark the run as finished, and close it."""
        self.folder.mark_finished({"steps": last_step, "probes": self.probes, "probe_seconds": self.seconds})
        self.close()

    def close(self) -> None:
        """Release the folder; unless it was finished, as that of a run that was stopped."""
        self._open.close()
