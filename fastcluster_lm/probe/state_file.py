"""Hidden states on disk, layer after layer: written a few instances at a time, read a few layers at a time."""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.errors import ProbeError
from fastcluster_lm.store.files import explaining


class StateFile:
    """The states (layers, n, d) of n instances, float32; in memory is only what is being written or read."""

    def __init__(self, path: Path, n: int) -> None:
        self.path, self.n = path, n
        self.n_layers, self.width, self.written = 0, 0, 0
        with explaining("write", path):
            path.write_bytes(b"")

    def write(self, states: Float[Tensor, "layers chunk d"]) -> None:
        """Put the next instances behind those that were written.

        Errors: ProbeError for more instances, or other layers or widths; RunFolderError if the disk refuses
        """
        n_layers, chunk, width = states.shape
        if self.written == 0:
            self.n_layers, self.width = n_layers, width
        if (n_layers, width) != (self.n_layers, self.width) or self.written + chunk > self.n:
            raise ProbeError(
                f"states of shape {tuple(states.shape)} came after {self.written} of {self.n} instances; expected "
                f"({self.n_layers}, {self.n - self.written} or fewer, {self.width})"
            )
        rows = states.detach().to("cpu", torch.float32).contiguous().numpy()
        with explaining("write", self.path), self.path.open("r+b") as file:
            for layer in range(n_layers):
                file.seek(self._offset(layer, self.written))
                file.write(rows[layer].data)
        self.written += chunk

    def read(self, first: int, last: int) -> Float[Tensor, "layers n d"]:
        """Read the layers from first up to last, that one left out.

        Errors: ProbeError before all instances are written; RunFolderError if the disk refuses
        """
        if self.written != self.n:
            raise ProbeError(f"{self.path} holds {self.written} of {self.n} instances; expected all of them")
        shape = (last - first, self.n, self.width)
        with explaining("read", self.path):
            values = np.fromfile(self.path, np.float32, math.prod(shape), offset=self._offset(first, 0))
        return torch.from_numpy(values.reshape(shape))

    def _offset(self, layer: int, instance: int) -> int:
        return 4 * self.width * (layer * self.n + instance)
