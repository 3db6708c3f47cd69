"""The op point_frames: where each layer's points lie and how far they reach, in one pass over them."""

from fastcluster_lm.kernels.point_frames.op import point_frames
from fastcluster_lm.kernels.point_frames.reference import Frames

__all__ = ["Frames", "point_frames"]
