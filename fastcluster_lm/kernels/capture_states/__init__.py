"""The op capture_states: one position of every layer's activations, and their squared norms; it scores nothing."""

from fastcluster_lm.kernels.capture_states.op import StateCapture

__all__ = ["StateCapture"]
