"""The op cluster_sums: the sum of each cluster's points, batched over layers and runs; it chooses no cluster."""

from fastcluster_lm.kernels.cluster_sums.op import cluster_sums

__all__ = ["cluster_sums"]
