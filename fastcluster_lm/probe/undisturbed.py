"""Leave a model and torch's defaults as they were found: modes, buffers, gradients; it reads and scores nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the body on a model in evaluation mode, eager and without gradients; put back all that a forward may move.

    Notes:  a compiled part runs as it was written, since a hook set after its compilation would never be called
    Source: https://github.com/pytorch/pytorch/issues/117758, hooks after compilation
    """
    # one by one, past train(): some models work on their weights there, and some keep a part in evaluation mode
    modes = [(part, part.training) for part in model.modules()]
    owners = [(part, name, buffer) for part in model.modules() for name, buffer in part.named_buffers(recurse=False)]
    # a tensor of inference mode counts no versions, and nobody may write into it
    counted = [buffer for _, _, buffer in owners if not buffer.is_inference()]
    copies = [(buffer, buffer._version, buffer.detach().clone()) for buffer in counted]
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
def plain_torch() -> Iterator[None]:
    """Run the body with torch's defaults for new tensors, and with all of its algorithms, whatever the caller asks for.

    Notes:  float32 and the CPU by default; scores name their device where it is another, and are deterministic as
            they are, so that an algorithm torch refuses under its strict flag is no error here
    """
    dtype, strict = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.set_default_dtype(dtype)
