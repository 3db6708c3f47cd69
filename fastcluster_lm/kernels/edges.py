"""The affinities that the t-SNE kernels hand to each other: edges, or whole matrices of few points."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

# up to so many points a layer, matrices of all pairs are quicker than edges where compiled code walks them
PAIRED_POINTS = 640
# floats of a vector in the compiled code, to whole ones of which matrices and points are padded
VECTOR = 8


class Edges(NamedTuple):
    """The symmetrised affinities of all layers, row after row; a layer's values sum to 1.

    Shapes: starts (layers * n + 1,) i64: row r holds the entries starts[r] : starts[r + 1]
            columns (entries,) i32, a point of the row's own layer; values (entries,) f32
    """

    starts: Int[Tensor, " rows_and_end"]
    columns: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]

    def rows(self) -> Int[Tensor, " entries"]:
        """Give each entry's row, 0 to layers * n - 1."""
        lengths = self.starts.diff()
        rows = torch.arange(len(lengths), device=lengths.device)
        return rows.repeat_interleave(lengths, output_size=len(self.columns))


class Pairs(NamedTuple):
    """The same affinities of all pairs of points, 0 where there is no edge: for few points, on a CPU.

    Shapes: values (layers, padded, padded) f32 of n points, padded to whole vectors with zeros
    """

    values: Float[Tensor, "layers padded padded"]
    n: int

    def edges(self) -> Edges:
        """Give the pairs that attract each other as edges, for code that walks those."""
        found = self.values[:, : self.n, : self.n]
        layers, rows, columns = found.nonzero(as_tuple=True)
        lengths = (found != 0).sum(-1).flatten()
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return Edges(starts, columns.int(), found[layers, rows, columns])


Affinities = Edges | Pairs
