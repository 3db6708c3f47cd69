"""Neighbours among points of many coordinates: codes and fewer coordinates lose none, and save work."""

from collections.abc import Callable, Iterator

import pytest
import torch

from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.nearest_neighbors import codes, contraction, wide
from fastcluster_lm.kernels.nearest_neighbors.codes import cells_of, quantise, quantise_both
from fastcluster_lm.kernels.nearest_neighbors.contraction import contracting_axes, in_codes
from fastcluster_lm.scores.neighbors import nearest_neighbors

pytestmark = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])
N, WIDTH, CLASSES, K = 1200, 256, 12, 30
# of 150 groups of eight rows, every sixteenth
TRIED = 80


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
    if kind == "clumps":
        # so far apart that neither codes nor float32 products see more than two points
        return noise + 1e4 * (torch.arange(N) % 2)[:, None]
    if kind == "on the edge":
        # a class lies half-way between two codes in all coordinates: codes bring its points as far apart as they can
        halves = torch.randint(-3, 3, (CLASSES // 2, WIDTH), generator=generator)[labels[: N // 2] // 2] + 0.5
        halves = halves + noise[: N // 2] * 0.01
        halves[:, 0] = 127
        return torch.cat([halves, -halves])
    assert kind == "far off"
    return centres[labels] * 1e-3 + 40 + noise * 1e-4


KINDS = ("blobs", "noise", "flat", "coinciding", "far off", "clumps", "on the edge")


@pytest.fixture
def use_vnni() -> Iterator[Callable[[bool], None]]:
    """Let codes be multiplied by VNNI, where this processor has it, or without."""
    library = native.library(codes.SOURCE)

    def use(on: bool) -> None:
        if library.use_vnni(on) != on:
            pytest.skip("this processor has no VNNI, or the kernels' level does not look for it")

    yield use
    library.use_vnni(True)


def distances_within(X: torch.Tensor) -> torch.Tensor:
    return torch.cdist(X.double(), X.double(), compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_coordinates_bring_no_points_farther_apart(kind: str) -> None:
    X = points(kind)
    X = X - X.mean(0)
    origin = torch.zeros(WIDTH)
    asked, among = quantise_both(X, origin)
    axes = contracting_axes(cells_of(X, origin, among).means(asked))
    assert axes.shape[1] < WIDTH
    before = distances_within(X)
    after = distances_within(X @ axes)
    assert bool((after <= before + 1e-5 * before.amax()).all())
    # and not much nearer than must be where a few directions hold nearly all
    if kind == "flat":
        assert float((after / before).nanmean()) > 0.9
    # those of the codes' points along the axes' codes, which are other points and other axes
    coded = in_codes(axes)
    assert 1 < coded.shrink < 1.02
    after, before = distances_within(coded.coordinates(asked)), distances_within(asked.decoded())
    assert bool((after <= before + 1e-5 * before.amax()).all())


@pytest.mark.parametrize("bank", [True, False])
@pytest.mark.parametrize("n, width", [(1, 1), (8, 65), (13, 70), (101, 256), (3, 2048)])
def test_points_lie_within_the_error_of_their_codes(n: int, width: int, bank: bool) -> None:
    generator = torch.Generator().manual_seed(width)
    offset = torch.randn(width, generator=generator) * 10
    X = torch.randn(n, width, generator=generator) * torch.rand(n, 1, generator=generator) + offset
    X[0] = offset
    if n > 2:
        # one coordinate that leaves no levels for the others, and a point that float32 has no inverse for
        X[1, 0] += 1e4
        X[2], offset[:] = 0, 0
        X[2, -1] = 1e-38
    found = quantise(X, offset, bank=bank)
    decoded = found.decoded()[:n, :width].double()
    apart = (X.double() - offset.double() - decoded).norm(dim=1)
    assert bool((apart <= found.errors[:n]).all())
    # not by much: an eight-bit code of one coordinate in a hundred
    typical = (X.double() - offset.double()).abs().amax(1) * width**0.5 * (1 / 63 if bank else 1 / 127)
    assert bool((found.errors[:n] <= typical + 1e-5 * X.norm(dim=1) + 1e-36).all())
    torch.testing.assert_close(found.squares[:n].double(), decoded.square().sum(1), rtol=1e-6, atol=1e-30)
    if bank:
        assert bool((found.squares[n:] == torch.inf).all()) and not found.errors[n:].any()
    else:
        assert torch.equal(found.sums, found.codes.sum(1, dtype=torch.int32))


@pytest.mark.parametrize("vnni", [True, False])
def test_the_largest_products_of_codes_do_not_overflow(vnni: bool, use_vnni: Callable[[bool], None]) -> None:
    use_vnni(vnni)
    # all codes at their ends, with and without sign, at a width of no whole vectors
    X = torch.ones(5, 4099)
    X[1], X[2, ::2] = -1, -1
    asked, among = (quantise(X, torch.zeros(4099), bank=bank) for bank in (False, True))
    torch.testing.assert_close(codes.coordinates_along(asked, among, 5), X @ X.mT, rtol=1e-5, atol=1e-2)


def test_points_near_each_other_come_together() -> None:
    labels = torch.randint(CLASSES, (N,), generator=torch.Generator().manual_seed(0))
    X, origin = points("blobs"), torch.zeros(WIDTH)
    order = cells_of(X, origin, quantise(X, origin, bank=True)).order()
    assert order.sort().values.equal(torch.arange(N))
    # five points of a class are pivots, and follow each other in the chain
    assert int((labels[order].diff() != 0).sum()) == CLASSES - 1


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


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_depends_on_what_the_processor_multiplies_codes_by(kind: str, use_vnni: Callable[[bool], None]) -> None:
    X = points(kind)
    found = []
    for vnni in (True, False):
        use_vnni(vnni)
        # with it the codes are finer, so that other points are looked at
        assert native.library(codes.SOURCE).bank_offset() == (128 if vnni else 64)
        found.append(nearest_neighbors(X[None], X[None], K, exclude_self=True, engine="fused"))
    assert all(torch.equal(*parts) for parts in zip(*found, strict=True))


def count_rows(X: torch.Tensor) -> dict[str, int]:
    """Say of how many rows codes of few coordinates, of all, and a matmul were looked at."""
    rows = {"few": 0, "codes": 0, "matmul": 0}
    by_codes, by_products = wide._Search._settle_by_codes, wide._Search._by_products

    def counted(search, which, queries, *rest) -> None:
        rows["codes" if queries.stride == WIDTH else "few"] += len(which)
        by_codes(search, which, queries, *rest)

    def multiplied(search, which) -> None:
        rows["matmul"] += len(which)
        by_products(search, which)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wide._Search, "_settle_by_codes", counted)
        patch.setattr(wide._Search, "_by_products", multiplied)
        nearest_neighbors(X[None], X[None], K, exclude_self=True, engine="fused")
    return rows


def test_looks_settle_rows_whose_neighbours_stand_out() -> None:
    assert count_rows(points("blobs")) == {"few": 0, "codes": N, "matmul": 0}
    assert count_rows(points("noise")) == {"few": 0, "codes": N, "matmul": 0}


def test_a_look_at_fewer_coordinates_comes_first_where_points_are_many_and_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contraction, "LEAST_WIDTH", WIDTH)
    monkeypatch.setattr(contraction, "LEAST_POINTS", N)
    found = count_rows(points("flat"))
    assert found == {"few": N, "codes": 0, "matmul": 0}
    # blobs of a hundred points, of which 30 are asked for
    found = count_rows(points("blobs"))
    assert found["few"] == N and 0 < found["codes"] < N / 10 and found["matmul"] == 0
    # all as far as all others: few coordinates rule nothing out, which few rows tell
    found = count_rows(points("noise"))
    assert found == {"few": TRIED, "codes": N, "matmul": 0}


def test_where_codes_lose_too_much_a_matmul_settles() -> None:
    assert count_rows(points("clumps")) == {"few": 0, "codes": TRIED, "matmul": N}


def test_codes_of_few_coordinates_know_what_the_points_own_codes_lost() -> None:
    X, other = points("blobs"), points("blobs", seed=1)
    results = (torch.empty(N, K), torch.empty(N, K, dtype=torch.int64))
    for own in (True, False):
        layer = wide.Layer(X, X if own else other, torch.zeros(WIDTH), None, None, *results)
        search = wide._Search(native.library(codes.SOURCE), layer, 2**20)
        asked, among = search._codes(layer.queries, layer.bank, layer.offset)
        order, *few = search._contracted(asked, among)
        of_bank = quantise(layer.bank, layer.offset, bank=False)
        for found, before in zip(few, (asked, of_bank), strict=True):
            assert bool((found.errors[:N] > before.errors).all())
        assert order.sort().values.equal(torch.arange(N))


@pytest.mark.parametrize("n, width", [(1, 1), (13, 70), (64, 256)])
def test_codes_of_both_kinds_are_those_of_each(n: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    X, offset = torch.randn(n, width, generator=generator), torch.randn(width, generator=generator)
    for found, bank in zip(quantise_both(X, offset), (False, True), strict=True):
        for part, alone in zip(found, quantise(X, offset, bank=bank), strict=True):
            # beyond the coordinates, up to whole quads, is what no product sees
            assert torch.equal(part, alone)


@pytest.mark.parametrize("coordinates", [WIDTH, 100])
def test_cells_and_their_means(coordinates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "CELL_WIDTH", coordinates)
    X, origin = points("blobs"), torch.zeros(WIDTH)
    asked, among = quantise_both(X, origin)
    cells = cells_of(X, origin, among)
    pivots = X[torch.linspace(0, N - 1, len(cells.ranks)).long()]
    # codes may tell two pivots that are nearly as far the other way round
    apart = torch.cdist(X[:, :coordinates], pivots[:, :coordinates])
    chosen = apart.gather(1, cells.places[:, None])[:, 0]
    # a pivot has scales of its own where it is cut
    assert bool((chosen <= apart.amin(1) + 3 * (asked.errors.max() + among.errors.max())).all())
    found = cells.means(asked)
    for cell in range(len(cells.ranks)):
        own = asked.decoded()[cells.places == cell]
        torch.testing.assert_close(found[cell], own.sum(0) / max(1, len(own)) ** 0.5, rtol=1e-4, atol=1e-3)


def test_few_points_or_coordinates_get_no_first_look() -> None:
    assert contraction.pays(5000, 5000, 2048, 98)
    assert not contraction.pays(5000, 5000, 768, 98)
    assert not contraction.pays(2000, 5000, 2048, 98) and not contraction.pays(5000, 2000, 2048, 98)
    assert not contraction.pays(5000, 5000, 2048, 700)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    X = points("blobs")
    whole = nearest_neighbors(X[None], X[None], K, exclude_self=True, engine="fused")
    monkeypatch.setattr(wide, "BLOCK_BYTES", 4 * N * 7)
    tiled = nearest_neighbors(X[None], X[None], K, exclude_self=True, engine="fused")
    assert torch.equal(whole.indices, tiled.indices) and torch.equal(whole.distances, tiled.distances)
