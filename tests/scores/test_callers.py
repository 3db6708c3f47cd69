"""What a caller's own settings may do to the verbs: nothing."""

import pytest
import torch

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels import native
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import Neighbors, TsneParams
from fastcluster_lm.scores.kmeans import kmeans
from fastcluster_lm.scores.neighbors import nearest_neighbors
from fastcluster_lm.scores.tsne import tsne


def all_verbs(X: torch.Tensor) -> list[torch.Tensor]:
    found = nearest_neighbors(X, X, 5, exclude_self=True)
    return [*found, *kmeans(X, 4, n_init=2), *tsne(X, n_iter=20, perplexity=8)]


@pytest.mark.parametrize("setting", ["autocast", "default float64", "lower matmul precision"])
@pytest.mark.parametrize("width", [8, 600])
def test_a_callers_settings_change_no_bit(width, setting):
    X = torch.randn(2, 120, width, generator=torch.Generator().manual_seed(0))
    expected = all_verbs(X)
    if setting == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = all_verbs(X)
            assert torch.is_autocast_enabled("cpu")
    elif setting == "default float64":
        torch.set_default_dtype(torch.float64)
        try:
            found = all_verbs(X)
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            found = all_verbs(X)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_an_address_of_another_dtype_is_never_handed_out():
    with pytest.raises(ValueError, match=r"expected a contiguous torch.float32 CPU tensor, got torch.float64"):
        native.address(torch.zeros(3, dtype=torch.float64), torch.float32)
    with pytest.raises(ValueError, match="strides"):
        native.address(torch.zeros(3, 4).T, torch.float32)


def test_a_coordinate_that_is_far_and_hardly_differs_keeps_neighbours_apart():
    X = torch.stack([torch.ones(40), torch.linspace(0, 1e-39, 40)], 1)
    found = nearest_neighbors(X, X, 5, exclude_self=True)
    assert found.distances.isfinite().all()
    assert (found.indices != torch.arange(40)[:, None]).all()
    assert all(len(set(row)) == 5 for row in found.indices.tolist())


def test_neighbours_and_starts_out_of_range_are_refused():
    X = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(0))
    engine, params = choose_engine("fused", "cpu"), TsneParams(perplexity=3)
    distances, indices = torch.ones(1, 20, 9), torch.full((1, 20, 9), 50_000_000)
    with pytest.raises(DataError, match="indices run from 50000000 to 50000000"):
        engine.tsne(X, TsneParams(perplexity=3, neighbors=Neighbors(distances, indices)))
    with pytest.raises(ShapeError, match="distances have another shape"):
        engine.tsne(X, TsneParams(perplexity=3, neighbors=Neighbors(distances[..., :4], indices * 0)))
    with pytest.raises(DataError, match="init reaches"):
        engine.tsne(X, TsneParams(perplexity=3, init=torch.full((20, 2), 1e20)))
    assert engine.tsne(X, params).points.isfinite().all()


def test_no_layers_are_refused():
    for verb in (lambda X: nearest_neighbors(X, X, 2), lambda X: kmeans(X, 2), tsne):
        with pytest.raises(ShapeError, match="at least one layer"):
            verb(torch.zeros(0, 10, 3))
