"""A map of points to fewer coordinates that brings no two of them farther apart; it finds no neighbours."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.rounding import row_squares

# from so many coordinates, points, and points for each candidate on, a first look at fewer coordinates pays
LEAST_WIDTH, LEAST_POINTS, LEAST_SHARE = 256, 1024, 8
# leading directions at most; points that they are found from, at most, and as a share of all; and how often they are
# refined: poor directions cost time alone (100 classes in 2048 coordinates: 205 points to look at for each of 10,000
# from a sample of 512, 6 from one of 2048)
DIRECTIONS, SAMPLE, SAMPLE_SHARE, REFINED = 128, 2048, 1 / 2, 2
# directions kept: those along which points spread by more than so many times what they spread on average beyond them
NOISE = 6.0
# random coordinates of what the leading directions leave. Their squared length over the true one is chi-squared with
# RANDOM degrees of freedom, over RANDOM; divided by SHRINK besides it is above 1 with probability below
# exp(-RANDOM / 2 (SHRINK - 1 - log SHRINK)) = 3.9e-15
RANDOM, SHRINK = 64, 3.2
PIVOTS = 64


class Contracted(NamedTuple):
    """Queries and bank in fewer coordinates, and queries in an order that puts those near each other together."""

    queries: Float[Tensor, "nq s"]
    bank: Float[Tensor, "nb s"]
    order: Int[Tensor, " nq"]


def pays(n_queries: int, n_bank: int, width: int, k: int) -> bool:
    """Say whether a first look at fewer coordinates may cost less than a look at all of them."""
    return width >= LEAST_WIDTH and min(n_queries, n_bank) >= LEAST_POINTS and n_bank >= LEAST_SHARE * k


def contract(queries: Float[Tensor, "nq d"], bank: Float[Tensor, "nb d"]) -> Contracted:
    """Project centred points on the bank's leading directions, and what is left on a few random ones.

    Shapes: queries (nq, d), bank (nb, d) -> queries (nq, s), bank (nb, s), s < d
    Units:  a distance between two rows is at most that of the points, but for rounding, with a probability of
            1 - 3.9e-15 for each pair, over the seeded random directions; a search that relies on it misses one of the
            6 million neighbours of a large probe with a probability below 1e-7
    Source: the leading directions by Halko, Martinsson and Tropp 2011, algorithm 4.4; the tail of the rest by
            Chernoff's bound for chi-squared variables, as in Dasgupta and Gupta 2003
    """
    width = bank.shape[-1]
    generator = torch.Generator().manual_seed(0)
    leading = _leading(bank, generator)
    drawn = torch.randn(width, RANDOM, generator=generator, dtype=torch.float32).div_((RANDOM * SHRINK) ** 0.5)
    drawn -= leading @ (leading.mT @ drawn)
    axes = torch.cat([leading, drawn], 1)
    reduced_bank = bank @ axes
    reduced = reduced_bank if queries is bank else queries @ axes
    pivots = reduced[torch.linspace(0, len(reduced) - 1, PIVOTS).long()]
    nearest = torch.addmm(row_squares(pivots), reduced, pivots.mT, alpha=-2).argmin(-1)
    return Contracted(reduced, reduced_bank, nearest.argsort(stable=True))


def _leading(bank: Float[Tensor, "nb d"], generator: torch.Generator) -> Float[Tensor, "d r"]:
    """Find the directions along which points spread far, orthonormal, most first."""
    n, width = bank.shape
    count = min(DIRECTIONS, width // 8, n // 32)
    sample = bank[torch.linspace(0, n - 1, min(SAMPLE, int(SAMPLE_SHARE * n))).long()]
    basis = torch.randn(width, count, generator=generator, dtype=torch.float32)
    for _ in range(REFINED):
        basis = torch.linalg.qr(sample.mT @ (sample @ basis)).Q
    reduced = sample @ basis
    spread, turn = torch.linalg.eigh(reduced.mT @ reduced)
    left = (sample.square().sum() - spread.sum()).clamp(min=0) / (width - count)
    kept = max(1, int((spread > NOISE * left).sum()))
    # their orthonormal products round like the width's root; a little shorter, they bring nothing farther apart
    return (basis @ turn.flip(-1)[:, :kept]).mul_(1 - 1e-5)
