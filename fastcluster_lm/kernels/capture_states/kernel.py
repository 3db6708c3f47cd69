"""The Triton kernel of capture_states, for one layer; it launches nothing and checks nothing."""

import triton
import triton.language as tl


@triton.jit
def capture_states_kernel(
    x_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    states_ptr: tl.tensor,
    sq_norms_ptr: tl.tensor,
    B: tl.tensor,
    T: tl.tensor,
    D: tl.tensor,
    x_row: tl.tensor,
    x_token: tl.tensor,
    n_layers: tl.tensor,
    layer: tl.tensor,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    # one program: BLOCK_B sequences, their state read once and written to the layer's slice
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    in_b = b < B
    position = tl.load(positions_ptr + b, mask=in_b, other=0).to(tl.int64)
    # a position outside the sequence reads nothing and gives NaN, which no score accepts
    inside = in_b & (position >= 0) & (position < T)
    rows = x_ptr + b * x_row + tl.where(inside, position, 0) * x_token
    cells = b * n_layers + layer
    sq_norm = tl.zeros((BLOCK_B,), tl.float32)
    for first_d in range(0, D, BLOCK_D):
        d = first_d + tl.arange(0, BLOCK_D)
        in_d = d < D
        x = tl.load(rows[:, None] + d[None, :], mask=inside[:, None] & in_d[None, :], other=0.0).to(tl.float32)
        x = tl.where(inside[:, None], x, float("nan"))
        tl.store(states_ptr + cells[:, None] * D + d[None, :], x, mask=in_b[:, None] & in_d[None, :])
        sq_norm += tl.sum(x * x, axis=1)
    tl.store(sq_norms_ptr + cells, sq_norm, mask=in_b)
