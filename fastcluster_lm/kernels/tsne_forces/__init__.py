"""The op tsne_forces: the descent of t-SNE, all layers at once, over all pairs or nearly so; it makes no affinities."""

from fastcluster_lm.kernels.tsne_forces.op import Descent, StepRule, start_descent

__all__ = ["Descent", "StepRule", "start_descent"]
