"""Checks and dispatch of transformer_block: C++ for float32 on a CPU; where it cannot, the caller has plain torch."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.library import custom_op

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.native import address, check_codes, library, place
from fastcluster_lm.kernels.transformer_block.weights import BlockWeights

SOURCE = Path(__file__).with_name("cpu.cpp")
# widths are whole vectors
VECTOR = 8
_PLACES = ctypes.c_void_p * len(BlockWeights._fields)


def fits(d_model: int, d_mlp: int, n_heads: int) -> bool:
    """Say whether compiled code takes a block of these widths."""
    return d_model % n_heads == 0 and (d_model // n_heads) % VECTOR == 0 and d_mlp % VECTOR == 0


def transformer_block(
    x: Float[Tensor, "B T D"], positions: Int[Tensor, "B P"] | None, weights: BlockWeights, n_heads: int
) -> Float[Tensor, "B P D"]:
    """Attention, then an MLP, each on a normalised input and added to it, at the positions or at all tokens.

    Shapes: x (B, T, D), positions (B, P) -> (B, P, D), P = T without positions
    Notes:  a sequence's results do not depend on those beside it, no bit on the number of threads
    Errors: ShapeError for widths that compiled code cannot take; DataError for another dtype or device, or a position
            outside the sequence
    Source: Radford et al. 2019: pre-norm, causal attention, GELU by tanh
    """
    width, inner = x.shape[-1], weights.fc.shape[0]
    if not fits(width, inner, n_heads):
        widths = f"d_model {width}, d_mlp {inner}, {n_heads} heads"
        raise ShapeError(f"{widths}; the widths of a head and of the MLP must be multiples of {VECTOR}")
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise DataError(f"x is {x.dtype} on {x.device}; expected float32 on a CPU")
    x, keep = x.contiguous(), torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        return _block(x, positions, *weights, n_heads, keep)[0]
    # an op of torch.library costs 0.2 ms a call beside autograd, as much as a narrow block itself
    return _Block.apply(x, positions, n_heads, *weights) if keep else _forward(x, positions, weights, n_heads, keep)[0]


class _Block(torch.autograd.Function):
    """The same for what is not compiled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor | None, n_heads: int, *weights: Tensor) -> Tensor:
        y, kept = _forward(x, positions, BlockWeights(*weights), n_heads, keep=True)
        ctx.n_heads = n_heads
        ctx.save_for_backward(x, positions, kept, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, positions, kept, *weights = ctx.saved_tensors
        dx, *dweights = _backward(dy.contiguous(), x, positions, BlockWeights(*weights), kept, ctx.n_heads)
        return dx, None, None, *dweights


def _forward(
    x: Tensor, positions: Tensor | None, weights: BlockWeights, n_heads: int, keep: bool
) -> tuple[Tensor, Tensor]:
    native = _native()
    if positions is not None:
        check_codes(positions, x.shape[1], "positions")
    sizes = _sizes(x, positions, weights, n_heads)
    kept = torch.empty(native.transformer_block_keeps(*sizes) if keep else 0, dtype=torch.float32)
    y = torch.empty(x.shape[0], sizes[2], x.shape[2], dtype=torch.float32)
    native.transformer_block(
        address(x, torch.float32), _positions(positions), _addresses(weights), *sizes, address(y, torch.float32),
        address(kept, torch.float32) if keep else None, torch.get_num_threads(),
    )  # fmt: skip
    return y, kept


def _backward(
    dy: Tensor, x: Tensor, positions: Tensor | None, weights: BlockWeights, kept: Tensor, n_heads: int
) -> list[Tensor]:
    gradients = [torch.empty_like(part) for part in (x, *weights)]
    _native().transformer_block_backward(
        address(dy, torch.float32), address(x, torch.float32), _positions(positions), _addresses(weights),
        address(kept, torch.float32), *_sizes(x, positions, weights, n_heads), address(gradients[0], torch.float32),
        _addresses(gradients[1:]), torch.get_num_threads(),
    )  # fmt: skip
    return gradients


def _native() -> ctypes.CDLL:
    native = library(SOURCE)
    if native is None:
        raise DataError("transformer_block needs compiled code, and there is none here; the log says why")
    if native.transformer_block.argtypes:
        return native
    sizes = [ctypes.c_int64] * 6
    pointer = ctypes.c_void_p
    native.transformer_block_keeps.argtypes, native.transformer_block_keeps.restype = sizes, ctypes.c_int64
    native.transformer_block.argtypes = [pointer] * 3 + sizes + [pointer] * 2 + [ctypes.c_int32]
    native.transformer_block_backward.argtypes = [pointer] * 5 + sizes + [pointer] * 2 + [ctypes.c_int32]
    return native


# torch keeps compiled graphs between processes by the names of ops: one whose results change shape needs another name
@custom_op("fclm::transformer_block", mutates_args=(), device_types="cpu")
def _block(
    x: Tensor,
    positions: Tensor | None,
    ln_1: Tensor,
    ln_1_bias: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor,
    out: Tensor,
    out_bias: Tensor,
    ln_2: Tensor,
    ln_2_bias: Tensor,
    fc: Tensor,
    fc_bias: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
    n_heads: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Give the block's output, and what its backward needs, if that is to be kept."""
    weights = BlockWeights(ln_1, ln_1_bias, qkv, qkv_bias, out, out_bias, ln_2, ln_2_bias, fc, fc_bias, proj, proj_bias)
    return _forward(x, positions, weights, n_heads, keep)


@custom_op("fclm::transformer_block_backward", mutates_args=(), device_types="cpu")
def _gradients(
    dy: Tensor, x: Tensor, positions: Tensor | None, weights: list[Tensor], kept: Tensor, n_heads: int
) -> list[Tensor]:
    """Give the gradients of x and of all weights."""
    return _backward(dy, x, positions, BlockWeights(*weights), kept, n_heads)


def _sizes(x: Tensor, positions: Tensor | None, weights: BlockWeights, n_heads: int) -> tuple[int, ...]:
    batch, tokens, width = x.shape
    queries = tokens if positions is None else positions.shape[1]
    return batch, tokens, queries, width, n_heads, weights.fc.shape[0]


def _positions(positions: Tensor | None) -> ctypes.c_void_p | None:
    return None if positions is None else address(positions, torch.int64)


def _addresses(tensors: Any) -> Any:
    return _PLACES(*[place(part, torch.float32) for part in tensors])


@_block.register_fake
def _describe(x: Tensor, positions: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    queries = x.shape[1] if positions is None else positions.shape[1]
    n_heads, keep = rest[-2:]
    batch, tokens, width = x.shape
    a_sequence = queries * (3 * width + 2 * rest[8].shape[0]) + tokens * 2 * width + n_heads * queries * tokens
    return x.new_empty(batch, queries, width), x.new_empty(batch * a_sequence if keep else 0)


@_gradients.register_fake
def _describe_gradients(
    dy: Tensor, x: Tensor, positions: Tensor | None, weights: list[Tensor], kept: Tensor, n_heads: int
) -> list[Tensor]:
    return [torch.empty_like(part) for part in (x, *weights)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, positions, *weights, n_heads, _ = inputs
    ctx.n_heads = n_heads
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, positions, output[1], *weights)


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, positions, kept, *weights = ctx.saved_tensors
    dx, *dweights = _gradients(dy.contiguous(), x, positions, weights, kept, ctx.n_heads)
    return dx, None, *dweights, None, None


_block.register_autograd(_differentiate, setup_context=_keep)
