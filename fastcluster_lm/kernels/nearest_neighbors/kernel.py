"""The Triton kernel of nearest_neighbors: distances and the running best k at once; it launches and checks nothing."""

import triton
import triton.language as tl

# sorts behind every key that an admissible point can have
NEVER = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit(
    do_not_specialize=[
        "n_queries", "n_bank", "D", "K", "q_layer", "q_column", "b_layer", "b_column", "own_layer", "other_layer",
        "own_point", "other_point",
    ]
)  # fmt: skip
def nearest_neighbors_kernel(
    q_ptr: tl.tensor,
    b_ptr: tl.tensor,
    own_ptr: tl.tensor,
    other_ptr: tl.tensor,
    distances_ptr: tl.tensor,
    indices_ptr: tl.tensor,
    n_queries: tl.int32,
    n_bank: tl.int32,
    D: tl.int32,
    K: tl.int32,
    q_layer: tl.int64,
    q_column: tl.int64,
    b_layer: tl.int64,
    b_column: tl.int64,
    own_layer: tl.int64,
    other_layer: tl.int64,
    own_point: tl.int64,
    other_point: tl.int64,
    BLOCK_Q: tl.constexpr,
    BLOCK_B: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    # one program: BLOCK_Q queries of one layer against its whole bank, of which it keeps the BLOCK_B nearest so far.
    # points come coordinate by coordinate, (layers, d, n), so that a block of them is read in one piece
    layer = tl.program_id(1).to(tl.int64)
    q = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    in_q = q < n_queries
    own = tl.load(own_ptr + layer * own_layer + q * own_point, mask=in_q, other=0)
    kept = tl.full((BLOCK_Q, BLOCK_B), NEVER, tl.int64)
    for first in range(0, n_bank, BLOCK_B):
        b = tl.arange(0, BLOCK_B).to(tl.int64) + first
        in_b = b < n_bank
        sq_dist = tl.zeros((BLOCK_Q, BLOCK_B), tl.float32)
        x_at = q_ptr + layer * q_layer + q
        y_at = b_ptr + layer * b_layer + b
        for first_d in range(0, D, CHUNK):
            # a chunk's own sum first: the rounding grows with D / CHUNK + CHUNK, not with D
            part = tl.zeros((BLOCK_Q, BLOCK_B), tl.float32)
            for step in range(CHUNK):
                in_d = first_d + step < D
                x = tl.load(x_at, mask=in_q & in_d, other=0.0)
                y = tl.load(y_at, mask=in_b & in_d, other=0.0)
                away = (x[:, None] - y[None, :]).to(tl.float32)
                part += away * away
                x_at += q_column
                y_at += b_column
            sq_dist += part
        # the bits of floats that are not negative are in the order of the floats; the index below them settles ties
        keys = (sq_dist.to(tl.int32, bitcast=True).to(tl.int64) << 32) | b[None, :]
        other = tl.load(other_ptr + layer * other_layer + b * other_point, mask=in_b, other=0)
        allowed = in_q[:, None] & in_b[None, :] & (own[:, None] != other[None, :])
        keys = tl.where(allowed, keys, NEVER)
        # ascending against descending: the lesser of each two are the BLOCK_B least of both, and a bitonic sequence
        kept = tl.bitonic_merge(tl.minimum(kept, tl.sort(keys, descending=True)))
    rank = tl.arange(0, BLOCK_B)
    cells = (layer * n_queries + q[:, None]) * K + rank[None, :]
    in_cells = in_q[:, None] & (rank[None, :] < K)
    distances = tl.sqrt_rn((kept >> 32).to(tl.int32).to(tl.float32, bitcast=True))
    tl.store(distances_ptr + cells, distances, mask=in_cells)
    tl.store(indices_ptr + cells, kept & 0xFFFFFFFF, mask=in_cells)
