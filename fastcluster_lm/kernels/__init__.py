"""The workshop: kernels for the hot places, one folder an op; it decides nothing about what is scored or trained."""

from fastcluster_lm.kernels.capture_states import StateCapture
from fastcluster_lm.kernels.kmeans_assign import kmeans_assign
from fastcluster_lm.kernels.linear_cross_entropy import linear_cross_entropy
from fastcluster_lm.kernels.tsne_affinities import tsne_affinities
from fastcluster_lm.kernels.tsne_forces import start_descent

__all__ = ["StateCapture", "kmeans_assign", "linear_cross_entropy", "start_descent", "tsne_affinities"]
