"""Tell once what an attached probe takes of training's time, and how often it may come for 5 % of it."""

import logging
import math
import time

import torch

from fastcluster_lm.probe.cadence import Cadence

log = logging.getLogger(__name__)

# share of training's time that probes may take, and steps after which a step's length is known
SHARE, ENOUGH = 0.05, 10


class Cost:
    """Times the first probe of each tier and the steps after it, and says in one line what follows from both."""

    def __init__(self, cadence: Cadence, device: torch.device) -> None:
        self._every, self._device = cadence.every, device
        # probes from one full one to the next
        self._turn = cadence.period // cadence.every
        # the first probe of a tier, by whether it is full: its step, seconds of training's time, and seconds beside it
        self._first: dict[bool, tuple[int, float, float]] = {}
        # the step after it from which steps are timed, when that was begun, and seconds spent in probes since
        self._began: tuple[int, float] | None = None
        self._spent, self._told = 0.0, False

    def probed(self, step: int, seconds: float, beside: float, *, full: bool = True) -> None:
        """Take the time of a probe; all but the first of a tier are passed over."""
        self._first.setdefault(full, (step, seconds, beside))

    def spend(self, seconds: float) -> None:
        """Take the time that training just stood still for."""
        self._spent += seconds

    def count(self, step: int) -> None:
        """Take the number of a step that is to begin, and tell once enough is known."""
        if self._told or True not in self._first:
            return
        if self._began is None:
            self._began, self._spent = (step, self._now()), 0.0
        began, when = self._began
        if step - began < min(self._every, ENOUGH) or (self._turn > 1 and False not in self._first):
            return
        per_step = max(self._now() - when - self._spent, 1e-9) / (step - began)
        self._told = True
        log.warning(self._sentence(per_step))

    def _sentence(self, per_step: float) -> str:
        # all probes of a turn, of which one is full; training waits for a process that has not done them before
        kinds = [(*self._first[True], 1)]
        if self._turn > 1:
            kinds.append((*self._first[False], self._turn - 1))
        seconds, beside = (sum(kind[at] * kind[3] for kind in kinds) for at in (1, 2))
        share = seconds / (seconds + self._turn * self._every * per_step)
        enough = max((1 / SHARE - 1) * seconds, beside) / per_step
        took = [
            f"{step} took {own:.2g} s of training's time" + (f", and {elsewhere:.2g} s beside it" if elsewhere else "")
            for step, own, elsewhere, _ in kinds
        ]
        return (
            f"the probe of step {'; the step probe of step '.join(took)}: {share:.1%} of it at "
            f"{self._at(self._every)}, where a step takes {per_step:.2g} s; {self._at(math.ceil(enough / self._turn))} "
            f"keeps it under {SHARE:.0%}"
        )

    def _at(self, every: int) -> str:
        return f"every={every}" + (f", full_every={every * self._turn}" if self._turn > 1 else "")

    def _now(self) -> float:
        if self._device.type == "cuda":
            # steps are launched ahead of what the device has done
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
