"""The Triton kernel of kmeans_assign; it launches nothing and checks nothing."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["N", "K", "D", "RUNS", "x_batch", "x_row", "c_batch", "c_row"])
def kmeans_assign_kernel(
    x_ptr: tl.tensor,
    c_ptr: tl.tensor,
    labels_ptr: tl.tensor,
    sq_dist_ptr: tl.tensor,
    N: tl.int32,
    K: tl.int32,
    D: tl.int32,
    RUNS: tl.int32,
    x_batch: tl.int64,
    x_row: tl.int64,
    c_batch: tl.int64,
    c_row: tl.int64,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # one program: BLOCK_N points of one problem against all its centroids, the N x K matrix is never stored.
    # BLOCK_D == 1: few coordinates, taken one by one as differences, where a matmul would be mostly padding
    problem = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = n < N
    x_rows = x_ptr + (problem // RUNS) * x_batch + n * x_row
    best = tl.full((BLOCK_N,), float("inf"), tl.float32)
    label = tl.zeros((BLOCK_N,), tl.int64)
    x_sq = tl.zeros((BLOCK_N,), tl.float32)
    if BLOCK_D > 1:
        for first_d in range(0, D, BLOCK_D):
            d = first_d + tl.arange(0, BLOCK_D)
            in_x = in_n[:, None] & (d[None, :] < D)
            x = tl.load(x_rows[:, None] + d[None, :], mask=in_x, other=0.0).to(tl.float32)
            x_sq += tl.sum(x * x, axis=1)
    for first_k in range(0, K, BLOCK_K):
        k = tl.arange(0, BLOCK_K).to(tl.int64) + first_k
        in_k = k < K
        c_rows = c_ptr + problem * c_batch + k * c_row
        apart = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        if BLOCK_D > 1:
            c_sq = tl.zeros((BLOCK_K,), tl.float32)
            for first_d in range(0, D, BLOCK_D):
                d = first_d + tl.arange(0, BLOCK_D)
                in_d = d < D
                in_x = in_n[:, None] & in_d[None, :]
                x = tl.load(x_rows[:, None] + d[None, :], mask=in_x, other=0.0).to(tl.float32)
                in_c = in_k[None, :] & in_d[:, None]
                c = tl.load(c_rows[None, :] + d[:, None], mask=in_c, other=0.0).to(tl.float32)
                apart = tl.dot(x, c, apart, input_precision=PRECISION)
                c_sq += tl.sum(c * c, axis=0)
            apart = c_sq[None, :] - 2.0 * apart
        else:
            for one_d in range(0, D):
                x = tl.load(x_rows + one_d, mask=in_n, other=0.0).to(tl.float32)
                c = tl.load(c_rows + one_d, mask=in_k, other=0.0).to(tl.float32)
                away = x[:, None] - c[None, :]
                apart += away * away
        # a centroid beyond K is infinitely far
        apart = tl.where(in_k[None, :], apart, float("inf"))
        nearest, position = tl.min(apart, axis=1, return_indices=True, return_indices_tie_break_left=True)
        # strictly nearer, so that ties stay with the lower index
        nearer = nearest < best
        best = tl.where(nearer, nearest, best)
        label = tl.where(nearer, first_k + position.to(tl.int64), label)
    tl.store(labels_ptr + problem * N + n, label, mask=in_n)
    tl.store(sq_dist_ptr + problem * N + n, tl.maximum(best + x_sq, 0.0), mask=in_n)
