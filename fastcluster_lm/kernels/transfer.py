"""Numbers to a device and results back, without waiting for the device before they are wanted; a CPU copies nothing."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


def to_device(values: Shaped[np.ndarray, "..."] | Shaped[Tensor, "..."], device: torch.device) -> Tensor:
    """Give host values, or values that are there already, on a device; a GPU takes them from pinned memory.

    Shapes: any
    """
    if isinstance(values, Tensor) and values.device == device:
        return values
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    # from pageable memory the copy would wait for all that the device has been given to do
    return tensor.pin_memory().to(device, non_blocking=True)


class Fetch:
    """Tensors on their way to the host: those of a GPU into pinned memory, behind all that it was given before."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._host: list[Tensor] = []
        self._event: torch.cuda.Event | None = None
        for tensor in tensors:
            if tensor.device.type == "cpu":
                self._host.append(tensor)
                continue
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.append(pinned.copy_(tensor.contiguous(), non_blocking=True))
            self._event = self._event or torch.cuda.Event()
        if self._event is not None:
            self._event.record()

    def ready(self) -> bool:
        """Whether all of them have come; this waits for nothing."""
        return self._event is None or self._event.query()

    def wait(self) -> list[Tensor]:
        """Give them on the host, in their order, once they have come."""
        if self._event is not None and not self._event.query():
            self._event.synchronize()
        return self._host


class Glance:
    """Look at a flag again and again: on a CPU as it is, on a GPU as it was some while ago, so that nothing waits.

    For loops whose steps do nothing once the flag is down: then it does not matter when that is seen
    """

    def __init__(self) -> None:
        self._fetch: Fetch | None = None
        self._up = True

    def sees(self, flag: Tensor) -> bool:
        """Whether the flag is up, or was at an earlier look; it never goes up again."""
        if flag.device.type == "cpu":
            return bool(flag)
        if self._fetch is not None and self._fetch.ready():
            self._up = bool(self._fetch.wait()[0])
            self._fetch = None
        if self._fetch is None:
            self._fetch = Fetch([flag])
        return self._up
