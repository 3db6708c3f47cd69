"""Tell once what an attached probe takes of training's time, and how often it may come for 5 % of it."""

import logging
import math
import time

import torch

log = logging.getLogger(__name__)

# share of training's time that probes may take, and steps after which a step's length is known
SHARE, ENOUGH = 0.05, 10


class Cost:
    """Times the first probe and the steps after it, and says in one line what follows from both."""

    def __init__(self, every: int, device: torch.device) -> None:
        self._every, self._device = every, device
        # of the first probe: its step, seconds of training's time, and seconds beside training
        self._first: tuple[int, float, float] | None = None
        # the step after it from which steps are timed, when that was begun, and seconds spent in probes since
        self._began: tuple[int, float] | None = None
        self._spent, self._told = 0.0, False

    def probed(self, step: int, seconds: float, beside: float) -> None:
        """Take the time of a probe; all but the first are passed over."""
        if self._first is None:
            self._first = step, seconds, beside

    def spend(self, seconds: float) -> None:
        """Take the time that training just stood still for."""
        self._spent += seconds

    def count(self, step: int) -> None:
        """Take the number of a step that is to begin, and tell once enough is known."""
        if self._told or self._first is None:
            return
        if self._began is None:
            self._began, self._spent = (step, self._now()), 0.0
        began, when = self._began
        if step - began < min(self._every, ENOUGH):
            return
        per_step = max(self._now() - when - self._spent, 1e-9) / (step - began)
        self._told = True
        log.warning(self._sentence(per_step))

    def _sentence(self, per_step: float) -> str:
        assert self._first is not None
        step, seconds, beside = self._first
        share = seconds / (seconds + self._every * per_step)
        enough = math.ceil((1 / SHARE - 1) * seconds / per_step)
        where = ""
        if beside:
            # training waits for a process that has not done the probe before
            enough = max(enough, math.ceil(beside / per_step))
            where = f", and {beside:.2g} s beside it"
        return (
            f"the probe of step {step} took {seconds:.2g} s of training's time{where}: {share:.1%} of it at "
            f"every={self._every}, where a step takes {per_step:.2g} s; every={enough} keeps it under {SHARE:.0%}"
        )

    def _now(self) -> float:
        if self._device.type == "cuda":
            # steps are launched ahead of what the device has done
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
