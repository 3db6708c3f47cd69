"""Leave a model and every generator as they were found: modes, buffers, gradients; it reads and scores nothing."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the body on a model in evaluation mode, eager and without gradients; put back all that a forward may move.

    Units:  a compiled part runs as it was written, since a hook set after its compilation would never be called
    Source: https://github.com/pytorch/pytorch/issues/117758, hooks after compilation
    """
    # one by one, past train(): some models work on their weights there, and some keep a part in evaluation mode
    modes = [(part, part.training) for part in model.modules()]
    owners = [(part, name, buffer) for part in model.modules() for name, buffer in part.named_buffers(recurse=False)]
    copies = [(buffer, buffer._version, buffer.detach().clone()) for _, _, buffer in owners]
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for buffer, version, copy in copies:
                if buffer._version != version:
                    buffer.copy_(copy)
        for part, name, buffer in owners:
            if part._buffers.get(name) is not buffer:
                part._buffers[name] = buffer


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put every global generator, and the default dtype, back as they were before the body.

    Units:  torch on the CPU and on CUDA, NumPy and Python; CUDA is not started where it was not
    """
    ours, numpys, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    dtype = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(ours)
        np.random.set_state(numpys)
        random.setstate(pythons)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
