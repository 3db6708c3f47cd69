"""The op nearest_neighbors: exact, nearest first; the frame in which float32 is safe is chosen elsewhere."""

from fastcluster_lm.kernels.nearest_neighbors.fused import MOST_NEIGHBORS, nearest_neighbors_fused
from fastcluster_lm.kernels.nearest_neighbors.op import (
    DIRECT_WIDTH,
    nearest_neighbors_native,
    nearest_neighbors_under_each,
    room_for,
)
from fastcluster_lm.kernels.nearest_neighbors.ranks import count_below, count_nearer

__all__ = [
    "DIRECT_WIDTH",
    "MOST_NEIGHBORS",
    "count_below",
    "count_nearer",
    "nearest_neighbors_fused",
    "nearest_neighbors_native",
    "nearest_neighbors_under_each",
    "room_for",
]
