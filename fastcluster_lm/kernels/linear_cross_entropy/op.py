"""Checks and dispatch of linear_cross_entropy: tiles in plain torch on a CPU, Triton on CUDA; no logits are kept."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.library import custom_op

from fastcluster_lm.errors import DataError, ShapeError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# bytes of one tile of logits on a CPU, and its most rows. Chosen on a CPU with 0.5 MiB of L2 a core: at (rows, d, v) =
# (1024, 128, 32768) tiles of 1, 4, 16 and 64 MiB took 0.66, 0.67, 0.68 and 0.85 of plain torch's time, with 128 rows
# instead of 1024 0.74 to 0.82; at (256, 64, 32768) 0.57, 0.53, 0.62 and 0.94
TILE_BYTES = 4 * 2**20
TILE_ROWS = 1024
# the target of a row that does not count, as torch's cross_entropy has it
IGNORED = -100
# programs that fill a GPU; fixed, so that no sum depends on which GPU it is
PROGRAMS = 256


def linear_cross_entropy(
    X: Float[Tensor, "n d"], weight: Float[Tensor, "v d"], targets: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Give the mean cross entropy of the targets under the logits X @ weight.T, and its gradients.

    Shapes: X (n, d), weight (v, d), targets i64 (n,) -> scalar f32
    Units:  nats a row that counts
    Notes:  a row with the target -100 does not count; NaN without any that does. Logits, sums and the
            gradient of a logit are fp32 whatever the inputs are; a gradient is rounded to its input's dtype once, at
            the end. Any other target outside 0..v-1 gives NaN on CUDA
    Errors: ShapeError if the shapes do not fit; DataError for other dtypes, v == 0, on a CPU a target outside 0..v-1
    Source: Wijmans et al. 2025 (Cut Cross-Entropy), without its filter of small gradients and its order of sums
    """
    fits = X.ndim == weight.ndim == 2 and X.shape[1] == weight.shape[1] and targets.shape == X.shape[:1]
    if not fits:
        shapes = f"X has shape {tuple(X.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}"
        raise ShapeError(f"{shapes}; expected (n, d), (v, d) and (n,)")
    if weight.numel() == 0:
        raise DataError(f"weight has shape {tuple(weight.shape)}; expected at least one token and d >= 1")
    if X.dtype not in FLOATS or X.dtype != weight.dtype:
        raise DataError(f"X is {X.dtype}, weight is {weight.dtype}; expected one of float32, float16, bfloat16")
    if targets.dtype != torch.int64:
        raise DataError(f"targets are {targets.dtype}; expected int64")
    counts = targets != IGNORED
    losses = _losses(X, weight, torch.where(counts, targets, 0))[0]
    return torch.where(counts, losses, 0).sum() / counts.sum()


@custom_op("fclm::linear_cross_entropy", mutates_args=(), device_types="cpu")
def _losses(X: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give each row's loss, its largest logit, and the logarithm of its sum of exponentials below that one."""
    n, v = X.shape[0], weight.shape[0]
    low, high = (int(targets.min()), int(targets.max())) if n else (0, 0)
    if low < 0 or high >= v:
        raise DataError(f"targets reach from {low} to {high}; expected 0 to {v - 1}")
    losses, peaks, log_sums = torch.empty(n), torch.empty(n), torch.empty(n)
    buffer = torch.empty(_tile_length(n, v))
    for rows in _slices(n, TILE_ROWS):
        x, target = X[rows].float(), targets[rows]
        peak, total = torch.full((len(x),), -torch.inf), torch.zeros(len(x))
        target_logit = torch.zeros(len(x))
        for columns in _slices(v, _columns(n)):
            logits = _logits(x, weight[columns], buffer)
            here, at = _targets_in(target, columns)
            target_logit[here] = logits[here, at]
            higher = torch.maximum(peak, logits.amax(1))
            # where all logits so far are -inf there is nothing to take away, and -inf less -inf would be NaN
            base = torch.where(higher == -torch.inf, 0.0, higher)
            total = total * (peak - base).exp_() + logits.sub_(base[:, None]).exp_().sum(1)
            peak = higher
        peaks[rows], log_sums[rows] = peak, total.log()
        # in this order a row whose target has all the weight keeps a loss near 0 exact
        losses[rows] = log_sums[rows] - (target_logit - peak)
    return losses, peaks, log_sums


@custom_op("fclm::linear_cross_entropy_backward", mutates_args=(), device_types="cpu")
def _gradients(
    grads: Tensor,
    X: Tensor,
    weight: Tensor,
    targets: Tensor,
    peaks: Tensor,
    log_sums: Tensor,
    needs_X: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Give the gradients of the rows' losses, weighted by `grads`, an empty tensor for one that is not needed."""
    n, v = X.shape[0], weight.shape[0]
    dX = torch.zeros(X.shape if needs_X else (0,), dtype=torch.float32)
    dweight = torch.empty(weight.shape if needs_weight else (0,), dtype=weight.dtype)
    if n == 0:
        return dX.to(X.dtype), dweight.zero_()
    buffer = torch.empty(_tile_length(n, v))
    for columns in _slices(v, _columns(n)):
        w = weight[columns].float()
        # 16-bit gradients are summed apart and rounded once
        dw = dweight[columns] if weight.dtype == torch.float32 else torch.empty_like(w)
        for rows in _slices(n, TILE_ROWS):
            x = X[rows].float()
            shares = _logits(x, w, buffer).sub_(peaks[rows, None]).sub_(log_sums[rows, None]).exp_()
            here, at = _targets_in(targets[rows], columns)
            shares[here, at] -= 1
            shares.mul_(grads[rows, None])
            if needs_X:
                dX[rows].addmm_(shares, w)
            if needs_weight:
                # the first rows' share overwrites what the memory held
                dw.addmm_(shares.T, x, beta=int(rows.start > 0))
        if needs_weight and dw.dtype != dweight.dtype:
            dweight[columns] = dw
    return dX.to(X.dtype), dweight


def _columns(n: int) -> int:
    return max(1, TILE_BYTES // (4 * max(1, min(n, TILE_ROWS))))


def _tile_length(n: int, v: int) -> int:
    return min(n, TILE_ROWS) * min(v, _columns(n))


def _slices(length: int, most: int) -> Iterator[slice]:
    return (slice(start, min(start + most, length)) for start in range(0, length, most))


def _logits(x: Tensor, w: Tensor, buffer: Tensor) -> Tensor:
    return torch.mm(x, w.float().T, out=buffer[: len(x) * len(w)].view(len(x), len(w)))


def _targets_in(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Give the rows whose target lies in these columns, and its place among them."""
    here = ((targets >= columns.start) & (targets < columns.stop)).nonzero()[:, 0]
    return here, targets[here] - columns.start


@_losses.register_fake
def _describe_losses(X: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = X.new_empty(X.shape[0], dtype=torch.float32)
    return rows, torch.empty_like(rows), torch.empty_like(rows)


@_gradients.register_fake
def _describe_gradients(
    grads: Tensor,
    X: Tensor,
    weight: Tensor,
    targets: Tensor,
    peaks: Tensor,
    log_sums: Tensor,
    needs_X: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    return X.new_empty(X.shape if needs_X else (0,)), weight.new_empty(weight.shape if needs_weight else (0,))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, peaks, log_sums = output
    ctx.mark_non_differentiable(peaks, log_sums)
    ctx.save_for_backward(*inputs, peaks, log_sums)


def _differentiate(ctx: Any, grads: Tensor, *others: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    needs_X, needs_weight = ctx.needs_input_grad[:2]
    dX, dweight = _gradients(grads.contiguous(), *ctx.saved_tensors, needs_X, needs_weight)
    return dX if needs_X else None, dweight if needs_weight else None, None


_losses.register_autograd(_differentiate, setup_context=_keep)


@_losses.register_kernel("cuda")
def _losses_on_cuda(X: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device(X.device):
        return launch(X, weight, targets)


@_gradients.register_kernel("cuda")
def _gradients_on_cuda(
    grads: Tensor,
    X: Tensor,
    weight: Tensor,
    targets: Tensor,
    peaks: Tensor,
    log_sums: Tensor,
    needs_X: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device(X.device):
        rows = (X, weight, targets, grads, peaks, log_sums)
        dX = launch_hidden_gradient(*rows) if needs_X else X.new_empty(0)
        return dX, launch_weight_gradient(*rows) if needs_weight else weight.new_empty(0)


def block_sizes(dtype: torch.dtype) -> dict[str, Any]:
    """Choose the tile of all three kernels and how they are compiled; no axis below 16, which tl.dot needs.

    Source: compiled for sm_80, sm_90 and sm_100 without a GPU: at most 202 registers forward and no spill; 128 rows
            of 16-bit inputs spill
    """
    if dtype == torch.float32:
        return {"BLOCK_N": 64, "BLOCK_V": 64, "BLOCK_D": 16, "PRECISION": "ieee", "num_warps": 8, "num_stages": 2}
    # TF32 keeps every bit of a 16-bit number, and of a logit's gradient three more than bfloat16 would
    return {"BLOCK_N": 64, "BLOCK_V": 64, "BLOCK_D": 32, "PRECISION": "tf32", "num_warps": 8, "num_stages": 2}


def gradient_block_sizes(width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Choose the tile of the two gradient kernels: that of the forward, and the columns of a gradient in one program.

    Source: the logits are computed anew for each BLOCK_OUT columns, so these are as many as registers hold: 256 spill
            500 to 660 bytes with float32 on sm_80 and sm_90, none with 16-bit inputs
    """
    widest = 128 if dtype == torch.float32 or width <= 128 else 256
    return {**block_sizes(dtype), "BLOCK_OUT": 32 if width <= 32 else widest}


def split_vocabulary(n_programs: int, v: int, block_v: int) -> tuple[int, int]:
    """Divide the vocabulary so that few rows fill a GPU too; tokens a split, a multiple of block_v, and splits."""
    blocks = -(-v // block_v)
    length = -(-blocks // min(blocks, max(1, PROGRAMS // n_programs)))
    return length * block_v, -(-blocks // length)


def launch(
    X: Float[Tensor, "n d"], weight: Float[Tensor, "v d"], targets: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Run the forward kernel: on CUDA tensors, or on any in Triton's interpreter."""
    from fastcluster_lm.kernels.linear_cross_entropy.kernel import linear_cross_entropy_kernel

    X, weight, targets = _rows_first(X), _rows_first(weight), targets.contiguous()
    (n, width), v = X.shape, weight.shape[0]
    # a target outside the vocabulary leaves its NaN
    target_logits = torch.empty(n, dtype=torch.float32, device=X.device).fill_(torch.nan)
    if n == 0:
        return target_logits, torch.empty_like(target_logits), torch.empty_like(target_logits)
    sizes = block_sizes(X.dtype)
    row_blocks = -(-n // sizes["BLOCK_N"])
    length, splits = split_vocabulary(row_blocks, v, sizes["BLOCK_V"])
    peaks = torch.empty(splits, n, dtype=torch.float32, device=X.device)
    sums = torch.empty(splits, n, dtype=torch.float32, device=X.device)
    strides = X.stride(0), weight.stride(0)
    linear_cross_entropy_kernel[(row_blocks, splits)](
        X, weight, targets, peaks, sums, target_logits, n, v, width, *strides, length, **sizes
    )
    peak = peaks.amax(0)
    base = torch.where(peak == -torch.inf, 0.0, peak)
    log_sums = (sums * (peaks - base).exp()).sum(0).log()
    return log_sums - (target_logits - peak), peak, log_sums


def launch_hidden_gradient(
    X: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " n"],
    grads: Float[Tensor, " n"],
    peaks: Float[Tensor, " n"],
    log_sums: Float[Tensor, " n"],
) -> Float[Tensor, "n d"]:
    """Run the kernel of the gradient for X: on CUDA tensors, or on any in Triton's interpreter."""
    from fastcluster_lm.kernels.linear_cross_entropy.kernel import hidden_gradient_kernel

    X, weight, targets = _rows_first(X), _rows_first(weight), targets.contiguous()
    (n, width), v = X.shape, weight.shape[0]
    if n == 0:
        return torch.empty_like(X)
    sizes = gradient_block_sizes(width, X.dtype)
    row_blocks, out_blocks = -(-n // sizes["BLOCK_N"]), -(-width // sizes["BLOCK_OUT"])
    length, splits = split_vocabulary(row_blocks * out_blocks, v, sizes["BLOCK_V"])
    # the splits' shares are added in their order; all of them take at most PROGRAMS tiles
    dX = torch.empty(splits, n, width, dtype=torch.float32, device=X.device)
    hidden_gradient_kernel[(row_blocks, out_blocks, splits)](
        X, weight, targets, grads, peaks, log_sums, dX, n, v, width, X.stride(0), weight.stride(0), length, **sizes
    )
    return dX.sum(0).to(X.dtype)


def launch_weight_gradient(
    X: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " n"],
    grads: Float[Tensor, " n"],
    peaks: Float[Tensor, " n"],
    log_sums: Float[Tensor, " n"],
) -> Float[Tensor, "v d"]:
    """Run the kernel of the gradient for the weight: on CUDA tensors, or on any in Triton's interpreter."""
    from fastcluster_lm.kernels.linear_cross_entropy.kernel import weight_gradient_kernel

    X, weight, targets = _rows_first(X), _rows_first(weight), targets.contiguous()
    (n, width), v = X.shape, weight.shape[0]
    sizes = gradient_block_sizes(width, X.dtype)
    dweight = torch.empty(v, width, dtype=weight.dtype, device=X.device)
    grid = (-(-v // sizes["BLOCK_V"]), -(-width // sizes["BLOCK_OUT"]))
    weight_gradient_kernel[grid](
        X, weight, targets, grads, peaks, log_sums, dweight, n, v, width, X.stride(0), weight.stride(0), **sizes
    )
    return dweight


def _rows_first(X: Tensor) -> Tensor:
    return X if X.stride(-1) == 1 else X.contiguous()
