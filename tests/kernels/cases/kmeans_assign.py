"""What proves kmeans_assign: wide and narrow points, 16-bit points, runs that share them, ties across blocks."""

import torch

from fastcluster_lm.kernels.kmeans_assign import op, reference
from tests.kernels.cases import Kernel, tiles_of
from tests.kernels.memory import assert_ten_equal, padded, poisoned

# layers, runs, points, clusters, coordinates
SHAPES = [(2, 1, 97, 5, d) for d in (1, 2, 15, 16, 17)]
SHAPES += [(2, 3, 67, 5, 2), (2, 3, 67, 18, 9), (1, 1, 1, 1, 3), (3, 1, 0, 4, 8), (0, 1, 5, 4, 8), (1, 1, 65, 37, 33)]
SHAPES += [(1, 1, 17, 3, 768)]
SLOW = [(1, 2, n, k, d) for n in (1, 131) for k in (1, 16, 17, 101) for d in (1, 2, 8, 9, 15, 16, 17, 768)]
SLOW += [(1, 1, 67, 18, 2048)]


def kernels() -> list[Kernel]:
    from fastcluster_lm.kernels.kmeans_assign.kernel import kmeans_assign_kernel

    sizes = [(k, width) for k in range(1, 300) for width in (*range(1, 130), 768, 2048, 16384)]
    tiles = tiles_of(op.block_sizes, sizes, PRECISION="ieee")
    out = {"labels_ptr": "*i64", "sq_dist_ptr": "*fp32"}
    return [
        Kernel(
            f"kmeans_assign {dtype}", kmeans_assign_kernel, {"x_ptr": f"*{dtype}", "c_ptr": f"*{dtype}", **out}, tiles
        )
        for dtype in ("fp32", "bf16")
    ]


def check(shape: tuple[int, ...], device: torch.device) -> None:
    n_layers, runs, n, k, width = shape
    generator = torch.Generator().manual_seed(width)
    X = torch.randn(n_layers, n, width, generator=generator).to(device)
    centroids = torch.randn(n_layers, runs, k, width, generator=generator).to(device)
    exact = width < 700 and width != 16
    if exact:
        # eighths, whose squares float32 adds up without rounding, in whatever order a matmul takes them
        X, centroids = (X * 8).round() / 8, (centroids * 8).round() / 8
    # duplicates of the first centroid, the last one in another block where k is large: the lower label must win
    copies = [3, k - 1] if k > 3 else []
    centroids[:, :, copies] = centroids[:, :, :1].clone()
    with poisoned():
        labels, sq_dist = op.launch(padded(X), padded(centroids))
    assert labels.shape == sq_dist.shape == (n_layers, runs, n)
    if labels.numel() == 0:
        return
    true_labels, truth = reference.kmeans_assign(X[:, None].double(), centroids.double())
    if exact:
        assert torch.equal(labels, true_labels), "a point has not the lowest label of its nearest centroids"
    every = (X.double()[:, None, :, None] - centroids.double()[:, :, None]).square().sum(-1)
    assert int(labels.min()) >= 0 and int(labels.max()) < k
    chosen = every.gather(-1, labels[..., None])[..., 0]
    # squares of about the width are taken from each other
    rounding = 0.0 if exact else 2e-6 * width
    assert float((chosen - truth).max()) <= rounding, f"a point went {float((chosen - truth).max())} too far"
    assert float((sq_dist - truth).abs().max()) <= rounding
    if width == 2:
        assert_ten_equal(lambda: op.launch(X, centroids))
    if width == 16:
        half = X.bfloat16(), centroids.bfloat16()
        # the interpreter's bf16 is right for loads alone, which is all that the kernel does in it
        labels, sq_dist = op.launch(*half)
        truth = reference.kmeans_assign(half[0][:, None].double(), half[1].double())[1]
        assert float((sq_dist - truth).abs().max()) <= rounding
