"""Scores of point clouds: neighbours, clusters, maps and how labels agree with them; nothing here trains or stores."""

from fastcluster_lm.scores.agreement import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    f1_bcubed_score,
    f1_pairwise_score,
    f1_score,
)
from fastcluster_lm.scores.clusters import score_clusters
from fastcluster_lm.scores.kmeans import kmeans
from fastcluster_lm.scores.neighbors import nearest_neighbors
from fastcluster_lm.scores.tsne import tsne

__all__ = [
    "adjusted_mutual_info_score",
    "adjusted_rand_score",
    "f1_bcubed_score",
    "f1_pairwise_score",
    "f1_score",
    "kmeans",
    "nearest_neighbors",
    "score_clusters",
    "tsne",
]
