"""The Triton kernel of kmeans_assign; it launches nothing and checks nothing."""

import triton
import triton.language as tl


@triton.jit
def kmeans_assign_kernel(
    x_ptr: tl.tensor,
    c_ptr: tl.tensor,
    labels_ptr: tl.tensor,
    sq_dist_ptr: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    D: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    c_batch: tl.tensor,
    c_row: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # one program: BLOCK_N points of one problem against all its centroids, the N x K matrix is never stored
    problem = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = n < N
    x_rows = x_ptr + problem * x_batch + n[:, None] * x_row
    best = tl.full((BLOCK_N,), float("inf"), tl.float32)
    label = tl.zeros((BLOCK_N,), tl.int64)
    x_sq = tl.zeros((BLOCK_N,), tl.float32)
    for first_d in range(0, D, BLOCK_D):
        d = first_d + tl.arange(0, BLOCK_D)
        x = tl.load(x_rows + d[None, :], mask=in_n[:, None] & (d[None, :] < D), other=0.0).to(tl.float32)
        x_sq += tl.sum(x * x, axis=1)
    for first_k in range(0, K, BLOCK_K):
        k = tl.arange(0, BLOCK_K).to(tl.int64) + first_k
        in_k = k < K
        c_rows = c_ptr + problem * c_batch + k[None, :] * c_row
        dots = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        c_sq = tl.zeros((BLOCK_K,), tl.float32)
        for first_d in range(0, D, BLOCK_D):
            d = first_d + tl.arange(0, BLOCK_D)
            in_d = d < D
            x = tl.load(x_rows + d[None, :], mask=in_n[:, None] & in_d[None, :], other=0.0).to(tl.float32)
            c = tl.load(c_rows + d[:, None], mask=in_k[None, :] & in_d[:, None], other=0.0).to(tl.float32)
            dots = tl.dot(x, c, dots, input_precision=PRECISION)
            c_sq += tl.sum(c * c, axis=0)
        # a centroid beyond K is infinitely far
        apart = tl.where(in_k[None, :], c_sq[None, :] - 2.0 * dots, float("inf"))
        nearest, position = tl.min(apart, axis=1, return_indices=True, return_indices_tie_break_left=True)
        # strictly nearer, so that ties stay with the lower index
        nearer = nearest < best
        best = tl.where(nearer, nearest, best)
        label = tl.where(nearer, first_k + position.to(tl.int64), label)
    tl.store(labels_ptr + problem * N + n, label, mask=in_n)
    tl.store(sq_dist_ptr + problem * N + n, tl.maximum(best + x_sq, 0.0), mask=in_n)
