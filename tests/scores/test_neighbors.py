"""nearest_neighbors against float64 truth: offsets, duplicates, ties, ids, tiles, and both engines."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.nearest_neighbors import op, tiled
from fastcluster_lm.scores.engines import _fused_neighbors as fused
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import NeighborsParams
from fastcluster_lm.scores.neighbors import nearest_neighbors
from tests.scores.engines import ON_CPU


@pytest.fixture(autouse=True, params=["as here", "in torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take each test through the compiled kernel, where there is one, and through torch, as a GPU goes."""
    if request.param == "in torch":
        monkeypatch.setattr(op, "library", lambda source: None)


def true_distances(queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    apart = queries.double()[..., :, None, :] - bank.double()[..., None, :, :]
    return apart.square().sum(-1).sqrt()


def assert_nearest(queries: torch.Tensor, bank: torch.Tensor, indices: torch.Tensor, forbidden=None) -> None:
    """Every neighbour lies within the true k-th distance x (1 + 1e-5), rank by rank, and no point comes twice."""
    truth = true_distances(queries, bank)
    if forbidden is not None:
        truth = truth.masked_fill(forbidden, torch.inf)
    best = truth.sort(dim=-1).values[..., : indices.shape[-1]]
    assert (truth.gather(-1, indices) <= best * (1 + 1e-5)).all()
    ordered = indices.sort(-1).values
    assert (ordered[..., 1:] != ordered[..., :-1]).all()


def assert_ties_to_lower(indices: torch.Tensor, distances: torch.Tensor) -> None:
    equal = distances[..., 1:] == distances[..., :-1]
    assert (indices[..., 1:] > indices[..., :-1])[equal].all()


@pytest.mark.parametrize("width", [1, 2, 31, 64])
@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("n_queries, n_bank", [(1, 11), (97, 211)])
def test_returns_nearest_whatever_offset_and_size(n_queries: int, n_bank: int, mean: float, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    queries = torch.randn(2, n_queries, width, generator=generator) + mean
    bank = torch.randn(2, n_bank, width, generator=generator) + mean
    found = nearest_neighbors(queries, bank, 7)
    assert_nearest(queries, bank, found.indices)
    assert_ties_to_lower(found.indices, found.distances)
    truth = true_distances(queries, bank).gather(-1, found.indices)
    torch.testing.assert_close(found.distances.double(), truth, rtol=1e-5, atol=1e-7 * max(mean, 1))


@pytest.mark.parametrize("engine", ON_CPU)
def test_each_layer_has_its_own_offset_and_units(engine: str) -> None:
    generator = torch.Generator().manual_seed(0)
    units, offset = torch.tensor([1.0, 1e-3, 1e4])[:, None, None], torch.tensor([1e3, 0.0, 1e6])[:, None, None]
    queries = torch.randn(3, 40, 5, generator=generator) * units + offset
    bank = torch.randn(3, 120, 5, generator=generator) * units + offset
    found = nearest_neighbors(queries, bank, 4, engine=engine)
    assert_nearest(queries, bank, found.indices)
    truth = true_distances(queries, bank).gather(-1, found.indices)
    torch.testing.assert_close(found.distances.double(), truth, rtol=1e-4, atol=0)


def test_reference_centres_what_faiss_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    # faiss turns to a matmul, which needs centred points, for many queries; here for few
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 1)
    X = torch.randn(1, 300, 8, generator=torch.Generator().manual_seed(0)) + 1e4
    assert_nearest(X, X, nearest_neighbors(X, X, 4, engine="reference").indices)


def test_two_tight_far_clusters_defeat_the_matmul_but_not_us() -> None:
    # at distance 1e4 from the mean a float32 matmul cannot tell points that lie 1e-3 apart
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(400, 8, generator=generator, dtype=torch.float64) * 1e-3
    X[:200] += 1e4
    X = X.float()[None]
    found = nearest_neighbors(X, X, 5, exclude_self=True)
    itself = torch.eye(400, dtype=torch.bool)
    assert_nearest(X, X, found.indices, itself)


@pytest.mark.parametrize("n_distinct", [1, 8, 50])
def test_ties_go_to_the_lower_index_however_many(n_distinct: int) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(n_distinct, 16, generator=generator) + 100
    pick = torch.randint(n_distinct, (300,), generator=generator)
    X = points[pick]
    found = nearest_neighbors(X, X, 6, exclude_self=True)
    for query in range(300):
        same = (pick == pick[query]).nonzero().flatten()
        expected = same[same != query][:6]
        assert found.indices[query, : len(expected)].tolist() == expected.tolist()


def test_points_that_are_all_zero_are_ties_too() -> None:
    # nothing to round: the matmul's floor is exactly the distance, 0
    X = torch.zeros(2, 301, 4)
    found = nearest_neighbors(X, X, 6, exclude_self=True)
    for query in (0, 3, 150, 300):
        assert found.indices[0, query].tolist() == [index for index in range(7) if index != query][:6]
    assert torch.equal(found.indices[0], found.indices[1])


def test_ids_of_a_layer_forbid_points_of_that_layer_among_ties() -> None:
    # whole groups of equal points, so that every row is searched in full
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(2, 5, 6, generator=generator)[:, torch.arange(200) % 5]
    ids = torch.randint(8, (2, 200), generator=generator)
    found = choose_engine("auto", "cpu").neighbors(X, X, NeighborsParams(4, ids, ids))
    forbidden = ids[:, :, None] == ids[:, None, :]
    assert not forbidden.gather(-1, found.indices).any()
    assert_nearest(X, X, found.indices, forbidden)
    assert_ties_to_lower(found.indices, found.distances)


@pytest.mark.parametrize("width", [3, 80])
def test_identities_beyond_32_bits_are_told_apart(width: int) -> None:
    X = torch.randn(2, 60, width, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(60) * 2**32
    engine = choose_engine("auto", "cpu")
    expected = engine.neighbors(X, X, NeighborsParams(40, torch.arange(60), torch.arange(60)))
    for bank_ids in (ids, ids.clone()):
        found = engine.neighbors(X, X, NeighborsParams(40, ids, bank_ids))
        assert torch.equal(found.indices, expected.indices)


def test_the_query_with_fewest_admissible_points_decides() -> None:
    X = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))
    query_ids, bank_ids = torch.tensor([5] * 11 + [7]), torch.tensor([7] * 9 + [1, 2, 3])
    for own, others in ((query_ids, bank_ids), (query_ids.expand(2, -1), bank_ids.expand(2, -1))):
        assert choose_engine("auto", "cpu").neighbors(X, X, NeighborsParams(3, own, others)).indices.shape[-1] == 3
        with pytest.raises(DataError, match="only 3 admissible points of 12"):
            choose_engine("auto", "cpu").neighbors(X, X, NeighborsParams(4, own, others))


def test_forbidden_points_that_are_nearest_leave_the_few_admissible_ones() -> None:
    # 5 points of 100 are admissible and far, fewer than the candidates that the matmul proposes
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(1, 20, 3, generator=generator), torch.randn(1, 100, 3, generator=generator)
    bank[0, ::20] += 50
    bank_ids = (torch.arange(100) % 20 == 0).long()
    query_ids = torch.zeros(20, dtype=torch.int64)
    found = choose_engine("auto", "cpu").neighbors(queries, bank, NeighborsParams(2, query_ids, bank_ids))
    assert_nearest(queries, bank, found.indices, query_ids[:, None] == bank_ids)


def test_ties_are_settled_in_every_block_of_doubtful_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    X = points[torch.arange(200) % 4][None]
    whole = nearest_neighbors(X, X, 5, exclude_self=True)
    monkeypatch.setattr(fused, "MEMORY_BUDGET", 4 * 200 * 7)
    assert torch.equal(nearest_neighbors(X, X, 5, exclude_self=True).indices, whole.indices)


def test_float64_points_that_float32_could_not_tell_apart() -> None:
    X = torch.randn(1, 120, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-3 + 1e5
    assert_nearest(X, X, nearest_neighbors(X, X, 4).indices)


def test_candidates_and_full_search_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randint(0, 3, (2, 301, 5), generator=generator).float()
    candidates = nearest_neighbors(X, X, 9)
    assert torch.equal(candidates.indices, tiled.search_full(X, X, None, 9)[1])


def test_tiles_do_not_change_the_result() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(3, 203, 8, generator=generator)
    ids = torch.arange(203) // 2
    params = NeighborsParams(5, ids, ids)
    whole, tiled = fused.find_neighbors(X, X, params), fused.find_neighbors(X, X, params, memory_budget=3 * 8 * 13 * 60)
    assert torch.equal(whole.indices, tiled.indices)


@pytest.mark.parametrize("engine", ON_CPU)
@pytest.mark.parametrize("per_layer", [False, True])
def test_ids_forbid_points(engine: str, per_layer: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(2, 40, 6, generator=generator), torch.randn(2, 150, 6, generator=generator)
    shape = (2,) if per_layer else ()
    query_ids = torch.randint(10, (*shape, 40), generator=generator)
    bank_ids = torch.randint(10, (*shape, 150), generator=generator)
    found = choose_engine(engine, "cpu").neighbors(queries, bank, NeighborsParams(12, query_ids, bank_ids))
    forbidden = query_ids[..., :, None] == bank_ids[..., None, :]
    assert not forbidden.expand(2, -1, -1).gather(-1, found.indices).any()
    assert_nearest(queries, bank, found.indices, forbidden)


def test_too_few_admissible_points_are_refused() -> None:
    X, ids = torch.randn(1, 10, 3), torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 5, 6])
    engine = choose_engine("auto", "cpu")
    assert engine.neighbors(X, X, NeighborsParams(6, ids, ids)).indices.shape == (1, 10, 6)
    with pytest.raises(DataError, match="only 6 admissible points of 10"):
        engine.neighbors(X, X, NeighborsParams(7, ids, ids))
    with pytest.raises(DataError, match="only 9 admissible"):
        nearest_neighbors(X, X, 10, exclude_self=True)
    with pytest.raises(DataError, match="n_neighbors is 0"):
        nearest_neighbors(X, X, 0)


def test_unfit_arrays_are_refused_with_both_shapes() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 5, 3\), bank \(1, 5, 4\)"):
        nearest_neighbors(torch.zeros(5, 3), torch.zeros(5, 4), 1)
    with pytest.raises(ShapeError, match=r"\(5, 3\), bank \(6, 3\); exclude_self"):
        nearest_neighbors(torch.zeros(5, 3), torch.zeros(6, 3), 1, exclude_self=True)
    with pytest.raises(ShapeError, match="layers must match"):
        nearest_neighbors(torch.zeros(5, 3), torch.zeros(1, 6, 3), 1)
    broken = torch.zeros(3, 5, 2)
    broken[1, 0, 0] = torch.nan
    with pytest.raises(DataError, match="bank holds NaN or infinity in layer 1"):
        nearest_neighbors(torch.zeros(3, 5, 2), broken, 1)


def test_numpy_and_single_layer_agree_with_the_batch() -> None:
    X = np.random.default_rng(0).normal(size=(3, 60, 4)) + 1e3
    batch = nearest_neighbors(X, X, 5, exclude_self=True)
    assert isinstance(batch.indices, np.ndarray) and batch.distances.dtype == np.float32
    for layer in range(3):
        single = nearest_neighbors(torch.from_numpy(X[layer]), torch.from_numpy(X[layer]), 5, exclude_self=True)
        np.testing.assert_array_equal(single.indices.numpy(), batch.indices[layer])


def test_huge_and_tiny_units_do_not_overflow() -> None:
    X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    plain = nearest_neighbors(X, X, 3)
    for exponent in (-80, 100):
        scaled = nearest_neighbors(X * 2.0**exponent, X * 2.0**exponent, 3)
        assert torch.equal(scaled.indices, plain.indices)
        torch.testing.assert_close(scaled.distances, plain.distances * 2.0**exponent)


def test_queries_in_far_larger_units_than_the_bank_do_not_overflow() -> None:
    bank = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    queries = bank[:9] * 2.0**80
    found = nearest_neighbors(queries, bank, 3)
    assert_nearest(queries, bank, found.indices)
    # seen from there, the bank is one point at the origin
    torch.testing.assert_close(found.distances.double(), queries.double().norm(dim=-1, keepdim=True).expand(-1, 3))


def test_a_lower_matmul_precision_is_lifted_and_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with fused.full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_empty_queries_give_empty_results() -> None:
    for engine in ON_CPU:
        found = nearest_neighbors(torch.zeros(2, 0, 3), torch.randn(2, 5, 3), 2, engine=engine)
        assert found.indices.shape == (2, 0, 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 90), st.integers(1, 6), st.sampled_from([0.0, 0.5, 2.0]), st.booleans())
def test_agrees_with_float64_on_any_small_grid(seed: int, n: int, width: int, spread: float, coarse: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(1, n, width, generator=generator) * spread
    X = X.round() if coarse else X
    k = min(n, 4)
    found = nearest_neighbors(X, X, k)
    assert_nearest(X, X, found.indices)
    assert_ties_to_lower(found.indices, found.distances)


@pytest.mark.parametrize("shared", [True, False])
def test_large_inputs_taken_a_layer_at_a_time_give_the_same(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    bank = torch.randn(3, 40, 70, generator=draw)
    queries = bank if shared else torch.randn(3, 40, 70, generator=draw)
    ids = torch.randint(30, (3, 40), generator=draw)
    for params in (NeighborsParams(4), NeighborsParams(4, ids, ids), NeighborsParams(4, ids[0], ids[0])):
        whole = fused.find_neighbors(queries, bank, params)
        monkeypatch.setattr(fused, "WHOLE_BYTES", 100)
        layered = fused.find_neighbors(queries, bank, params, memory_budget=2000)
        monkeypatch.undo()
        assert torch.equal(whole.indices, layered.indices)
        torch.testing.assert_close(whole.distances, layered.distances, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "n, k", [(9, 8), (27, 5), (17, 16), (60, 17), (60, 59), (130, 9), (130, 40), (300, 16), (300, 90), (300, 140)]
)
@pytest.mark.parametrize("kind", ["spread", "clumps", "one far away", "all equal"])
def test_neighbours_of_few_points_are_in_order(n: int, k: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(n)
    X = torch.randn(2, n, 3, generator=generator)
    if kind == "clumps":
        X = (X * 2).round() + torch.randn(2, n, 3, generator=generator) * 1e-4 * (torch.arange(n) % 3 > 0)[:, None]
    if kind == "one far away":
        # all the others fall into one bucket
        X[:, n // 2] += 1e6
    if kind == "all equal":
        X = torch.ones_like(X)
    ids = torch.arange(n)
    found = nearest_neighbors(X, X, k, exclude_self=True)
    assert_nearest(X, X, found.indices, torch.eye(n, dtype=torch.bool)[None].expand(2, -1, -1))
    assert (found.distances.diff(dim=-1) >= 0).all()
    assert_ties_to_lower(found.indices, found.distances)
    # as many as may be, where half of the bank is barred
    if 2 * k < n:
        barred = choose_engine("fused", "cpu").neighbors(X, X, NeighborsParams(k, ids % 2, ids % 2)).indices
        assert ((barred % 2) != (ids % 2)[None, :, None]).all()
        assert_nearest(X, X, barred, (ids[:, None] % 2 == ids % 2)[None].expand(2, -1, -1))


@pytest.mark.parametrize("n_bank", [9, 40, 300])
def test_points_of_one_distance_are_ties_though_their_squares_differ(n_bank: int) -> None:
    # squares a unit in the last place apart, most of whose roots are equal in pairs; the lower index has the larger one
    steps = torch.arange(n_bank, dtype=torch.float64).flip(0) % 23
    bank = torch.stack([torch.full((n_bank,), 1.5, dtype=torch.float64), steps.sqrt() * 2.0**-11], 1).float()[None]
    query = torch.zeros(1, 1, 2)
    whole = nearest_neighbors(query, bank, n_bank)
    assert_ties_to_lower(whole.indices, whole.distances)
    for k in range(1, n_bank):
        found = nearest_neighbors(query, bank, k)
        assert torch.equal(found.indices, whole.indices[..., :k])


@pytest.mark.parametrize("width", [3, 70])
@pytest.mark.parametrize("unit", [1.0, 1e-12])
@pytest.mark.parametrize("shared", [False, True])
def test_neighbours_under_each_are_those_under_one_after_the_other(width: int, unit: float, shared: bool) -> None:
    draw = torch.Generator().manual_seed(width)
    bank = torch.randn(3, 50, width, generator=draw) * unit
    queries = bank if shared else torch.randn(3, 21, width, generator=draw) * unit
    n = queries.shape[1]
    layers = (torch.randint(9, (3, n), generator=draw), torch.randint(9, (3, 50), generator=draw))
    # identities that 32 bits do not hold, equal to each other in the lower 32
    huge = tuple(ids[0] * 2**33 for ids in layers)
    params = [NeighborsParams(4), NeighborsParams(4, *layers), NeighborsParams(4, *huge), NeighborsParams(4, *layers)]
    for engine in ON_CPU:
        chosen = choose_engine(engine, "cpu")
        # no more sets than there are, one alone, and numbers of neighbours that differ
        for asked in (params, params[:1], [NeighborsParams(3, *layers), NeighborsParams(20)]):
            found = chosen.neighbors_under_each(queries, bank, asked)
            assert len(found) == len(asked)
            for one, alone in zip(found, asked, strict=True):
                expected = chosen.neighbors(queries, bank, alone)
                assert torch.equal(one.indices, expected.indices)
                assert torch.equal(one.distances, expected.distances)
    with pytest.raises(DataError, match="admissible points of 50"):
        chosen = choose_engine("fused", "cpu")
        chosen.neighbors_under_each(queries, bank, [NeighborsParams(50), NeighborsParams(50, *layers)])


@pytest.mark.parametrize("k", [1, 5, 8, 9, 16, 17])
@pytest.mark.parametrize("n", [30, 301, 700])
def test_equal_distances_under_each_go_to_the_lower_index(k: int, n: int) -> None:
    # two layers: of many points at few places, and of points that hardly any is as near as
    draw = torch.Generator().manual_seed(n)
    few, many = torch.randint(-1, 2, (n, 3), generator=draw).float(), torch.randn(n, 3, generator=draw)
    bank = torch.stack([few, many])
    # all but the point itself, the last 18 alone, those that share no third
    own, last = torch.arange(n), (torch.arange(n) >= n - 18).long()
    asked = [NeighborsParams(k, own, own), NeighborsParams(k, own * 0, last), NeighborsParams(k, own % 3, own % 3)]
    engine = choose_engine("fused", "cpu")
    for one, params in zip(engine.neighbors_under_each(bank, bank.clone(), asked), asked, strict=True):
        expected = engine.neighbors(bank, bank.clone(), params)
        assert torch.equal(one.indices, expected.indices) and torch.equal(one.distances, expected.distances)


@pytest.mark.parametrize("n, width", [(9, 8), (64, 33), (131, 8), (1030, 8)])
@pytest.mark.parametrize("threads", [1, 2, 9])
def test_points_compared_in_pairs_have_the_neighbours_of_points_beside_a_copy(n, width, threads, monkeypatch) -> None:
    monkeypatch.setattr(native, "_threads", threads)
    generator = torch.Generator().manual_seed(n)
    X, others = (torch.randn(5, n, width, generator=generator).round(decimals=1) for _ in range(2))
    engine = choose_engine("fused", "cpu")
    for k in (4, n // 2):
        for params in (NeighborsParams(k), NeighborsParams(k, torch.arange(n), torch.arange(n))):
            pairs, copied = engine.neighbors(X, X, params), engine.neighbors(X, X.clone(), params)
            assert torch.equal(pairs.indices, copied.indices) and torch.equal(pairs.distances, copied.distances)
        # as many other points are not compared as if they were the bank's own
        found = engine.neighbors(others, X, NeighborsParams(k)).distances
        expected = torch.cdist(others.double(), X.double()).sort(-1).values[..., :k]
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_distances_that_are_equal_once_rounded_are_ties_under_each_too() -> None:
    # squares are whole numbers that float32 holds, 1 apart: two points differ in them and not in their roots
    side = torch.arange(4096.0)
    squares = (side[3500:, None] ** 2 + side[:2000] ** 2).flatten()
    squares, order = squares[squares < 2**24].sort()[0], (squares >= 2**24).float().mul(2**30).add(squares).argsort()
    roots = squares.double().sqrt().float()
    at = int(((squares[1:] - squares[:-1] == 1) & (roots[1:] == roots[:-1])).nonzero()[-1])
    pair = torch.stack([order[[at + 1, at]] // 2000 + 3500, order[[at + 1, at]] % 2000], -1).float()
    assert pair.square().sum(-1).tolist() == [float(squares[at]) + 1, float(squares[at])]
    # the farther one comes first
    bank = torch.cat([pair, torch.full((20, 2), 4095.0)])[None]
    asked = [NeighborsParams(1), NeighborsParams(1, torch.zeros(1).long(), torch.ones(22).long())]
    for found in choose_engine("fused", "cpu").neighbors_under_each(torch.zeros(1, 1, 2), bank, asked):
        assert found.indices.tolist() == [[[0]]]


def test_a_distance_halfway_between_two_numbers_of_float32_stands_where_it_is_rounded_to() -> None:
    # distances from 0: 2^24 + 2, exactly; 2^24 + 1, which float32 rounds to 2^24; and one that calls for float64
    bank = torch.tensor([[2.0**24 + 2, 0], [65 * 172961, 72 * 172961], [2.0**-30, 0]])
    assert bank[1].double().square().sum().sqrt() == 2**24 + 1
    found = nearest_neighbors(torch.zeros(1, 1, 2), bank[None], 3)
    assert found.indices.tolist() == [[[2, 1, 0]]]
    assert found.distances.tolist() == [[[2.0**-30, 2.0**24, 2.0**24 + 2]]]
