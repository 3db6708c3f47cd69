"""What proves cluster_sums: wide and narrow points, several slices, labels that are no cluster, empty clusters."""

import torch

from fastcluster_lm.kernels.cluster_sums import op, reference
from tests.kernels.cases import Kernel, tiles_of
from tests.kernels.memory import assert_ten_equal, padded, poisoned

# layers, runs, points, clusters, coordinates
SHAPES = [(2, 2, 97, 5, d) for d in (1, 2, 9, 15, 16, 17)]
SHAPES += [
    (1, 1, 1, 1, 3),
    (2, 1, 0, 4, 8),
    (0, 1, 5, 4, 8),
    (1, 1, 1031, 19, 2),
    (1, 1, 1031, 3, 65),
    (1, 1, 17, 3, 768),
]
SLOW = [(1, 2, n, k, d) for n in (1, 1031, 2053) for k in (1, 16, 17, 101) for d in (1, 2, 8, 9, 16, 17)]
SLOW += [(1, 1, 1031, 17, 768), (1, 1, 97, 17, 2048)]


def kernels() -> list[Kernel]:
    from fastcluster_lm.kernels.cluster_sums.kernel import cluster_sums_kernel

    sizes = [(k, width) for k in range(1, 300) for width in (*range(1, 130), 768, 2048, 16384)]
    pointers = {"x_ptr": "*fp32", "labels_ptr": "*i64", "sums_ptr": "*fp32", "sizes_ptr": "*i32"}
    return [Kernel("cluster_sums", cluster_sums_kernel, pointers, tiles_of(op.block_sizes, sizes, PRECISION="ieee"))]


def check(shape: tuple[int, ...], device: torch.device) -> None:
    n_layers, runs, n, k, width = shape
    generator = torch.Generator().manual_seed(width)
    X = torch.randn(n_layers, n, width, generator=generator).to(device)
    # -1 and k are no cluster; the last cluster stays empty where there are several
    labels = torch.randint(-1, max(1, k - 1), (n_layers, runs, n), generator=generator).to(device)
    labels[..., :1] = k
    if n == 0:
        # no slice of points, so that no program runs
        sums, sizes = op.launch(X, labels, k)
    else:
        with poisoned():
            sums, sizes = op.launch(padded(X), labels, k)
    truth, counts = reference.cluster_sums(X.double(), labels, k)
    assert sums.shape == truth.shape and sums.dtype == torch.float32
    assert sizes.dtype == torch.int64 and torch.equal(sizes, counts)
    if truth.numel():
        largest = reference.cluster_sums(X.double().abs(), labels, k)[0]
        assert bool(((sums - truth).abs() <= 1e-6 * largest).all()), "a sum is off by more than its terms' rounding"
    if width == 2 and n < 100:
        assert_ten_equal(lambda: op.launch(X, labels, k))
