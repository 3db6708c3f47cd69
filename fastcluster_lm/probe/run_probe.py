"""Score a run's probes in order: its chosen instances are run and scored; what goes on is saved with checkpoints."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.probe.cadence import Cadence
from fastcluster_lm.probe.pending import Captured, ProbeResult
from fastcluster_lm.probe.points import check_reachable
from fastcluster_lm.probe.positions import Scorers
from fastcluster_lm.probe.sources.evaluator import EvaluatorSource
from fastcluster_lm.probe.sources.ring import RingSource


class RunProbe:
    """Score a model's states; the model, the batches and every generator are left alone.

    sources: the chosen instances of `train` and `val`; ring: of training batches' states, None where none are scored;
    scorer: of all positions that these give states of
    """

    def __init__(
        self,
        sources: Mapping[str, EvaluatorSource],
        ring: RingSource | None,
        scorer: Scorers,
        cadence: Cadence,
    ) -> None:
        self.sources, self.ring, self.scorer, self.cadence = sources, ring, scorer, cadence
        check_reachable(sources["train"].points, scorer.first.config.n_neighbors)

    def again(self, *, cadence: Cadence, seed: int) -> "RunProbe":
        """Give a probe of the same model and instances that has seen nothing yet, with its own cadence and seed."""
        return RunProbe(self.sources, None, self.scorer.again(seed), cadence)

    @property
    def observes(self) -> bool:
        """Whether it scores the states of training batches, and so wants to see them."""
        return self.ring is not None

    def needs_weights(self, step: int) -> bool:
        """Say whether the probe of this step runs the model: a step probe of training batches' states does not."""
        return self.ring is None or self.cadence.is_full(step)

    def resolved(self) -> dict[str, Any]:
        """Say how many points are scored, once the asked numbers were made to fit the cells."""
        return {
            "probe_points": {name: len(own.points) for name, own in self.sources.items()},
            "map_points": {name: len(own.points.shown()) for name, own in self.sources.items()},
            "probes": self.cadence.count(),
        }

    def observe(self, batch: Int[Tensor, " B"], states: Float[Tensor, "B layers d"], step: int) -> None:
        """Take the states that a training step's forward gave, of the weights before its update.

        Shapes: batch (B,) numbers of training instances, states (B, P * layers, d)
        """
        if self.ring is not None:
            self.ring.push(batch, states, step - 1)

    def score(self, step: int) -> ProbeResult:
        """Score every layer, in the hidden space and on its map; a step probe scores less, and has no row too early."""
        started = time.perf_counter()
        result = self.scorer.score(self.capture(step))
        return replace(result, seconds=time.perf_counter() - started)

    def capture(self, step: int) -> Captured:
        """Give the points of a probe, where the weights as they are now put them.

        Shapes: X (P * layers, n, d) of each split. The ring serves training points once it is full; until
                then full probes run the chosen ones, and step probes wait
        """
        full, key_frame, ring = self.cadence.is_full(step), self.cadence.is_key_frame(step), self.ring
        if ring is not None and ring.full:
            train, source, age = ring.capture(shown=not full), "batch", ring.mean_age(step)
        elif ring is not None and not full:
            return Captured(step, {}, full, key_frame, "batch")
        else:
            train, source, age = self.sources["train"].capture(shown=not full), "fresh", 0.0
        points = {"train": train}
        if full:
            points["val"] = self.sources["val"].capture(shown=False)
        return Captured(step, points, full, key_frame, source, age)

    def state(self) -> dict[str, Tensor]:
        """Give all that the next probe depends on: what its scorer keeps, and the ring."""
        ring = {} if self.ring is None else self.ring.state()
        return self.scorer.state() | {f"ring/{name}": value for name, value in ring.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.scorer.load_state(state)
        ring = {name.removeprefix("ring/"): value for name, value in state.items() if name.startswith("ring/")}
        if self.ring is not None and ring:
            self.ring.load_state(ring)
