"""What training asks of whatever runs its probes, and what it is given; a file beside this one for each kind."""

from typing import NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.probe.pending import ProbeResult


class FinishedProbe(NamedTuple):
    """A probe that is done, of the step after which it was asked for."""

    step: int
    result: ProbeResult


class SavedState(NamedTuple):
    """All that the next probe depends on, behind the probes asked for before it."""

    tensors: dict[str, Tensor]


Event = FinishedProbe | SavedState


class ProbeRunner(Protocol):
    """Run probes of a model in training, one after the other."""

    def observe(self, batch: Int[Tensor, " B"], states: Float[Tensor, "B layers d"], step: int) -> None:
        """Take what a training step's forward gave."""

    def submit(self, step: int) -> None:
        """Ask for a probe of the weights as they are now."""

    def save(self) -> None:
        """Ask for the state that the next probe would begin from."""

    def collect(self, *, wait: bool) -> list[Event]:
        """Give what is done and was not given yet, in the order it was asked for; with `wait` all of it."""

    @property
    def behind(self) -> int:
        """How many things were asked for that have not come."""

    @property
    def probes_behind(self) -> int:
        """How many of them are probes, and not the state behind one."""

    def close(self) -> None:
        """End what runs; nothing is collected any more."""
