"""The op point_frames: where each layer's points lie and how far they reach, in one pass over them."""

from fastcluster_lm.kernels.point_frames.op import Frames, point_frames_native

__all__ = ["Frames", "point_frames_native"]
