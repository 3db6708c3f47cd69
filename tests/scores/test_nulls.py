"""Reassigned blocks: what stays, what moves, and when there is nothing to draw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.scores.nulls import derive_seed, reassign_blocks

BLOCKS = np.repeat(np.arange(6), 4)
LABELS = np.array([7, 7, 9, 9, 9, 11])[BLOCKS]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_blocks_move_whole_and_labels_keep_their_number_of_blocks(seed: int) -> None:
    nulls = reassign_blocks(LABELS, BLOCKS, n_nulls=5, seed=seed)
    assert nulls is not None and nulls.shape == (5, 24)
    for null in nulls:
        of_block = [set(null[block == BLOCKS].tolist()) for block in range(6)]
        assert all(len(labels) == 1 for labels in of_block)
        assert sorted(label for labels in of_block for label in labels) == [0, 0, 1, 1, 1, 2]


def test_every_assignment_is_equally_likely() -> None:
    # 2 labels x 2 blocks: 6 assignments; 6000 draws of each expect 1000 +- 29
    nulls = reassign_blocks([0, 0, 1, 1], [0, 1, 2, 3], n_nulls=6000, seed=1)
    assert nulls is not None
    found, counts = np.unique(nulls, axis=0, return_counts=True)
    assert len(found) == 6 and abs(counts - 1000).max() < 150


def test_the_order_of_points_and_the_names_of_labels_do_not_matter() -> None:
    order = np.random.default_rng(0).permutation(24)
    plain = reassign_blocks(LABELS, BLOCKS, seed=3)
    moved = reassign_blocks([f"task {x:02d}" for x in LABELS[order]], BLOCKS[order], seed=3)
    assert plain is not None and moved is not None
    assert np.array_equal(plain[:, order], moved)
    other = reassign_blocks(LABELS, BLOCKS, seed=4)
    assert other is not None and not np.array_equal(plain, other)


def test_extra_keeps_its_part_of_a_compound_label() -> None:
    extra = np.tile([30, 10], 12)
    base, compound = (reassign_blocks(LABELS, BLOCKS, seed=3, extra=e) for e in (None, extra))
    assert base is not None and compound is not None
    assert np.array_equal(compound % 2, np.broadcast_to(np.tile([1, 0], 12), compound.shape))
    assert np.array_equal(compound // 2, base)


def test_nothing_to_draw_is_none() -> None:
    assert reassign_blocks([0, 1, 1, 1], [0, 0, 1, 2]) is None  # block 0 has two labels
    assert reassign_blocks([0, 0, 1, 2], [5, 5, 6, 7]) is None  # one block a label: a renaming
    assert reassign_blocks([3, 3, 3, 3], [0, 0, 1, 1]) is None  # one label
    assert reassign_blocks([], []) is None
    assert reassign_blocks([0, 0, 1], [0, 1, 2]) is not None


def test_refuses_labels_and_blocks_of_unlike_length() -> None:
    with pytest.raises(ShapeError, match=r"\(3,\).*\(2,\)"):
        reassign_blocks([0, 0, 1], [0, 1])
    with pytest.raises(ShapeError, match="extra"):
        reassign_blocks([0, 0, 1], [0, 1, 2], extra=[0])


def test_derived_seeds_differ_by_name_and_seed() -> None:
    seeds = {derive_seed(seed, group, value) for seed in (0, 1) for group in ("all", "input") for value in range(50)}
    assert len(seeds) == 200
    assert derive_seed(0, "all", 3) == derive_seed(0, "all", 3)
