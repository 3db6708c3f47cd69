"""The op kmeans_runs on a CPU: whole runs of KMeans, layers and restarts side by side; the best is chosen elsewhere."""

from fastcluster_lm.kernels.kmeans_runs.op import Runs, kmeans_runs_native

__all__ = ["Runs", "kmeans_runs_native"]
