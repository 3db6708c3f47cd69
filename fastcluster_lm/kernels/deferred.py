"""Judge values that lie on a device: at once, or once the results are fetched, so that nothing waits before."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from fastcluster_lm.errors import FclmError

Judge = Callable[[Tensor], FclmError | None]


class Checks:
    """Values that are still to be judged, in the order in which they were met."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Judge]] = []

    def values(self) -> list[Tensor]:
        """Give what is to be fetched, a few numbers each."""
        return [values for values, _ in self._pending]

    def settle(self, fetched: list[Tensor]) -> None:
        """Judge the values, now on the host.

        Errors: the first one that a judge finds
        """
        for values, (_, judge) in zip(fetched, self._pending, strict=True):
            _raise(judge(values))


_open: ContextVar[Checks | None] = ContextVar("checks", default=None)


@contextmanager
def deferred(device: torch.device) -> Iterator[Checks]:
    """Put off the checks of values on a GPU made within; on a CPU each is made at once, as outside."""
    checks = Checks()
    token = _open.set(None if device.type == "cpu" else checks)
    try:
        yield checks
    finally:
        _open.reset(token)


def deferring(values: Tensor) -> bool:
    """Whether a check of these values would be put off."""
    return values.device.type != "cpu" and _open.get() is not None


def check(values: Tensor, judge: Judge) -> None:
    """Let a judge see a few numbers: now, or where checks are put off when they are settled.

    Shapes: values of any shape, on any device; the judge gets them on the host
    Errors: what the judge gives
    """
    checks = _open.get()
    if checks is not None and values.device.type != "cpu":
        checks._pending.append((values, judge))
        return
    _raise(judge(values.cpu()))


def _raise(error: FclmError | None) -> None:
    if error is not None:
        raise error
