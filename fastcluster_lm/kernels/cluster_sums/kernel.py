"""The Triton kernel of cluster_sums: partial sums of slices of the points; they are added up elsewhere."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["N", "K", "D", "RUNS", "x_batch", "x_row"])
def cluster_sums_kernel(
    x_ptr: tl.tensor,
    labels_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    sizes_ptr: tl.tensor,
    N: tl.int32,
    K: tl.int32,
    D: tl.int32,
    RUNS: tl.int32,
    x_batch: tl.int64,
    x_row: tl.int64,
    PART_N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # one program: BLOCK_K clusters and BLOCK_D coordinates of PART_N points of one problem, summed by a matmul with the
    # clusters' indicator, so that no two programs write one cell and every sum has one order.
    # BLOCK_D == 1: one coordinate, where a matmul would be mostly padding
    problem = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    d_blocks = tl.cdiv(D, BLOCK_D)
    first_k = (tl.program_id(0) // d_blocks) * BLOCK_K
    first_d = (tl.program_id(0) % d_blocks) * BLOCK_D
    k = first_k + tl.arange(0, BLOCK_K)
    in_k = k < K
    x_rows = x_ptr + (problem // RUNS) * x_batch
    sizes = tl.zeros((BLOCK_K,), tl.int32)
    d = first_d + tl.arange(0, BLOCK_D)
    in_d = d < D
    sums = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for step in range(0, tl.minimum(PART_N, N - part * PART_N).to(tl.int32), BLOCK_N):
        n = part * PART_N + step + tl.arange(0, BLOCK_N)
        in_n = n < N
        label = tl.load(labels_ptr + problem * N + n, mask=in_n, other=-1)
        member = (k[:, None] == label[None, :]) & in_k[:, None]
        sizes += tl.sum(member.to(tl.int32), axis=1)
        if BLOCK_D > 1:
            in_x = in_n[:, None] & in_d[None, :]
            x = tl.load(x_rows + n[:, None] * x_row + d[None, :], mask=in_x, other=0.0).to(tl.float32)
            sums = tl.dot(member.to(tl.float32), x, sums, input_precision=PRECISION)
        else:
            x = tl.load(x_rows + n * x_row + first_d, mask=in_n, other=0.0).to(tl.float32)
            sums += tl.sum(tl.where(member, x[None, :], 0.0), axis=1)[:, None]
    row = (problem * tl.num_programs(1) + part) * K + k
    tl.store(sums_ptr + row[:, None] * D + d[None, :], sums, mask=in_k[:, None] & in_d[None, :])
    # every block of coordinates counted the same; one of them writes it
    tl.store(sizes_ptr + row, sizes, mask=in_k & (first_d == 0))
