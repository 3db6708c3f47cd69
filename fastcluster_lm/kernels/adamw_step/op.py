"""Dispatch of adamw_step: C++ for float32 on a CPU, plain torch elsewhere."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.adamw_step import reference
from fastcluster_lm.kernels.adamw_step.moments import Moments
from fastcluster_lm.kernels.native import library, place

SOURCE = Path(__file__).with_name("cpu.cpp")


class AdamWStep:
    """Moves weights in place, again and again; the places of weights and moments are looked up once.

    compiled: whether C++ takes the steps; else the reference does, weight by weight
    """

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        native = _compiled(moments)
        self.compiled = native is not None
        if native is None:
            return
        count, pointers = len(moments.weights), ctypes.c_void_p * len(moments.weights)
        self._native, self._pointers = native, pointers
        self._sizes = (ctypes.c_int64 * count)(*(weight.numel() for weight in moments.weights))
        self._decays = (ctypes.c_double * count)(*moments.decays)
        kept = (moments.weights, moments.means, moments.square_means, moments.steps)
        self._places = [pointers(*(place(tensor, torch.float32) for tensor in tensors)) for tensors in kept]
        native.adamw_step.restype = ctypes.c_double
        places, numbers = [ctypes.c_void_p] * 6, [ctypes.c_double] * 5
        native.adamw_step.argtypes = [*places, ctypes.c_int64, ctypes.c_void_p, *numbers, ctypes.c_int32]

    def take(self, gradients: Sequence[Tensor], rate: float, limit: float) -> float:
        """Clip the whole gradient's norm and move all weights by one step; give the norm before the clip.

        Notes:  a norm that is not finite moves nothing; gradients stay as they are; no bit depends on the threads,
                of which there are as many as torch's
        Errors: ShapeError for another number of gradients; where compiled, ValueError for one that is no contiguous
                float32 on a CPU
        """
        weights = self._moments.weights
        if len(gradients) != len(weights):
            raise ShapeError(f"there are {len(gradients)} gradients and {len(weights)} weights; expected as many")
        if not self.compiled:
            return reference.adamw_step(self._moments, gradients, rate, limit)
        places = self._pointers(*[place(gradient, torch.float32) for gradient in gradients])
        betas = (self._moments.beta1, self._moments.beta2, self._moments.eps)
        return self._native.adamw_step(
            self._places[0], places, *self._places[1:], self._sizes, len(gradients), self._decays, rate, *betas, limit,
            torch.get_num_threads(),
        )  # fmt: skip


def _compiled(moments: Moments) -> ctypes.CDLL | None:
    tensors = (*moments.weights, *moments.means, *moments.square_means, *moments.steps)
    fit = all(part.is_cpu and part.dtype == torch.float32 and part.is_contiguous() for part in tensors)
    return library(SOURCE) if fit else None
