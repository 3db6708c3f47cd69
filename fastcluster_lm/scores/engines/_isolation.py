"""Puts back the caller's generators and precision switches after a library ran; it seeds nothing of its own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from fastcluster_lm.device import generators_kept
from fastcluster_lm.scores.precision import precisions_kept

# switches that libraries set for the whole process
CUDNN_FLAGS = ("enabled", "benchmark", "deterministic")


@contextmanager
def left_alone(device: torch.device) -> Iterator[None]:
    """Leave Python's, numpy's, torch's and cupy's generators, and torch's flags, as they were, whatever happens within.

    Several GPU libraries reseed the program that calls them; the random numbers of training are not theirs to draw.
    cupy's generator cannot be read, so a spare one stands in its place meanwhile
    """
    flags = {name: getattr(torch.backends.cudnn, name) for name in CUDNN_FLAGS}
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), generators_kept(), precisions_kept():
        cupy = sys.modules.get("cupy")
        theirs = None
        if cupy is not None:
            theirs = cupy.random.get_random_state()
            cupy.random.set_random_state(cupy.random.RandomState(0))
        try:
            yield
        finally:
            if cupy is not None:
                cupy.random.set_random_state(theirs)
            for name, value in flags.items():
                setattr(torch.backends.cudnn, name, value)
