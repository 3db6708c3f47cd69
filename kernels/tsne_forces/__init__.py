"""The op tsne_forces: the descent of t-SNE with exact forces, all layers at once; affinities are made elsewhere."""

from fastcluster_lm.kernels.tsne_forces.op import Descent, StepRule, start_descent

__all__ = ["Descent", "StepRule", "start_descent"]
