"""Memory that betrays reads outside the inputs, cells never written and writes outside the outputs; it runs nothing."""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

TAIL = 64
CANARY = -7


def padded(X: Tensor) -> Tensor:
    """Put the rows inside a larger block of NaN, so that a read outside them shows."""
    *batch, n, width = X.shape
    block = X.new_full((*batch, n + 3, width + 5), torch.nan)
    inside = block[..., :n, :width]
    inside.copy_(X)
    return inside


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Let torch.empty give NaN and canaries; at the end every cell of it must be written, and nothing behind it.

    A float result of a kernel must not hold NaN, nor an integer one -7
    """
    buffers: list[tuple[Tensor, int]] = []
    plain = torch.empty

    def poisoned_empty(*shape: int | tuple[int, ...], **options: torch.dtype) -> Tensor:
        lengths = tuple(shape[0]) if shape and not isinstance(shape[0], int) else shape
        count = math.prod(lengths)
        buffer = plain(count + TAIL, **options)
        buffer.fill_(torch.nan if buffer.is_floating_point() else CANARY)
        buffers.append((buffer, count))
        return buffer[:count].view(lengths)

    torch.empty = poisoned_empty
    try:
        yield
    finally:
        torch.empty = plain
    assert buffers, "no output came from torch.empty, so nothing was proven"
    for buffer, count in buffers:
        poison = buffer.isnan() if buffer.is_floating_point() else buffer == CANARY
        assert bool(poison[count:].all()), "a kernel wrote behind its output"
        assert not bool(poison[:count].any()), f"{int(poison[:count].sum())} of {count} cells were not written"


def assert_ten_equal(run: Callable[[], tuple[Tensor, ...]]) -> None:
    """Run ten times and expect the same bits."""
    first = run()
    for _ in range(9):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True)), "a rerun gave other bits"
