"""Decides whether GPT-2's blocks run as one compiled op each, and why; it runs none."""

import torch

from fastcluster_lm.config import ModelConfig
from fastcluster_lm.device import Device
from fastcluster_lm.errors import UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.transformer_block import fits

# wider blocks are left to torch's matmuls
MOST_WIDTH = 192


def block_policy(wanted: str, device: Device, precision: torch.dtype, model: ModelConfig) -> tuple[bool, str]:
    """Decide whether a block is one op forward and one backward, and say why.

    Source: forward and backward of one block beside plain torch, in turns, on one CPU core: 0.6 to 0.7 of its time at
            width 32, 0.7 to 0.8 at 64, 0.8 to 0.9 at 128, 0.95 to 1 at 192, 1.04 to 1.25 at 256; on two cores less
    Errors: UsageError if it is asked for where it cannot be
    """
    if wanted == "plain":
        return False, "asked for"
    hindrance = _hindrance(device, precision, model)
    if wanted == "fused":
        if hindrance:
            raise UsageError(f"training.block: expected auto or plain, got fused; {hindrance}")
        return True, "asked for"
    if hindrance:
        return False, hindrance
    if model.d_model >= MOST_WIDTH:
        return False, f"at width {model.d_model}, {MOST_WIDTH} or more, torch's matmuls are as quick"
    return True, f"width {model.d_model} is below {MOST_WIDTH}, where a step is mostly small operations"


def _hindrance(device: Device, precision: torch.dtype, model: ModelConfig) -> str:
    if device.torch_device.type != "cpu":
        return "the op is for CPUs"
    if precision != torch.float32:
        return f"matmuls are in {str(precision).removeprefix('torch.')}, the op's in float32"
    if model.dropout > 0:
        return "the op has no dropout"
    if not fits(model.d_model, model.d_mlp or 4 * model.d_model, model.n_heads):
        return "the widths of a head and of the MLP must be multiples of 8"
    compiled, reason = native.status()
    return "" if compiled else f"there is no compiled code: {reason}"
