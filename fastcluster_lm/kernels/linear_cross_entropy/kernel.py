"""The Triton kernels of linear_cross_entropy: one forward, one for each gradient; they launch and check nothing.

Every product is fp32: 16-bit inputs are widened on loading, where PRECISION tf32 keeps each of their bits. No result is
summed across programs, so nothing depends on the order in which they run.
"""

import triton
import triton.language as tl


@triton.jit
def _logits(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    n: tl.tensor,
    v: tl.tensor,
    N: tl.tensor,
    V: tl.tensor,
    D: tl.tensor,
    x_row: tl.tensor,
    w_row: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    # the same loop in all three kernels, so that a gradient meets the logits that the forward saw
    in_n = n < N
    in_v = v < V
    dots = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for first_d in range(0, D, BLOCK_D):
        d = first_d + tl.arange(0, BLOCK_D)
        in_d = d < D
        x = tl.load(x_ptr + n[:, None] * x_row + d[None, :], mask=in_n[:, None] & in_d[None, :], other=0.0)
        w = tl.load(w_ptr + v[None, :] * w_row + d[:, None], mask=in_v[None, :] & in_d[:, None], other=0.0)
        dots = tl.dot(x.to(tl.float32), w.to(tl.float32), dots, input_precision=PRECISION)
    # a token beyond V has no share in any sum of exponentials
    return tl.where(in_v[None, :], dots, float("-inf"))


@triton.jit
def _logit_gradients(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    target_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    log_sum_ptr: tl.tensor,
    n: tl.tensor,
    v: tl.tensor,
    N: tl.tensor,
    V: tl.tensor,
    D: tl.tensor,
    x_row: tl.tensor,
    w_row: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    in_n = n < N
    logits = _logits(x_ptr, w_ptr, n, v, N, V, D, x_row, w_row, BLOCK_N, BLOCK_V, BLOCK_D, PRECISION)
    target = tl.load(target_ptr + n, mask=in_n, other=-1)
    # a row beyond N weighs nothing
    grad = tl.load(grad_ptr + n, mask=in_n, other=0.0)
    peak = tl.load(peak_ptr + n, mask=in_n, other=0.0)
    log_sum = tl.load(log_sum_ptr + n, mask=in_n, other=0.0)
    share = tl.exp(logits - peak[:, None] - log_sum[:, None])
    return (share - tl.where(v[None, :] == target[:, None], 1.0, 0.0)) * grad[:, None]


@triton.jit
def linear_cross_entropy_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    target_ptr: tl.tensor,
    peaks_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    target_logit_ptr: tl.tensor,
    N: tl.tensor,
    V: tl.tensor,
    D: tl.tensor,
    x_row: tl.tensor,
    w_row: tl.tensor,
    split_length: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # one program: BLOCK_N rows against one split of the vocabulary; its largest logit and sum of exponentials below it
    split = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = n < N
    target = tl.load(target_ptr + n, mask=in_n, other=-1)
    peak = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    target_logit = tl.zeros((BLOCK_N,), tl.float32)
    found = tl.zeros((BLOCK_N,), tl.int32)
    for offset in range(0, split_length, BLOCK_V):
        v = split * split_length + offset + tl.arange(0, BLOCK_V)
        logits = _logits(x_ptr, w_ptr, n, v, N, V, D, x_row, w_row, BLOCK_N, BLOCK_V, BLOCK_D, PRECISION)
        higher = tl.maximum(peak, tl.max(logits, axis=1))
        # where all logits so far are -inf there is nothing to take away, and -inf less -inf would be NaN
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - base) + tl.sum(tl.exp(logits - base[:, None]), axis=1)
        peak = higher
        hit = (v[None, :] == target[:, None]) & (v[None, :] < V)
        target_logit += tl.sum(tl.where(hit, logits, 0.0), axis=1)
        found += tl.sum(hit.to(tl.int32), axis=1)
    tl.store(peaks_ptr + split * N + n, peak, mask=in_n)
    tl.store(sums_ptr + split * N + n, total, mask=in_n)
    # a target lies in one split only; where it lies in none the cell keeps the NaN it came with
    tl.store(target_logit_ptr + n, target_logit, mask=in_n & (found > 0))


@triton.jit
def hidden_gradient_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    target_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    log_sum_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    N: tl.tensor,
    V: tl.tensor,
    D: tl.tensor,
    x_row: tl.tensor,
    w_row: tl.tensor,
    split_length: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # one program: BLOCK_OUT columns of the gradient of BLOCK_N rows, over one split of the vocabulary
    split = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = tl.program_id(1).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    in_out = out < D
    dx = tl.zeros((BLOCK_N, BLOCK_OUT), tl.float32)
    for offset in range(0, split_length, BLOCK_V):
        v = split * split_length + offset + tl.arange(0, BLOCK_V)
        gradients = _logit_gradients(
            x_ptr, w_ptr, target_ptr, grad_ptr, peak_ptr, log_sum_ptr, n, v, N, V, D, x_row, w_row,
            BLOCK_N, BLOCK_V, BLOCK_D, PRECISION,
        )  # fmt: skip
        w = tl.load(w_ptr + v[:, None] * w_row + out[None, :], mask=(v < V)[:, None] & in_out[None, :], other=0.0)
        dx = tl.dot(gradients, w.to(tl.float32), dx, input_precision=PRECISION)
    tl.store(dx_ptr + (split * N + n)[:, None] * D + out[None, :], dx, mask=(n < N)[:, None] & in_out[None, :])


@triton.jit
def weight_gradient_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    target_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    log_sum_ptr: tl.tensor,
    dw_ptr: tl.tensor,
    N: tl.tensor,
    V: tl.tensor,
    D: tl.tensor,
    x_row: tl.tensor,
    w_row: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # one program: BLOCK_OUT columns of the gradient of BLOCK_V tokens, over all rows
    v = tl.program_id(0).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    out = tl.program_id(1).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    in_out = out < D
    dw = tl.zeros((BLOCK_V, BLOCK_OUT), tl.float32)
    for first_n in range(0, N, BLOCK_N):
        n = tl.arange(0, BLOCK_N).to(tl.int64) + first_n
        gradients = _logit_gradients(
            x_ptr, w_ptr, target_ptr, grad_ptr, peak_ptr, log_sum_ptr, n, v, N, V, D, x_row, w_row,
            BLOCK_N, BLOCK_V, BLOCK_D, PRECISION,
        )  # fmt: skip
        x = tl.load(x_ptr + n[:, None] * x_row + out[None, :], mask=(n < N)[:, None] & in_out[None, :], other=0.0)
        dw = tl.dot(tl.trans(gradients), x.to(tl.float32), dw, input_precision=PRECISION)
    tl.store(dw_ptr + v[:, None] * D + out[None, :], dw, mask=(v < V)[:, None] & in_out[None, :])
