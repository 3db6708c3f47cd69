"""Compiled KMeans: codes spare products and change nothing, whatever they lose."""

import pytest
import torch

from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.kmeans_runs import Starts, op, reference

pytestmark = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])
N, WIDTH, K = 600, 300, 12


def points(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(K, (N,), generator=generator)
    noise = torch.randn(N, WIDTH, generator=generator)
    centres = torch.randn(K, WIDTH, generator=generator)
    if kind == "blobs":
        X = centres[labels] * 2 + noise
    elif kind == "noise":
        X = noise
    elif kind == "distinct":
        X = centres[labels]
    else:
        # two points at most in each class, between two codes in all coordinates, and as near to the others as to codes
        assert kind == "on the edge"
        X = torch.randint(-2, 2, (4, WIDTH), generator=generator)[labels % 4] + 0.5 + 0.01 * noise
        X[:, 0] = 127 * (1 - 2 * (labels % 2))
    return (X - X.mean(0))[None]


def run(X: torch.Tensor, *starts) -> op.Runs:
    return op.run_compiled(native.library(op.SOURCE), X, Starts(*starts))


def runs(X: torch.Tensor, fresh: int, *, warm: bool):
    draws = torch.rand(K, fresh, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    init = X[:, :: N // K][:, :K].contiguous() if warm else None
    return run(X, K, draws, init, 50, 1e-4)


@pytest.mark.parametrize("kind", ["blobs", "noise", "distinct", "on the edge"])
@pytest.mark.parametrize("fresh, warm", [(3, False), (2, True)])
def test_codes_change_no_bit(kind: str, fresh: int, warm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    X = points(kind)
    coded = runs(X, fresh, warm=warm)
    assert op._code_room(X, K * (fresh + warm))
    monkeypatch.setattr(op, "LEAST_WIDTH", WIDTH + 1)
    assert not op._code_room(X, K * (fresh + warm))
    for found, expected in zip(coded, runs(X, fresh, warm=warm), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["blobs", "noise", "distinct", "on the edge"])
def test_no_bit_depends_on_what_the_processor_multiplies_codes_by(kind: str) -> None:
    compiled = native.library(op.SOURCE)
    if not compiled.use_vnni(True):
        pytest.skip("this processor has no VNNI, or the kernels' level does not look for it")
    X = points(kind)
    expected = runs(X, 3, warm=False)
    try:
        assert not compiled.use_vnni(False)
        found = runs(X, 3, warm=False)
    finally:
        compiled.use_vnni(True)
    assert all(torch.equal(*parts) for parts in zip(found, expected, strict=True))


def test_what_codes_lose_of_centroids_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # codes hold the points, and round all coordinates of the nearer centroid up, half of the other one's
    monkeypatch.setattr(op, "LEAST_PRODUCTS", 1)
    base = torch.randint(-20, 20, (WIDTH,), generator=torch.Generator().manual_seed(0)).float()
    base[0] = 127
    nearer, other = base + 0.501, base + torch.where(torch.arange(WIDTH) % 2 == 0, 0.6, 0.45)
    nearer[0] = other[0] = 127
    X = torch.cat([base.expand(50, -1), -base.expand(50, -1)])[None].contiguous()
    init = torch.stack([other, nearer, -base])[None]
    # labels by the centroids as they are
    found = run(X, 3, torch.empty(3, 0, 4, dtype=torch.float64), init, 0, 1.0)
    assert found.labels[0, 0].tolist() == [1] * 50 + [2] * 50


def test_few_products_are_not_worth_codes() -> None:
    X = torch.zeros(1, 10, 256)
    assert op._code_room(X, 32) and not op._code_room(X, 31)
    assert not op._code_room(X[..., :255], 32)


@pytest.mark.parametrize("threads", [1, 2])
def test_codes_of_several_layers_are_each_layers_own(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_threads", threads)
    kinds = ("blobs", "on the edge", "noise")
    together = runs(torch.cat([points(kind) for kind in kinds]), 3, warm=False)
    for layer, kind in enumerate(kinds):
        for whole, alone in zip(together, runs(points(kind), 3, warm=False), strict=True):
            assert torch.equal(whole[layer], alone[0])


@pytest.mark.parametrize("n, width, k", [(7, 1, 3), (33, 2, 9), (64, 5, 12), (200, 31, 20), (900, 32, 97)])
@pytest.mark.parametrize("fresh, warm", [(2, False), (1, True)])
@pytest.mark.parametrize("on_lattice", [False, True])
def test_points_compared_with_moved_centroids_end_where_bounds_do(
    n, width, k, fresh, warm, on_lattice, monkeypatch
) -> None:
    # coordinates beyond the first ones are 0, and change nothing but the way: wide points have bounds
    generator = torch.Generator().manual_seed(n)
    X = torch.randn(3, n, width, generator=generator)
    if on_lattice:
        # centroids are as near as others time and again
        X = torch.randint(-2, 3, (3, n, width), generator=generator).float()
    wide = torch.cat([X, torch.zeros(3, n, 256 - width)], -1)
    draws = torch.rand(k, fresh, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    monkeypatch.setattr(op, "LEAST_WIDTH", 300)
    starts = [points[:, :k].contiguous() if warm else None for points in (X, wide)]
    narrow = run(X, k, draws, starts[0], 100, 0.0)
    bounded = run(wide, k, draws, starts[1], 100, 0.0)
    assert torch.equal(narrow.labels, bounded.labels) and torch.equal(narrow.n_iter, bounded.n_iter)
    torch.testing.assert_close(narrow.inertia, bounded.inertia, rtol=1e-9, atol=1e-9)
    assert not bounded.centroids[..., width:].any()
    # settled: every point is with its nearest centroid
    apart = torch.cdist(X[:, None].double(), narrow.centroids)
    own = apart.gather(-1, narrow.labels.long()[..., None])[..., 0]
    torch.testing.assert_close(own, apart.amin(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("first", [0, 1])
def test_a_point_as_near_to_a_moved_centroid_goes_to_the_lower_label(first: int) -> None:
    # after one update the origin is as near to both: to one that came and its own, or to one that stayed and its own
    coming = torch.tensor([[0.0, 0], [100, 0], [-50, 5], [-50, -5]]), torch.tensor([[-50.0, 10], [50, 0]])
    going = torch.tensor([[0.0, 0], [-100, 0], [50, 5], [50, -5]]), torch.tensor([[50.0, 0], [-40, 0]])
    X, init = (coming, going)[first]
    none = torch.empty(2, 0, 2, dtype=torch.float64)
    assert run(X[None], 2, none, init[None], 1, 0.0).labels[0, 0, 0] == 0
    # the labels of the first iteration are the other way round
    assert run(X[None], 2, none, init[None], 0, 0.0).labels[0, 0, 0] == 1


def test_a_centroid_that_stays_is_not_forgotten_by_points_that_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # points and centroids that mirror each other: the one in the middle stays where it is as it loses points in pairs
    monkeypatch.setattr(op, "LEAST_WIDTH", 300)
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(-9, 10, (4000, 20, 2), generator=generator).float()
    X = torch.cat([half, -half], 1)
    side = torch.randint(-20, 21, (4000, 3, 2), generator=generator).float()
    init = torch.cat([torch.zeros(4000, 1, 2), side, -side], 1)
    none = torch.empty(7, 0, 3, dtype=torch.float64)
    wide = [torch.cat([part, torch.zeros(*part.shape[:2], 254)], -1) for part in (X, init)]
    for iterations in (2, 3, 4, 100):
        found = run(X, 7, none, init, iterations, 0.0)
        assert torch.equal(found.labels, run(wide[0], 7, none, wide[1], iterations, 0.0).labels)


def test_points_at_distance_nought_are_not_drawn_while_others_are_left() -> None:
    # five places, most points at one of them, all squares whole numbers: five clusters find all, whatever is drawn
    places = torch.eye(5)[None] * 3
    crowd = places[:, :1].expand(1, 90, -1)
    for seed, X in ((seed, torch.cat(parts, 1)) for seed in range(20) for parts in ((places, crowd), (crowd, places))):
        draws = torch.rand(5, 1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        draws[seed % 5] = torch.tensor(0.0 if seed % 2 else 1 - 2**-53, dtype=torch.float64)
        assert run(X, 5, draws, None, 0, 0.0).inertia.item() < 1e-9


@pytest.mark.parametrize("n, width, k", [(40, 3, 5), (333, 17, 30)])
def test_runs_start_from_the_points_that_torch_chooses(n: int, width: int, k: int) -> None:
    X = torch.randn(3, n, width, generator=torch.Generator().manual_seed(n))
    draws = torch.rand(k, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # no iteration: the centroids are where they began
    found = run(X, k, draws, None, 0, 0.0)
    assert torch.equal(found.centroids.float(), reference.seed(X, draws))
