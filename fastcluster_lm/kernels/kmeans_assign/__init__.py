"""The op kmeans_assign: each point's nearest centroid, batched; it moves no centroid."""

from fastcluster_lm.kernels.kmeans_assign.op import kmeans_assign

__all__ = ["kmeans_assign"]
