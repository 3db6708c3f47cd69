"""Points of one layer in eight-bit codes, for quantised.cpp; it finds no neighbours."""

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.native import address, library, thread_count
from fastcluster_lm.kernels.pages import room

SOURCE = Path(__file__).with_name("quantised.cpp")
VECTOR, QUAD = 8, 4
# a sum of products of two codes of this many coordinates fits in 32 bits
MOST_WIDTH = 65536
# points that others are put beside: at most, and one for so many; and the coordinates that are looked at for it
PIVOTS, POINTS_A_PIVOT, CELL_WIDTH = 320, 20, 512


class Codes(NamedTuple):
    """Points as whole numbers times a scale of each point, which lie within `errors` of them.

    Shapes: codes i8 (n, stride), of queries; or u8 in whole vectors of points, of a bank, as codes.h orders them;
            scales, squares, errors f32, sums i32 (n,), of a bank in whole vectors
    """

    codes: Tensor
    scales: Float[Tensor, " n"]
    squares: Float[Tensor, " n"]
    errors: Float[Tensor, " n"]
    sums: Int[Tensor, " n"]

    @property
    def stride(self) -> int:
        """Give the number of coordinates, in whole quads."""
        return self.codes.shape[-1]

    def decoded(self) -> Float[Tensor, "n stride"]:
        """Give the points that the codes stand for; a bank's in whole vectors."""
        if self.codes.dtype == torch.int8:
            return self.codes.float() * self.scales[:, None]
        groups = self.codes.view(-1, self.stride // QUAD, VECTOR, QUAD)
        numbers = groups.transpose(1, 2).reshape(-1, self.stride).float() - _native().bank_offset()
        return numbers * self.scales[:, None]


def quantise(points: Float[Tensor, "n d"], offset: Float[Tensor, " d"], *, bank: bool) -> Codes:
    """Encode points less an offset, as queries or as a bank.

    Units:  errors are Euclidean, in units of the points, and bound what codes, scales and float32 lose of a point
    """
    found = _room(points, bank=bank)
    _encode(points, offset, None if bank else found, found if bank else None)
    return found


def quantise_both(points: Float[Tensor, "n d"], offset: Float[Tensor, " d"]) -> tuple[Codes, Codes]:
    """Encode points less an offset as queries and as a bank, in one pass."""
    queries, bank = _room(points, bank=False), _room(points, bank=True)
    _encode(points, offset, queries, bank)
    return queries, bank


def coordinates_along(points: Codes, axes: Codes, n_axes: int) -> Float[Tensor, "n axes"]:
    """Give the coordinates of what the points' codes stand for, along what the axes' codes do, which are a bank's."""
    n = len(points.scales)
    out = room(n, n_axes, dtype=torch.float32)
    codes, scales, _, sums = _query(points)
    _native().coordinates_along(
        codes, scales, sums, ctypes.c_int64(n), *_bank(axes)[:2], ctypes.c_int64(n_axes),
        ctypes.c_int64(points.stride), address(out, torch.float32), ctypes.c_int32(thread_count()),
    )  # fmt: skip
    return out


class Cells(NamedTuple):
    """Points by the nearest of a few pivots among them.

    Shapes: places (n,), the pivot of each point; ranks (cells,), the place of each pivot in a chain of near ones
    """

    places: Int[Tensor, " n"]
    ranks: Int[Tensor, " cells"]

    def order(self) -> Int[Tensor, " n"]:
        """Order the points so that those near each other come together."""
        # points of one class may have several pivots, whose points come together too
        return self.ranks[self.places].argsort(stable=True)

    def means(self, codes: Codes) -> Float[Tensor, "cells stride"]:
        """Average the points of each cell, times the root of their number: noise is then what it is in one point."""
        sums = torch.empty(len(self.ranks), codes.stride, dtype=torch.float32)
        _native().cell_sums(
            address(codes.codes, torch.int8), address(codes.scales, torch.float32), address(self.places, torch.int64),
            *(ctypes.c_int64(size) for size in (len(self.places), codes.stride, len(self.ranks))),
            address(sums, torch.float32), ctypes.c_int32(thread_count()),
        )  # fmt: skip
        return sums / self.places.bincount(minlength=len(self.ranks)).clamp(min=1).sqrt()[:, None]


def cells_of(points: Float[Tensor, "n d"], offset: Float[Tensor, " d"], codes: Codes) -> Cells:
    """Give each point the nearest of some of them, as their codes, a bank's, tell by the first coordinates."""
    n, width = len(points), min(points.shape[1], CELL_WIDTH)
    count = max(1, min(PIVOTS, n // POINTS_A_PIVOT))
    chosen = points[torch.linspace(0, n - 1, count).long(), :width].contiguous()
    pivots, among = quantise_both(chosen, offset[:width])
    places, ranks = torch.empty(n, dtype=torch.int64), torch.empty(count, dtype=torch.int64)
    size, threads = ctypes.c_int64(count), ctypes.c_int32(thread_count())
    _native().nearest_pivots(
        *_query(pivots), size, ctypes.c_int64(pivots.stride), *_bank(codes), ctypes.c_int64(n),
        ctypes.c_int64(codes.stride), address(places, torch.int64), threads,
    )  # fmt: skip
    queries = _query(pivots)
    _native().chain_codes(*queries, *_bank(among), size, ctypes.c_int64(among.stride), address(ranks, torch.int64))
    return Cells(places, ranks)


def _room(points: Tensor, *, bank: bool) -> Codes:
    n, width = points.shape
    rows = -(-n // VECTOR) * VECTOR if bank else n
    codes = room(rows, -(-width // QUAD) * QUAD, dtype=torch.uint8 if bank else torch.int8)
    scales, squares, errors = (torch.empty(rows, dtype=torch.float32) for _ in range(3))
    return Codes(codes, scales, squares, errors, torch.empty(rows, dtype=torch.int32))


def _encode(points: Tensor, offset: Tensor, queries: Codes | None, bank: Codes | None) -> None:
    offset = offset.contiguous()
    outputs: list[ctypes.c_void_p | None] = []
    for codes in (queries, bank):
        outputs += [None] * 5 if codes is None else [address(part, part.dtype) for part in codes]
    n, width = points.shape
    sizes = (ctypes.c_int64(n), ctypes.c_int64(width))
    _native().quantise(
        address(points, torch.float32), address(offset, torch.float32), *sizes, *outputs, ctypes.c_int32(thread_count())
    )


def _query(codes: Codes) -> tuple[ctypes.c_void_p, ...]:
    floats = (address(part, torch.float32) for part in (codes.scales, codes.squares))
    return address(codes.codes, torch.int8), *floats, address(codes.sums, torch.int32)


def _bank(codes: Codes) -> tuple[ctypes.c_void_p, ...]:
    floats = (address(part, torch.float32) for part in (codes.scales, codes.squares))
    return address(codes.codes, torch.uint8), *floats


def _native() -> ctypes.CDLL:
    native = library(SOURCE)
    assert native is not None  # the caller has loaded it
    return native
