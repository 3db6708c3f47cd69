"""The Triton kernels of the t-SNE descent: forces of all pairs and edges, and the step; they launch nothing."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["N"])
def tsne_forces_kernel(
    points_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    columns_ptr: tl.tensor,
    values_ptr: tl.tensor,
    active_ptr: tl.tensor,
    attraction_ptr: tl.tensor,
    repulsion_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    N: tl.int32,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    # one program: BLOCK_I points of one layer, (layers, 2, N), against all others and along their own edges
    layer = tl.program_id(1).to(tl.int64)
    if tl.load(active_ptr + layer) != 0:
        i = tl.program_id(0).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
        in_i = i < N
        horizontal = points_ptr + layer * 2 * N
        vertical = horizontal + N
        x = tl.load(horizontal + i, mask=in_i, other=0.0)
        y = tl.load(vertical + i, mask=in_i, other=0.0)
        push_x = tl.zeros((BLOCK_I,), tl.float32)
        push_y = tl.zeros((BLOCK_I,), tl.float32)
        mass = tl.zeros((BLOCK_I,), tl.float32)
        for first in range(0, N, BLOCK_J):
            j = tl.arange(0, BLOCK_J).to(tl.int64) + first
            in_j = j < N
            away_x = x[:, None] - tl.load(horizontal + j, mask=in_j, other=0.0)[None, :]
            away_y = y[:, None] - tl.load(vertical + j, mask=in_j, other=0.0)[None, :]
            kernel = 1.0 / (1.0 + away_x * away_x + away_y * away_y)
            kernel = tl.where(in_i[:, None] & in_j[None, :] & (i[:, None] != j[None, :]), kernel, 0.0)
            mass += tl.sum(kernel, axis=1)
            kernel = kernel * kernel
            push_x += tl.sum(kernel * away_x, axis=1)
            push_y += tl.sum(kernel * away_y, axis=1)
        pull_x = tl.zeros((BLOCK_I,), tl.float32)
        pull_y = tl.zeros((BLOCK_I,), tl.float32)
        start = tl.load(starts_ptr + layer * N + i, mask=in_i, other=0)
        length = tl.load(starts_ptr + layer * N + i + 1, mask=in_i, other=0) - start
        for first in range(0, tl.max(length, axis=0).to(tl.int32), BLOCK_E):
            e = first + tl.arange(0, BLOCK_E)
            in_e = e[None, :] < length[:, None]
            entry = start[:, None] + e[None, :]
            j_of = tl.load(columns_ptr + entry, mask=in_e, other=0).to(tl.int64)
            value = tl.load(values_ptr + entry, mask=in_e, other=0.0)
            along_x = x[:, None] - tl.load(horizontal + j_of, mask=in_e, other=0.0)
            along_y = y[:, None] - tl.load(vertical + j_of, mask=in_e, other=0.0)
            weight = value / (1.0 + along_x * along_x + along_y * along_y)
            pull_x += tl.sum(weight * along_x, axis=1)
            pull_y += tl.sum(weight * along_y, axis=1)
        row = layer * 2 * N + i
        tl.store(repulsion_ptr + row, push_x, mask=in_i)
        tl.store(repulsion_ptr + row + N, push_y, mask=in_i)
        tl.store(attraction_ptr + row, pull_x, mask=in_i)
        tl.store(attraction_ptr + row + N, pull_y, mask=in_i)
        # its share of the normaliser; all shares are added in one order by whoever needs the sum
        share = tl.sum(mass.to(tl.float64), axis=0)
        tl.store(sums_ptr + layer * tl.num_programs(0) + tl.program_id(0), share)


@triton.jit
def _sum_of(shares: tl.tensor, parts: tl.tensor, BLOCK_P: tl.constexpr) -> tl.tensor:
    total = tl.zeros((BLOCK_P,), tl.float64)
    for first in range(0, parts, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        total += tl.load(shares + p, mask=p < parts, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["N", "parts", "exaggeration", "momentum", "step_size", "max_step_norm"])
def tsne_step_kernel(
    points_ptr: tl.tensor,
    update_ptr: tl.tensor,
    gains_ptr: tl.tensor,
    gradient_ptr: tl.tensor,
    attraction_ptr: tl.tensor,
    repulsion_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    active_ptr: tl.tensor,
    centres_ptr: tl.tensor,
    new_centres_ptr: tl.tensor,
    N: tl.int32,
    parts: tl.int32,
    exaggeration: tl.float32,
    momentum: tl.float32,
    step_size: tl.float32,
    max_step_norm: tl.float32,
    BLOCK_I: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    # one program: the step of BLOCK_I points. The mean is taken off one step late, when all programs know it: forces do
    # not depend on it. centres (layers, 2, parts) hold each program's share of the last step's mean
    layer = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0)
    blocks = tl.num_programs(0)
    i = block.to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    in_i = i < N
    centre = centres_ptr + layer * 2 * blocks
    new_centre = new_centres_ptr + layer * 2 * blocks + block
    if tl.load(active_ptr + layer) != 0:
        normaliser = _sum_of(sums_ptr + layer * parts, parts, BLOCK_P).to(tl.float32)
        mean_x = _sum_of(centre, blocks, BLOCK_P).to(tl.float32)
        mean_y = _sum_of(centre + blocks, blocks, BLOCK_P).to(tl.float32)
        at_x = layer * 2 * N + i
        at_y = at_x + N
        pull_x = tl.load(attraction_ptr + at_x, mask=in_i, other=0.0)
        pull_y = tl.load(attraction_ptr + at_y, mask=in_i, other=0.0)
        push_x = tl.load(repulsion_ptr + at_x, mask=in_i, other=0.0)
        push_y = tl.load(repulsion_ptr + at_y, mask=in_i, other=0.0)
        slope_x = pull_x * exaggeration - push_x / normaliser
        slope_y = pull_y * exaggeration - push_y / normaliser
        before_x = tl.load(update_ptr + at_x, mask=in_i, other=0.0)
        before_y = tl.load(update_ptr + at_y, mask=in_i, other=0.0)
        gain_x = tl.load(gains_ptr + at_x, mask=in_i, other=1.0)
        gain_y = tl.load(gains_ptr + at_y, mask=in_i, other=1.0)
        gain_x = tl.where(before_x * slope_x <= 0, gain_x + 0.2, gain_x * 0.8 + 0.01)
        gain_y = tl.where(before_y * slope_y <= 0, gain_y + 0.2, gain_y * 0.8 + 0.01)
        step_x = before_x * momentum - gain_x * slope_x * step_size
        step_y = before_y * momentum - gain_y * slope_y * step_size
        # no point moves farther than max_step_norm at once; a point that stands still divides by 0 and stays
        length = tl.sqrt_rn(step_x * step_x + step_y * step_y)
        shorter = tl.where(length > max_step_norm, max_step_norm / length, 1.0)
        step_x *= shorter
        step_y *= shorter
        x = tl.load(points_ptr + at_x, mask=in_i, other=0.0) - mean_x + step_x
        y = tl.load(points_ptr + at_y, mask=in_i, other=0.0) - mean_y + step_y
        tl.store(points_ptr + at_x, x, mask=in_i)
        tl.store(points_ptr + at_y, y, mask=in_i)
        tl.store(update_ptr + at_x, step_x, mask=in_i)
        tl.store(update_ptr + at_y, step_y, mask=in_i)
        tl.store(gains_ptr + at_x, gain_x, mask=in_i)
        tl.store(gains_ptr + at_y, gain_y, mask=in_i)
        tl.store(gradient_ptr + at_x, slope_x, mask=in_i)
        tl.store(gradient_ptr + at_y, slope_y, mask=in_i)
        tl.store(new_centre, tl.sum(tl.where(in_i, x, 0.0).to(tl.float64), axis=0) / N)
        tl.store(new_centre + blocks, tl.sum(tl.where(in_i, y, 0.0).to(tl.float64), axis=0) / N)
    else:
        tl.store(new_centre, tl.load(centre + block))
        tl.store(new_centre + blocks, tl.load(centre + blocks + block))
