"""The op tsne_affinities: Gaussian weights of a given perplexity, symmetrised, as edges or whole matrices."""

from fastcluster_lm.kernels.tsne_affinities.op import pair_affinities, tsne_affinities

__all__ = ["pair_affinities", "tsne_affinities"]
