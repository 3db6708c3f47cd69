"""Neighbours among points of many coordinates: the first look at fewer coordinates loses none, and saves work."""

import pytest
import torch

from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.nearest_neighbors import contraction, wide
from fastcluster_lm.kernels.nearest_neighbors.contraction import contract
from fastcluster_lm.scores.neighbors import nearest_neighbors

pytestmark = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])
N, WIDTH, CLASSES, K = 1200, 256, 12, 30


def points(kind: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (N,), generator=generator)
    noise = torch.randn(N, WIDTH, generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    if kind == "blobs":
        return centres[labels] * 1.5 + noise
    if kind == "noise":
        return noise
    if kind == "flat":
        # as hidden states are: a few directions hold nearly all
        return noise * 0.7 ** torch.arange(WIDTH).clamp(max=40)
    if kind == "coinciding":
        return centres[labels] + noise * (torch.arange(N) % 3 == 0)[:, None] * 1e-3
    assert kind == "far off"
    return centres[labels] * 1e-3 + 40 + noise * 1e-4


KINDS = ("blobs", "noise", "flat", "coinciding", "far off")


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_coordinates_bring_no_points_farther_apart(kind: str) -> None:
    X = points(kind)
    X = X - X.mean(0)
    reduced = contract(X, X)
    assert reduced.bank.shape[1] < WIDTH and reduced.order.sort().values.equal(torch.arange(N))
    before = torch.cdist(X.double(), X.double(), compute_mode="donot_use_mm_for_euclid_dist")
    after = torch.cdist(reduced.bank.double(), reduced.bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert bool((after <= before + 1e-5 * before.amax()).all())
    # and not much nearer than must be where a few directions hold nearly all
    if kind == "flat":
        assert float((after / before).nanmean()) > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [True, False])
def test_neighbours_of_wide_points_are_exact(kind: str, own: bool) -> None:
    bank = points(kind)
    queries = bank if own else points(kind, seed=1)
    found = nearest_neighbors(queries[None], bank[None], K, exclude_self=own, engine="fused")
    exact = torch.cdist(queries.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if own:
        exact.fill_diagonal_(torch.inf)
    kth = exact.kthvalue(K, dim=-1).values[:, None]
    chosen = exact.gather(1, found.indices[0])
    assert bool((chosen <= kth * (1 + 1e-5)).all())
    torch.testing.assert_close(
        found.distances[0].double(), chosen, rtol=1e-5, atol=1e-6 * float(exact[exact < torch.inf].max())
    )
    assert all(len(set(row)) == K for row in found.indices[0].tolist())


def count_rows(monkeypatch: pytest.MonkeyPatch, X: torch.Tensor) -> tuple[int, int]:
    """Say of how many rows a few coordinates were multiplied, and of how many all."""
    rows = [0, 0]
    multiply = torch.addmm

    def counted(bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, **options: float) -> torch.Tensor:
        # the pivots' are not a look at neighbours
        rows[left.shape[1] == WIDTH] += len(left) if right.shape[1] == N else 0
        return multiply(bias, left, right, **options)

    monkeypatch.setattr(torch, "addmm", counted)
    nearest_neighbors(X[None], X[None], K, exclude_self=True, engine="fused")
    monkeypatch.undo()
    return rows[0], rows[1]


def test_the_first_look_settles_rows_whose_neighbours_stand_out(monkeypatch: pytest.MonkeyPatch) -> None:
    few, whole = count_rows(monkeypatch, points("flat"))
    assert N <= few <= N * 1.1 and whole == 0
    # blobs of a hundred points, of which 30 are asked for
    few, whole = count_rows(monkeypatch, points("blobs"))
    assert N <= few <= N * 1.1 and whole < N / 10
    # all as far as all others: nothing can be ruled out, which few rows tell
    few, whole = count_rows(monkeypatch, points("noise"))
    assert few == N / 16 and whole == N


def test_few_points_or_coordinates_get_no_first_look() -> None:
    assert contraction.pays(2000, 2000, 768, 98)
    assert not contraction.pays(2000, 2000, 128, 98)
    assert not contraction.pays(500, 2000, 768, 98) and not contraction.pays(2000, 500, 768, 98)
    assert not contraction.pays(2000, 2000, 768, 300)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    X = points("blobs")
    whole = nearest_neighbors(X[None], X[None], K, exclude_self=True, engine="fused")
    monkeypatch.setattr(wide, "BLOCK_BYTES", 4 * N * 7)
    tiled = nearest_neighbors(X[None], X[None], K, exclude_self=True, engine="fused")
    assert torch.equal(whole.indices, tiled.indices) and torch.equal(whole.distances, tiled.distances)
