"""At which steps a probe runs, whether it is a full one, and whether its map starts cold; it runs nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cadence:
    """Step 0 and the last step are always probed, in full, unless probing is off; so is every `every`-th step between.

    steps:      the last one; None while nobody knows it
    full_every: steps between full probes, rounded up to a multiple of `every`; the others are step probes
    """

    every: int
    steps: int | None
    key_frame_every: int
    full_every: int = 1

    @property
    def period(self) -> int:
        """Steps between full probes, a multiple of `every`."""
        return self.every * -(-self.full_every // self.every)

    def is_due(self, step: int) -> bool:
        """Say whether a probe runs after this step."""
        return self.every > 0 and (step % self.every == 0 or step == self.steps)

    def is_full(self, step: int) -> bool:
        """Say whether the probe of this step is a full one."""
        return step in (0, self.steps) or step % self.period == 0

    def is_key_frame(self, step: int) -> bool:
        """Say whether this full probe's map starts cold: the first, the last, every `key_frame_every`-th between."""
        if step in (0, self.steps):
            return True
        return self.key_frame_every > 0 and step % (self.period * self.key_frame_every) == 0

    def count(self) -> int:
        """Count the probes of a whole run, both tiers."""
        assert self.steps is not None
        return sum(self.is_due(step) for step in range(self.steps + 1))
