"""The op nearest_neighbors: exact, nearest first; the frame in which float32 is safe is chosen elsewhere."""

from fastcluster_lm.kernels.nearest_neighbors.op import (
    DIRECT_WIDTH,
    nearest_neighbors,
    nearest_neighbors_under_each,
    room_for,
)
from fastcluster_lm.kernels.nearest_neighbors.ranks import count_below, count_nearer
from fastcluster_lm.kernels.nearest_neighbors.search import Search

__all__ = [
    "DIRECT_WIDTH",
    "Search",
    "count_below",
    "count_nearer",
    "nearest_neighbors",
    "nearest_neighbors_under_each",
    "room_for",
]
