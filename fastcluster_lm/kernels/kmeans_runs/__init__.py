"""The op kmeans_runs: whole runs of KMeans, layers and restarts side by side, and each layer's best."""

from fastcluster_lm.kernels.kmeans_runs.op import kmeans_runs
from fastcluster_lm.kernels.kmeans_runs.starts import Best, Starts

__all__ = ["Best", "Starts", "kmeans_runs"]
