"""Hidden states on disk, layer after layer: written a few instances at a time, read a few layers at a time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.errors import DataError, ProbeError
from fastcluster_lm.scores.points import Points
from fastcluster_lm.store.files import explaining

Chunks = Iterable[Float[Tensor, "layers chunk d"]]


class FileSource:
    """States of all splits, never in memory all at once: written as they come, given back some layers at a time.

    layers: the wanted ones of each position, by number, in their order; folder holds a file for each split, of the
            wanted layers alone, all those of the first position before those of the next
    Units:  on disk 4 bytes a number
    """

    def __init__(self, folder: Path, points: Mapping[str, Points], layers: Sequence[int], n_positions: int = 1) -> None:
        self.points, self.layers, self._n_positions = points, list(layers), n_positions
        self._files = {name: StateFile(folder / f"{name}.states", len(own)) for name, own in points.items()}

    def write(self, chunks: Mapping[str, Chunks]) -> None:
        """Take the states of each split's points, some at a time and in their order.

        Shapes: chunks (P * layers, chunk, d) of all layers, by split
        Errors: DataError naming the wanted layers that hold NaN; RunFolderError if the disk refuses
        """
        for name, file in self._files.items():
            for states in chunks[name]:
                n_layers = len(states) // self._n_positions
                wanted = [at * n_layers + layer for at in range(self._n_positions) for layer in self.layers]
                # chosen by number, a copy is made of the wanted layers alone
                chosen = states if len(wanted) == len(states) else states[wanted]
                _check_finite(chosen, self.layers * self._n_positions)
                file.write(chosen)

    @property
    def layer_bytes(self) -> int:
        """How much memory one layer of all points takes."""
        return sum(4 * file.n * file.width for file in self._files.values())

    def capture(self, position: int, first: int, last: int, device: torch.device) -> dict[str, Points]:
        """Give the points where a position's wanted layers from first up to last put them, that one left out.

        Shapes: -> X (last - first, n, d) by split
        """
        before = position * len(self.layers)
        return {
            name: own.at(self._files[name].read(before + first, before + last).to(device))
            for name, own in self.points.items()
        }


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


def _check_finite(states: Float[Tensor, "layers chunk d"], layers: Sequence[int]) -> None:
    finite = states.isfinite().flatten(1).all(1).tolist()
    broken = {str(layer): None for layer, is_finite in zip(layers, finite, strict=True) if not is_finite}
    if broken:
        raise DataError(f"the states hold NaN or infinity in layer {', '.join(broken)}; expected finite values")
