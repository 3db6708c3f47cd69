"""The op adamw_step: the clip of a gradient's norm and a step of AdamW over all weights in one call on a CPU."""

from fastcluster_lm.kernels.adamw_step.moments import Moments
from fastcluster_lm.kernels.adamw_step.op import AdamWStep

__all__ = ["AdamWStep", "Moments"]
