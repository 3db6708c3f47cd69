"""Reassign whole blocks of points to labels at random, as the null of a score; it scores nothing."""

import zlib
from functools import cache

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.scores.contingency import factorize


def reassign_blocks(
    labels: ArrayLike | Tensor,
    blocks: ArrayLike | Tensor,
    *,
    n_nulls: int = 20,
    seed: int = 0,
    extra: ArrayLike | Tensor | None = None,
) -> Int[np.ndarray, "nulls n"] | None:
    """Draw labelings that move every block of points as one to the label of another block.

    Shapes: labels (n,), blocks (n,) -> codes (n_nulls, n) int64; each label keeps its number of blocks. With extra (n,)
            the codes are base * m + extra, m the number of distinct extras, and only the base, `labels`, is reassigned.
            None where there is nothing to draw: a block with two labels, fewer than two labels, or one block a label
            (a mere renaming, which no score sees)
    Errors: ShapeError if the lengths differ
    Source: the maps depend on the seed and on the sorted blocks, not on the order of the points
    """
    label_codes, n_labels = factorize(labels)
    block_codes, n_blocks = factorize(blocks)
    if label_codes.ndim != 1 or label_codes.shape != block_codes.shape:
        raise ShapeError(f"labels has shape {label_codes.shape}, blocks {block_codes.shape}; both must be (n,)")
    label_of_block = np.zeros(n_blocks, dtype=np.int64)
    label_of_block[block_codes] = label_codes
    if (label_of_block[block_codes] != label_codes).any() or n_labels < 2 or n_blocks == n_labels:
        return None
    # one row of the map is one reassignment of all blocks
    maps = np.random.default_rng(seed).permuted(np.tile(label_of_block, (n_nulls, 1)), axis=1)
    drawn = maps[:, block_codes]
    if extra is None:
        return drawn
    extra_codes, n_extras = factorize(extra)
    if extra_codes.shape != label_codes.shape:
        raise ShapeError(f"labels has shape {label_codes.shape}, extra {extra_codes.shape}; both must be (n,)")
    return drawn * n_extras + extra_codes


@cache
def derive_seed(seed: int, *names: str | int) -> int:
    """Make a seed of its own for a named draw, so that no draw depends on which others happen."""
    key = zlib.crc32("/".join(str(name) for name in names).encode())
    return int(np.random.SeedSequence([seed, key]).generate_state(1)[0])
