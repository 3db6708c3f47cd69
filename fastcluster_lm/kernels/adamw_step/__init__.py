"""The op adamw_step: the clip of a gradient's norm and a step of AdamW over all weights in one call on a CPU."""

from fastcluster_lm.kernels.adamw_step.moments import Moments
from fastcluster_lm.kernels.adamw_step.op import AdamWStep, adamw_step_native

__all__ = ["AdamWStep", "Moments", "adamw_step_native"]
