"""Neighbours among points of many coordinates, a layer at a time: codes or a matmul propose, compiled code settles."""

import ctypes
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.native import address, library, thread_count
from fastcluster_lm.kernels.nearest_neighbors.codes import (
    MOST_WIDTH,
    SOURCE,
    Cells,
    Codes,
    cells_of,
    quantise,
    quantise_both,
)
from fastcluster_lm.kernels.nearest_neighbors.contraction import contracting_axes, in_codes, pays
from fastcluster_lm.kernels.rounding import SPARE, matmul_rounding, row_squares

# a block of a matmul's values fits a processor's cache
BLOCK_BYTES = 8 * 2**20
# points beyond its candidates that a row may look at, as a share of the bank, in fewer coordinates and in all: more
# cost as much as the next look at the row
LOOKED_AT_FEW, LOOKED_AT = 1 / 16, 1 / 4
# of so many groups of rows that are looked at together one is tried first; where fewer than this share of its rows is
# settled, the look is given up
TRIED, TOGETHER, WORTH = 16, 8, 0.3


class Layer(NamedTuple):
    """One layer's points and its results.

    Shapes: queries (nq, d), bank (nb, d); offset (d,): centres them; query_ids (nq,), bank_ids (nb,) i32, or None;
            distances, indices (nq, k)
    """

    queries: Float[Tensor, "nq d"]
    bank: Float[Tensor, "nb d"]
    offset: Float[Tensor, " d"]
    query_ids: Int[Tensor, " nq"] | None
    bank_ids: Int[Tensor, " nb"] | None
    distances: Float[Tensor, "nq k"]
    indices: Int[Tensor, "nq k"]


def search_layer(native: ctypes.CDLL, layer: Layer, memory_budget: int) -> None:
    """Write each query's nearest bank points into the layer's results, nearest first.

    Units:  memory_budget in bytes, for a block of a matmul's values
    """
    _Search(native, layer, memory_budget).run()


class _Search:
    """Looks at rows, the cheap looks first, until each is settled."""

    def __init__(self, native: ctypes.CDLL, layer: Layer, memory_budget: int) -> None:
        self.native, self.quantised, self.layer = native, library(SOURCE), layer
        self.own = layer.queries is layer.bank
        (self.n_queries, self.k), (self.n_bank, self.width) = layer.distances.shape, layer.bank.shape
        self.tile = max(1, min(memory_budget, BLOCK_BYTES) // (4 * self.n_bank))
        self.settled = torch.zeros(self.n_queries, dtype=torch.uint8)

    def run(self) -> None:
        # 1. one byte a coordinate bounds each distance from below and above; most rows are settled by that
        rows = torch.arange(self.n_queries)
        if self.quantised is not None and self.n_queries and self.width <= MOST_WIDTH:
            rows = self._by_codes()
        # 2. what is left gets float32 products, whose rounding is bounded too
        if len(rows):
            self._by_products(rows)

    def _by_codes(self) -> Tensor:
        """Look at codes, of few coordinates first where that pays; give the rows left, near ones together."""
        layer = self.layer
        # 1. codes of all coordinates, and what float32 may round off in the bounds that they give
        queries, bank = self._codes(layer.queries, layer.bank, layer.offset)
        sizes = [(part.squares.sqrt() + part.errors).square() for part in (queries, bank)]
        slack = matmul_rounding(self.width) * (sizes[0] + sizes[1][: self.n_bank].amax())
        # 2. rows in an order in which those near each other are looked at together, since they share candidates; where
        #    it pays, a first look at a few coordinates that tell most
        if pays(self.n_queries, self.n_bank, self.width, self.k):
            rows, asked, among = self._contracted(queries, bank)
            rows = self._try(rows, asked, among, slack, LOOKED_AT_FEW)
        else:
            rows = self._cells(layer.queries, layer.offset, bank).order()
        # 3. a look at all coordinates
        return self._try(rows, queries, bank, slack, LOOKED_AT)

    def _codes(self, queries: Tensor, bank: Tensor, offset: Tensor) -> tuple[Codes, Codes]:
        if self.own:
            return quantise_both(queries, offset)
        return quantise(queries, offset, bank=False), quantise(bank, offset, bank=True)

    def _try(self, rows: Tensor, queries: Codes, bank: Codes, slack: Tensor, share: float) -> Tensor:
        """Look at some of the rows, then at all where that settles enough; give those that are left, in their order."""
        if not len(rows):
            return rows
        tried, most = torch.arange(len(rows)) // TOGETHER % TRIED == 0, int(share * self.n_bank)
        self._settle_by_codes(rows[tried], queries, bank, slack, most)
        if float(self.settled[rows[tried]].float().mean()) >= WORTH:
            self._settle_by_codes(rows[~tried], queries, bank, slack, most)
        return rows[self.settled[rows] == 0]

    def _contracted(self, queries: Codes, bank: Codes) -> tuple[Tensor, Codes, Codes]:
        """Give an order of the queries, near ones together, and codes of queries and bank in few coordinates."""
        layer = self.layer
        # 1. the axes along which the means of cells of near points differ most
        points = queries if self.own else quantise(layer.bank, layer.offset, bank=False)
        cells = cells_of(layer.bank, layer.offset, bank)
        axes = in_codes(contracting_axes(cells.means(points)[:, : self.width]))
        # 2. the points' coordinates on them, in codes again
        origin = torch.zeros(axes.n_axes, dtype=torch.float32)
        reduced_bank = axes.coordinates(points)
        reduced = reduced_bank if self.own else axes.coordinates(queries)
        asked, among = self._codes(reduced, reduced_bank, origin)
        # 3. what the points' own codes lost comes on top of what those of their coordinates lose
        asked.errors.add_(queries.errors)
        among.errors[: self.n_bank].add_(points.errors)
        own = cells if self.own else self._cells(reduced, origin, among)
        return own.order(), asked, among

    def _cells(self, queries: Tensor, offset: Tensor, bank: Codes) -> Cells:
        return cells_of(queries, offset, bank if self.own else quantise(queries, offset, bank=True))

    def _settle_by_codes(self, rows: Tensor, queries: Codes, bank: Codes, slack: Tensor, most: int) -> None:
        assert self.quantised is not None
        self.quantised.neighbors_quantised(
            address(queries.codes, torch.int8),
            *(address(part, torch.float32) for part in queries[1:4]), address(queries.sums, torch.int32),
            address(bank.codes, torch.uint8), *(address(part, torch.float32) for part in bank[1:4]),
            ctypes.c_int64(queries.stride), address(rows, torch.int64), ctypes.c_int64(len(rows)),
            address(slack, torch.float32), *self._rest(most),
        )  # fmt: skip

    def _by_products(self, rows: Tensor) -> None:
        """Settle the rows by a matmul of all coordinates."""
        layer = self.layer
        # |q - b|^2 = |q|^2 + |b|^2 - 2 q.b, of centred points; the kernel adds |q|^2, looks at the candidates of the
        # least values exactly, and settles a row if no other can be nearer by more than the slack
        bank = layer.bank - layer.offset
        queries = bank if self.own else layer.queries - layer.offset
        query_sq, bank_sq = row_squares(queries), row_squares(bank)
        # what matmuls may have rounded off the squared distance of a query and any point
        slack = matmul_rounding(self.width) * (query_sq + bank_sq.amax())
        for which in rows.split(self.tile):
            block = torch.addmm(bank_sq, queries[which], bank.mT, alpha=-2)  # (rows, nb)
            self.native.neighbors_bounded(
                address(block, torch.float32), address(which, torch.int64), ctypes.c_int64(len(which)),
                address(query_sq, torch.float32), address(slack, torch.float32), *self._rest(self.n_bank),
            )  # fmt: skip

    def _rest(self, most: int) -> list[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_int32 | None]:
        """What both ways of looking take after their bounds: points, ids, sizes, results, threads."""
        layer = self.layer
        sizes = (self.n_queries, self.n_bank, self.width, self.k, min(self.k + SPARE, self.n_bank), most)
        return [
            address(layer.queries, torch.float32),
            address(layer.bank, torch.float32),
            *(None if x is None else address(x, torch.int32) for x in (layer.query_ids, layer.bank_ids)),
            *(ctypes.c_int64(size) for size in sizes),
            address(self.settled, torch.uint8),
            address(layer.distances, torch.float32),
            address(layer.indices, torch.int64),
            ctypes.c_int32(thread_count()),
        ]
