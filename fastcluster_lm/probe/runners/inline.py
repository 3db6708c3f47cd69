"""Run each probe at once, in training's own process, which waits for it."""

from fastcluster_lm.probe.run_probe import RunProbe
from fastcluster_lm.probe.runners.runner import Event, FinishedProbe, SavedState


class InlineRunner:
    """Score each probe when it is asked for, while training waits."""

    def __init__(self, probe: RunProbe) -> None:
        self._probe = probe
        self._done: list[Event] = []
        self.observe = probe.observe

    def submit(self, step: int) -> None:
        """Score now."""
        self._done.append(FinishedProbe(step, self._probe.score(step)))

    def save(self) -> None:
        """Take the state as it is."""
        self._done.append(SavedState(self._probe.state()))

    def collect(self, *, wait: bool) -> list[Event]:
        """Give what was done since."""
        done, self._done = self._done, []
        return done

    @property
    def behind(self) -> int:
        """Nothing is ever asked for that is not done at once."""
        return 0

    probes_behind = behind

    def close(self) -> None:
        """Nothing runs."""
