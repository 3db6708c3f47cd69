"""What the four verbs take and what they refuse, by the name of the parameter; what they answer is tested elsewhere."""

import json
import math
import warnings

import numpy as np
import pytest
import torch

from fastcluster_lm import FclmError, kmeans, nearest_neighbors, score_clusters, tsne
from fastcluster_lm.errors import DataError, EngineError, ShapeError, UsageError
from fastcluster_lm.kernels import native as kernels
from fastcluster_lm.kernels.nearest_neighbors import Search, op
from tests.scores.engines import ON_CPU

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
LABELS = np.arange(40) % 4

POINTS = {
    "queries": lambda points, **options: nearest_neighbors(points, X, 3, **options),
    "bank": lambda points, **options: nearest_neighbors(X, points, 3, **options),
    "X": lambda points, **options: kmeans(points, 3, n_init=1, **options),
    "X of tsne": lambda points, **options: tsne(points, n_iter=10, perplexity=5, **options),
    "X of score_clusters": lambda points, **options: score_clusters(points, LABELS, n_init=1, perplexity=5, **options),
    "bank of score_clusters": lambda points, **options: score_clusters(
        X, LABELS, bank=points, bank_labels=LABELS, n_init=1, perplexity=5, **options
    ),
    "init": lambda points, **options: kmeans(X, 40, n_init=1, init=points, **options),
    "init of tsne": lambda points, **options: tsne(X[:, :2], n_iter=10, perplexity=5, init=points[:, :2], **options),
}
TAKEN = {name: verb for name, verb in POINTS.items() if name != "init of tsne"}


def values(answer):
    if isinstance(answer, list):
        return [[row[name] for name in sorted(row) if name != "engine"] for row in answer]
    return [np.asarray(part) for part in answer]


def same(one, other):
    if isinstance(one, list) and one and isinstance(one[0], list):
        return one == other
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(params=["1", "0"], ids=["compiled", "in torch"])
def native(request, monkeypatch):
    # kernels that are loaded stay so whatever the environment says
    kernels.prepare()
    monkeypatch.setattr(kernels, "_kernels", kernels._kernels)
    if request.param == "0":
        kernels.turn_off("this test is of torch code")
    assert request.param == "1" or not kernels.compiled()


@pytest.mark.parametrize("engine", ON_CPU)
@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("size", [2e38, 3.4e38, 1e100])
def test_points_too_far_for_float32_are_refused(native, name, size, engine):
    points = X.double() * size
    points = points if size == 1e100 else points.clamp(-size, size).float()
    expected = rf"{name.split()[0]} (reaches|holds NaN or infinity)"
    with pytest.raises(DataError, match=expected):
        TAKEN[name](points, engine=engine)


@pytest.mark.parametrize("engine", ON_CPU)
@pytest.mark.parametrize("size", [1e20, 1e30, 9e37])
def test_one_far_coordinate_leaves_a_map_neighbours_and_clusters(native, engine, size):
    far = X.clone()
    far[7, 1] = size
    answers = [nearest_neighbors(far, far, 3, exclude_self=True, engine=engine), kmeans(far, 3, engine=engine)]
    for answer in (*answers, tsne(far, n_iter=50, perplexity=5, engine=engine)):
        assert all(bool(torch.isfinite(part).all()) for part in answer)
    assert int(answers[0].indices.min()) >= 0 and int(answers[0].indices.max()) < 40
    if engine == "fused":
        # those beside it are told apart as before
        others = [i for i in range(40) if i != 7]
        near = nearest_neighbors(X[others], X[others], 3, exclude_self=True).indices
        expected = torch.tensor(others)[near]
        assert torch.equal(answers[0].indices[others], expected)


def test_points_nearer_than_float32_can_square_are_told_apart(native):
    line = torch.tensor([0, 1e-25, 3e-25, 7e-25, 1, 5])[:, None]
    found = nearest_neighbors(line, line, 2, exclude_self=True)
    assert found.indices.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1], [0, 1], [4, 0]]
    torch.testing.assert_close(found.distances[0], torch.tensor([1e-25, 3e-25]), rtol=1e-6, atol=0)


def test_the_second_look_keeps_the_order_of_distances_however_far_apart():
    line = torch.tensor([0, 1e-40, 1e-35, 1e-30, 1, 1e30, 1e34])[:, None]
    found = nearest_neighbors(line, line, 6, exclude_self=True)
    assert found.indices[0].tolist() == [1, 2, 3, 4, 5, 6] and bool((found.distances.diff(dim=1) >= 0).all())


@pytest.mark.parametrize("engine", ON_CPU)
def test_queries_far_smaller_than_one_are_as_far_as_they_are_from_a_bank_at_the_origin(engine):
    found = nearest_neighbors(X * 1e-38, torch.zeros(30, 3), 2, engine=engine)
    expected = (X.double() * 1e-38).norm(dim=1, keepdim=True).expand(-1, 2)
    torch.testing.assert_close(found.distances.double(), expected, rtol=1e-4, atol=1e-43)


@pytest.mark.parametrize("width", [3, 33, 70])
def test_a_map_of_coordinates_very_far_apart_is_finite(native, width):
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        points = torch.randn(34, width, generator=generator)
        points *= 10 ** torch.empty(1, width).uniform_(-40, 33, generator=generator)
        assert bool(tsne(points, n_iter=5, perplexity=5).points.isfinite().all())


@pytest.mark.parametrize("engine", ON_CPU)
@pytest.mark.parametrize("other", [torch.float64, torch.int32, torch.bfloat16, torch.bool, torch.uint8])
def test_queries_and_bank_of_unlike_numbers_are_promoted_once(native, engine, other):
    bank = (X * 3).to(other)
    for one, two in ((X, bank), (bank, X)):
        found = nearest_neighbors(one, two, 3, engine=engine)
        exact = torch.cdist(one.double(), two.double()).sort(dim=1).values[:, :3]
        torch.testing.assert_close(found.distances.double(), exact, rtol=1e-3, atol=1e-3)
    rows = score_clusters(X, LABELS, bank=bank, bank_labels=LABELS, n_init=1, perplexity=5, engine=engine)
    assert all(math.isfinite(row["knn_share"]) for row in rows)


@pytest.mark.parametrize("engine", ON_CPU)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_points_are_centred_as_what_they_are(native, engine, half):
    points = (X + 20).to(half)
    found, expected = (kmeans(x, 4, engine=engine) for x in (points, points.float()))
    assert torch.equal(found.inertia, expected.inertia) and torch.equal(found.centroids, expected.centroids)
    own = points.double() - found.centroids.double()[found.labels]
    assert float(found.inertia) == pytest.approx(float(own.square().sum()), rel=1e-5)


COUNTS = {
    "n_neighbors": lambda value: nearest_neighbors(X, X, value),
    "n_clusters": lambda value: kmeans(X, value),
    "n_init": lambda value: kmeans(X, 3, n_init=value),
    "seed": lambda value: kmeans(X, 3, n_init=1, seed=value),
    "n_iter": lambda value: tsne(X, n_iter=value, perplexity=5),
    "seed of tsne": lambda value: tsne(X, n_iter=5, perplexity=5, seed=value),
    "n_neighbors of score_clusters": lambda value: score_clusters(X, LABELS, spaces=["hidden"], n_neighbors=value),
    "n_clusters of score_clusters": lambda value: score_clusters(X, LABELS, spaces=["hidden"], n_clusters=value),
    "n_init of score_clusters": lambda value: score_clusters(X, LABELS, spaces=["hidden"], n_init=value),
    "n_nulls of score_clusters": lambda value: score_clusters(X, LABELS, spaces=["hidden"], n_nulls=value),
    "seed of score_clusters": lambda value: score_clusters(X, LABELS, spaces=["hidden"], seed=value),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_seeds_are_whole_numbers_or_refused_by_name(name):
    count = COUNTS[name]
    for taken in (np.int64(3), np.uint8(3)):
        assert same(values(count(taken)), values(count(3)))
    odd = [None, True, np.bool_(True), 3.0, np.float32(3), math.nan, "3", [3], 2**70, -(2**70), -1]
    for value in odd:
        if value is None and name == "n_clusters of score_clusters":
            continue
        with pytest.raises(DataError, match=rf"^{name.split()[0]}\b"):
            count(value)


@pytest.mark.parametrize("verb", [tsne, lambda x, perplexity: score_clusters(x, LABELS, perplexity=perplexity)])
@pytest.mark.parametrize("value", [None, True, "30", 0, -1, math.nan, math.inf, 10**400])
def test_a_perplexity_is_a_number_or_refused_by_name(verb, value):
    with pytest.raises(DataError, match="^perplexity is"):
        verb(X, perplexity=value)


def test_other_arguments_are_refused_by_name():
    with pytest.raises(DataError, match="^exclude_self is 'no'"):
        nearest_neighbors(X, X, 3, exclude_self="no")
    for engine in (None, 3, ["fused"]):
        with pytest.raises(EngineError, match="^engine is"):
            kmeans(X, 3, engine=engine)
    for spaces in ("hidden", None, 3, [None], [["hidden"]]):
        with pytest.raises(UsageError, match="^spaces"):
            score_clusters(X, LABELS, spaces=spaces)
    with pytest.raises(EngineError, match="^seed is 4294967296, engine 'reference'"):
        kmeans(X, 3, seed=2**32, engine="reference")
    with pytest.raises(DataError, match="^init lies farther"):
        kmeans(X, 2, init=[[0, 0, 0], [1e30, 0, 0]])


@pytest.mark.parametrize("name", TAKEN)
def test_lists_are_points_as_arrays_are(name):
    verb = TAKEN[name]
    found, expected = verb(X.double().tolist()), verb(X.double().numpy())
    assert same(values(found), values(expected))
    if name in ("queries", "X", "X of tsne"):
        assert all(isinstance(part, (np.ndarray, np.generic)) for part in found)


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_no_array_of_numbers_is_refused_by_name(name):
    X2 = X.numpy()
    ragged = [[1.0, 2.0], [3.0]]
    odd = [
        ragged, "points", X2.astype(str), X2.astype(object), np.zeros(X2.shape, dtype=[("x", "f4")]), X2 + 1j,
        np.ma.masked_greater(X2, 0), np.zeros(X2.shape, dtype="M8[s]"), X.to_sparse(), X.to_sparse_csr(), X.to("meta"),
        X.to(torch.float8_e4m3fn), torch.complex(X, X), torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd.append(torch.masked.MaskedTensor(X, X > 0))
        odd.append(torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)], layout=torch.jagged))
    if name not in ("init", "bank of score_clusters"):
        odd.append(None)
    for points in odd:
        with pytest.raises(DataError, match=rf"^{name.split()[0]} (is|holds) "):
            TAKEN[name](points)


@pytest.mark.parametrize("engine", ON_CPU)
@pytest.mark.parametrize("name", POINTS)
def test_any_layout_and_order_of_bytes_is_taken(name, engine):
    points, verb = X.numpy().astype(np.float64), POINTS[name]
    expected = values(verb(points, engine=engine))
    fixed = points.copy()
    fixed.flags.writeable = False
    negated = torch.complex(torch.zeros(40, 3, dtype=torch.float64), torch.from_numpy(-points)).conj().imag
    assert negated.is_neg()
    others = [points[::-1].copy()[::-1], points.astype(">f8"), np.asfortranarray(points), points.astype("g"), fixed]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (*others, negated):
            assert same(values(verb(other, engine=engine)), expected)
    whole = np.arange(120).reshape(40, 3)
    for kind in ("u1", "u2", "u4", "u8", "i1", "i8"):
        assert same(values(verb(whole.astype(kind), engine=engine)), values(verb(whole.astype("f4"), engine=engine)))
    truth = whole % 2 == 0
    assert same(values(verb(truth, engine=engine)), values(verb(truth.astype("f4"), engine=engine)))


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int32])
def test_large_whole_numbers_are_exact_or_refused(native, kind):
    whole = (2**25 + np.array([[0], [1], [3], [7], [12]])).astype(kind)
    found = nearest_neighbors(whole, whole, 1, exclude_self=True)
    assert found.indices.ravel().tolist() == [1, 0, 1, 2, 3] and found.distances.ravel().tolist() == [1, 1, 2, 4, 5]
    if kind != np.int32:
        with pytest.raises(DataError, match="^X holds whole numbers beyond 2\\^53"):
            kmeans(whole.astype(kind) + kind(2**53), 2)


@pytest.mark.parametrize("spaces", [("map",), ("hidden",), ("map", "hidden")])
def test_a_bank_of_another_width_is_one_error(spaces):
    for bank in (X[:, :2], X[None].repeat(2, 1, 1)):
        with pytest.raises(ShapeError, match=r"^X has shape \(40, 3\), bank \(.*must match"):
            score_clusters(X, LABELS, bank=bank, bank_labels=LABELS, spaces=spaces)
    with pytest.raises(DataError, match="^bank is on the device meta"):
        score_clusters(X, LABELS, bank=X.to("meta"), bank_labels=LABELS)


def test_labels_are_of_one_kind_or_refused_by_name():
    text = [f"task {label}" for label in LABELS]
    expected = values(score_clusters(X, LABELS, spaces=["hidden"]))
    for labels in (
        text,
        np.array(text, dtype=object),
        torch.from_numpy(LABELS).bfloat16(),
        LABELS.astype("u8"),
        LABELS,
    ):
        assert same(values(score_clusters(X, labels, spaces=["hidden"])), expected)
    masked, nan = np.ma.masked_equal(LABELS, 1), np.where(LABELS == 0, np.nan, LABELS)
    odd = [None, masked, nan, LABELS + 1j, LABELS.astype("M8[s]"), [[1], [1, 2]], torch.from_numpy(LABELS).to("meta")]
    odd += [np.array([None, "x"] * 20, dtype=object), torch.from_numpy(LABELS).to_sparse()]
    for labels in odd:
        with pytest.raises(DataError, match="^labels_true "):
            score_clusters(X, labels)
        if labels is not None:
            with pytest.raises(DataError, match="^blocks "):
                score_clusters(X, LABELS, blocks=labels)
    for labels in (3, LABELS[1:], LABELS[:, None]):
        with pytest.raises(ShapeError, match=r"^labels_true has shape .* expected \(40,\)"):
            score_clusters(X, labels)
    with pytest.raises(DataError, match="^labels_true holds .*bank_labels"):
        score_clusters(X, text, bank=X, bank_labels=LABELS)


def test_labels_in_lists_and_objects_are_judged_one_by_one():
    expected = score_clusters(X, LABELS, spaces=["hidden"])[0]["knn_share"]
    text = [f"task {label}" for label in LABELS]
    taken = {
        "texts with missing ones allowed": np.array(text, dtype=np.dtypes.StringDType(na_object=None)),
        "texts": np.array(text, dtype=np.dtypes.StringDType()),
        "numpy's whole numbers": np.array(list(LABELS), dtype=object),
        "numpy's texts": np.array([np.str_(one) for one in text], dtype=object),
        "floats": np.array([label / 10 for label in LABELS], dtype=object),
        "numpy's floats": [np.float32(label / 10) for label in LABELS],
        "whole and other numbers": [int(label) if label else 0.5 for label in LABELS],
        "tensors": list(torch.from_numpy(LABELS)),
        "neighbours beyond float64": [2**60 + int(label) for label in LABELS],
        "neighbours beyond int64": [2**63 + int(label) for label in LABELS],
        "neighbours on both sides of int64": [2**63 - 2 + int(label) for label in LABELS],
        "neighbours beyond 64 bits": [2**70 + int(label) for label in LABELS],
        "bytes": [one.encode() for one in text],
    }
    for kind, labels in taken.items():
        row = score_clusters(X, labels, spaces=["hidden"])[0]
        assert (row["n_clusters"], row["knn_share"]) == (4, expected), kind
    mixed = [[1, "1"], ["a", math.nan], [True, "x"], [True, 2], [b"a", "a"], [None, "a"], [0.1, np.float32(0.1)]]
    mixed += [
        [2**60 + 1, 0.5],
        [1j, 2j],
        [0.5, math.nan],
        [np.datetime64(1, "s")] * 2,
        [np.array([1]), np.array([1, 2])],
    ]
    for pair in mixed:
        for labels in (pair * 20, tuple(pair * 20), np.array([*pair * 20, None], dtype=object)[:-1]):
            with pytest.raises(DataError, match="^labels_true "):
                score_clusters(X, labels, spaces=["hidden"])
    missing = np.array([*text[:-1], None], dtype=np.dtypes.StringDType(na_object=None))
    with pytest.raises(DataError, match="^labels_true holds NoneType, text"):
        score_clusters(X, missing, spaces=["hidden"])


def beside(labels, bank_labels, **more):
    return score_clusters(X, labels, bank=X + 0.01, bank_labels=bank_labels, spaces=["hidden"], **more)


LARGE = 2**62 + LABELS
ALIKE = {
    "int64 and uint64": (LARGE, LARGE.astype("u8")),
    "uint64 and int64": (LARGE.astype("u8"), LARGE),
    "uint64 beyond int64 and int64": (LARGE.astype("u8") + np.uint64(2**63), LARGE),
    "int64 and float64": (LARGE, LARGE.astype("f8")),
    "int32 and uint64": (LABELS.astype("i4"), LABELS.astype("u8")),
    "float32 and float64 that it holds": ((LABELS / 8).astype("f4"), LABELS / 8),
    "bfloat16 and whole numbers": (torch.from_numpy(LABELS).bfloat16(), LABELS),
    "one float32 in two byte orders": ((LABELS / 10).astype("f4"), (LABELS / 10).astype(">f4")),
    "text of two lengths": ([f"t{label}" for label in LABELS], np.array([f"t{label}" for label in LABELS], dtype="U9")),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_labels_of_queries_and_bank_are_compared_exactly(kind):
    own, banked = ALIKE[kind]
    if isinstance(own, torch.Tensor):
        own_ints = own.long().tolist()
    else:
        own_ints = [one.item() if isinstance(one, np.generic) else one for one in own]
    banked_ints = [one.item() if isinstance(one, np.generic) else one for one in banked]
    # in the labels' own order, so that sums over them are made in the same one
    known = {one: code for code, one in enumerate(sorted({*own_ints, *banked_ints}))}
    codes = [np.array([known[one] for one in side]) for side in (own_ints, banked_ints)]
    assert same(values(beside(own, banked)), values(beside(*codes)))
    together = values(beside(LABELS, LABELS, instances=own, bank_instances=banked))
    assert same(together, values(beside(LABELS, LABELS, instances=codes[0], bank_instances=codes[1])))


def test_fractions_of_unlike_precision_are_no_labels_of_one_kind():
    tenths = LABELS / 10
    coarse = [
        tenths.astype("f4"),
        tenths.astype("f2"),
        torch.from_numpy(tenths).bfloat16(),
        torch.from_numpy(tenths).float(),
    ]
    for one in coarse:
        for own, banked in ((one, tenths), (tenths, one), (one, list(tenths))):
            with pytest.raises(DataError, match="^(labels_true|bank_labels) holds float64, (labels_true|bank_labels) "):
                beside(own, banked)
            with pytest.raises(DataError, match="^(bank_)?instances holds float64, "):
                beside(LABELS, LABELS, instances=own, bank_instances=banked)
    with pytest.raises(DataError, match="bfloat16"):
        beside(coarse[3], coarse[2])


def test_rows_are_plain_numbers():
    rows = score_clusters(X, LABELS, n_clusters=np.int64(3), n_neighbors=np.int64(4), seed=np.uint64(1), perplexity=5)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows and rows[0]["n_clusters"] == 3


@pytest.mark.parametrize("name", TAKEN)
def test_nan_and_infinity_are_refused_with_their_place(name):
    for value in (math.nan, math.inf):
        broken = X.clone()
        broken[17, 2] = value
        with pytest.raises(
            DataError, match=rf"^{name.split()[0]} holds NaN or infinity in layer 0;.*layer 0, point 17"
        ):
            TAKEN[name](broken)


@pytest.mark.parametrize("verb", [tsne, lambda x: score_clusters(x, LABELS, spaces=["map"])])
def test_a_lowered_perplexity_is_told_one_way(verb, caplog):
    with pytest.warns(UserWarning, match="^perplexity 30 lowered to 13 for 40 points$") as said:
        verb(X)
    assert len(said) == 1 and said[0].filename == __file__ and not caplog.records


def test_a_start_is_centred_and_the_schedule_depends_on_the_number_of_iterations():
    start = X[:, :2] + 100
    torch.testing.assert_close(tsne(X, init=start, n_iter=0, perplexity=5).points, start - start.mean(0))
    assert "centred" in tsne.__doc__ and "depends on n_iter" in tsne.__doc__


def test_every_refusal_is_ours():
    for points in (None, "text", X.to_sparse()):
        with pytest.raises(FclmError):
            kmeans(points, 3)


@pytest.mark.parametrize("width", [3, 65])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_every_slot_is_filled_even_past_the_checks(monkeypatch, width, value):
    def used(*shape, dtype):
        return torch.full(shape, -777, dtype=dtype)

    monkeypatch.setattr(op, "room", used)
    points = torch.randn(1, 40, width, generator=torch.Generator().manual_seed(0))
    points[0, 5:] = value
    if not kernels.status()[0]:
        pytest.skip("no compiled kernels here")
    search = Search(9, None, torch.zeros(1, 1, width), None, 2**28)
    found = op.nearest_neighbors(points, points, search)
    assert int(found[1].min()) >= 0 and int(found[1].max()) < 40 and not (found[0] == -777).any()
    each = op.nearest_neighbors_under_each(points, points, search, [None])
    assert int(each[1].min()) >= 0 and int(each[1].max()) < 40
