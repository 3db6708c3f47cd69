"""The op nearest_neighbors on a CPU: exact, nearest first; the frame in which float32 is safe is chosen elsewhere."""

from fastcluster_lm.kernels.nearest_neighbors.op import count_below, nearest_neighbors_native

__all__ = ["count_below", "nearest_neighbors_native"]
