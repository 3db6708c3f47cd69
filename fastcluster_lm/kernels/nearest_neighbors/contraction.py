"""A map of points to fewer coordinates that brings no two of them farther apart; it finds no neighbours."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.kernels.nearest_neighbors.codes import Codes, coordinates_along, quantise

# from so many coordinates, points, and points for each candidate on, fewer coordinates are looked at before codes of
# all. What that buys, measured on blobs on one core, in seconds a layer without and with: (5000, 768) nothing,
# (5000, 2048) 0.75 and 0.72, (10000, 2048) 2.07 and 1.52, which is what brings a warm probe of that size above 60 times
# the libraries' pace; and at (5000, 2048), where 40 directions hold nearly all, 0.62 and 0.35
LEAST_WIDTH, LEAST_POINTS, LEAST_SHARE = 1024, 4096, 8
# leading directions at most, and how often they are refined
DIRECTIONS, REFINED = 128, 1
# directions kept: those along which points spread by more than so many times what noise does (Marchenko, Pastur 1967)
NOISE = 1.5
# random coordinates of what the leading directions leave. Their squared length over the true one is chi-squared with
# RANDOM degrees of freedom, over RANDOM; divided by SHRINK besides it is above 1 with probability below
# exp(-RANDOM / 2 (SHRINK - 1 - log SHRINK)) = 1.9e-15; 96 settle more rows than 64 do, and cost less than 128
RANDOM, SHRINK = 96, 2.7


def pays(n_queries: int, n_bank: int, width: int, k: int) -> bool:
    """Say whether a look at fewer coordinates costs so much less that it comes before one at codes of all."""
    return width >= LEAST_WIDTH and min(n_queries, n_bank) >= LEAST_POINTS and n_bank >= LEAST_SHARE * k


def contracting_axes(means: Float[Tensor, "m d"]) -> Float[Tensor, "d s"]:
    """Choose axes along which no two points are farther apart: the leading directions of means, and a few random ones.

    Shapes: means (m, d), of groups of centred points, or some of the points -> axes (d, s), s < d
    Notes:  a distance between two rows of points @ axes is at most that of the points, but for rounding, with a
            probability of 1 - 1.9e-15 for each pair, over the seeded random directions; a search that relies on it
            misses one of the 6 million neighbours of a large probe with a probability below 1e-7
    Source: the leading directions by Halko, Martinsson and Tropp 2011, algorithm 4.4; the tail of the rest by
            Chernoff's bound for chi-squared variables, as in Dasgupta and Gupta 2003
    """
    generator = torch.Generator().manual_seed(0)
    leading = _leading(means, generator)
    drawn = torch.randn(len(leading), RANDOM, generator=generator, dtype=torch.float32).div_((RANDOM * SHRINK) ** 0.5)
    drawn -= leading @ (leading.mT @ drawn)
    return torch.cat([leading, drawn], 1)


class CodedAxes(NamedTuple):
    """Axes as sums of two codes, and what coordinates along them are divided by to bring nothing farther apart."""

    codes: Codes
    rest: Codes
    n_axes: int
    shrink: float

    def coordinates(self, points: Codes) -> Float[Tensor, "n s"]:
        """Give the coordinates of what the points' codes stand for."""
        whole = coordinates_along(points, self.codes, self.n_axes)
        return whole.add_(coordinates_along(points, self.rest, self.n_axes)).div_(self.shrink)


def in_codes(axes: Float[Tensor, "d s"]) -> CodedAxes:
    """Encode axes as a bank, and what that loses of them once more."""
    width, count = axes.shape
    origin = torch.zeros(width, dtype=torch.float32)
    codes = quantise(axes.mT.contiguous(), origin, bank=True)
    rest = quantise((axes.mT - codes.decoded()[:count, :width]).contiguous(), origin, bank=True)
    # along what is lost even then, a point's coordinates are shorter than the point times its Frobenius norm
    return CodedAxes(codes, rest, count, 1 + 1e-5 + float(rest.errors[:count].norm()))


def _leading(means: Float[Tensor, "m d"], generator: torch.Generator) -> Float[Tensor, "d r"]:
    """Find the directions along which points spread far, orthonormal, most first."""
    n, width = means.shape
    count = min(DIRECTIONS, width // 8, max(1, n // 2))
    basis = torch.randn(width, count, generator=generator, dtype=torch.float32)
    for _ in range(REFINED):
        basis = torch.linalg.qr(means.mT @ (means @ basis)).Q
    reduced = means @ basis
    spread, turn = torch.linalg.eigh(reduced.mT @ reduced)
    left = (means.square().sum() - spread.sum()).clamp(min=0) / (width - count)
    # along the best of all directions, n points of noise spread so many times what they do on average
    edge = (1 + (width / n) ** 0.5) ** 2
    kept = max(1, int((spread > NOISE * edge * left).sum()))
    # their orthonormal products round like the width's root; a little shorter, they bring nothing farther apart
    return (basis @ turn.flip(-1)[:, :kept]).mul_(1 - 1e-5)
