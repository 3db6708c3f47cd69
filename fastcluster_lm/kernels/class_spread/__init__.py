"""The op class_spread: means of classes and the variance around them, over layers."""

from fastcluster_lm.kernels.class_spread.op import class_pairs, class_spread

__all__ = ["class_pairs", "class_spread"]
