"""At which steps a probe runs, and whether its map starts cold; it runs nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cadence:
    """Step 0 and the last step are always probed unless probing is off; so is every `every`-th step between."""

    every: int
    steps: int
    key_frame_every: int

    def is_due(self, step: int) -> bool:
        """Say whether the probe runs after this step."""
        return self.every > 0 and (step % self.every == 0 or step == self.steps)

    def is_key_frame(self, step: int) -> bool:
        """Say whether this probe's map starts cold: the first, the last, and every `key_frame_every`-th between."""
        if step in (0, self.steps):
            return True
        return self.key_frame_every > 0 and step % (self.every * self.key_frame_every) == 0

    def count(self) -> int:
        """Count the probes of a whole run."""
        return sum(self.is_due(step) for step in range(self.steps + 1))
