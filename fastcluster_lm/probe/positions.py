"""Score several tokens' states in one probe: each position has a scorer, as if it were alone, which does the work."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.probe.pending import Captured, PendingProbe, ProbeResult
from fastcluster_lm.probe.plan import EVERYTHING, ProbePlan
from fastcluster_lm.probe.scorer import Scorer
from fastcluster_lm.scores.engines.params import Engine

# what the names of tensors begin with that are of a position beyond the first
FURTHER = "positions/"


class PendingPositions(NamedTuple):
    """The probes of one model at all positions, whose device work is launched but not yet fetched."""

    parts: list[PendingProbe]

    def ready(self) -> bool:
        """Whether all has come; this waits for nothing."""
        return all(part.ready() for part in self.parts)


class Scorers:
    """Score probes of one model in their order at each of its probed positions, as a Scorer does at one.

    names: of the positions. What is captured of them lies side by side: all layers of the first, then those of the
           next, X (P * layers, n, d). No row or map depends on the positions beside its own
    """

    def __init__(
        self,
        names: Sequence[str],
        config: ScoresConfig,
        engine: Engine,
        device: torch.device,
        seed: int,
        plan: ProbePlan = EVERYTHING,
    ) -> None:
        self.names = tuple(names)
        self.first = Scorer(config, engine, device, seed, plan)
        # the same points stand at all positions, and are divided once
        others = (Scorer(config, engine, device, seed, plan, self.first.divisions) for _ in self.names[1:])
        self._scorers = dict(zip(self.names, (self.first, *others), strict=True))

    def of(self, position: str) -> Scorer:
        """Give the scorer of one position."""
        return self._scorers[position]

    def again(self, seed: int) -> "Scorers":
        """Give scorers that have seen nothing yet, with a seed of their own."""
        return Scorers(self.names, self.first.config, self.first.engine, self.first.device, seed, self.first.plan)

    def score(self, captured: Captured, spaces: Collection[str] | None = None) -> ProbeResult:
        """Score one probe's points at all positions, waiting for it; spaces: the plan's by default."""
        return joined({name: scorer.score(own, spaces) for name, scorer, own in self.apart(captured)})

    def launch(self, captured: Captured, spaces: Collection[str] | None = None) -> PendingPositions:
        """Give the device all that a probe needs of it; on a GPU nothing here waits for it."""
        return PendingPositions([scorer.launch(own, spaces) for _, scorer, own in self.apart(captured)])

    def finish(self, pending: PendingPositions) -> ProbeResult:
        """Make rows and maps of what the device found, waiting for it if need be."""
        found = zip(self._scorers.items(), pending.parts, strict=True)
        return joined({name: scorer.finish(part) for (name, scorer), part in found})

    def halve_memory(self) -> bool:
        """Make the engines' blocks half as large; False once they are at their smallest."""
        return all([scorer.halve_memory() for scorer in self._scorers.values()])

    def apart(self, captured: Captured) -> Iterator[tuple[str, Scorer, Captured]]:
        """Give each position's name, its scorer and what was captured there.

        Shapes: X (P * layers, n, d) -> (layers, n, d) a position, views
        """
        split = {name: own.apart(len(self.names)) for name, own in captured.points.items()}
        for at, (name, scorer) in enumerate(self._scorers.items()):
            points = {split_name: own[at] for split_name, own in split.items()}
            yield name, scorer, replace(captured, points=points, position=name)

    def state(self) -> dict[str, Tensor]:
        """Give all that the next probe depends on; of one position alone it is what its scorer gives."""
        return {
            f"{state_prefix(self.names, position)}{name}": value
            for position, scorer in self._scorers.items()
            for name, value in scorer.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        for position, scorer in self._scorers.items():
            prefix = state_prefix(self.names, position)
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            scorer.load_state(own)


def state_prefix(names: Sequence[str], position: str) -> str:
    """Say what the names of a position's saved tensors begin with: nothing for the first."""
    return "" if position == names[0] else f"{FURTHER}{position}/"


def joined(results: Mapping[str, ProbeResult]) -> ProbeResult:
    """Make one result of those of all positions: their rows in order, their maps' points under names of their own.

    What is known of the points beside their places is the same at all of them, and is kept once
    """
    first, *others = results.values()
    if not others:
        return first
    skipped = [f"at {name}, {own.skipped}" for name, own in results.items() if own.skipped is not None]
    further = {name: own for name, own in results.items() if own is not first}
    return ProbeResult(
        [row for own in results.values() for row in own.rows],
        first.maps | {f"points/{name}": own.maps["points"] for name, own in further.items() if own.maps},
        first.warm,
        first.seconds,
        "; ".join(skipped) or None,
        {name: own.warm for name, own in further.items()},
    )
