"""The op tsne_affinities: Gaussian weights of a given perplexity, and their symmetrised edges."""

from fastcluster_lm.kernels.tsne_affinities.op import tsne_affinities

__all__ = ["tsne_affinities"]
