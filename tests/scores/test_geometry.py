"""geometry against definitions written out, scikit-learn and data of known dimension."""

import numpy as np
import pytest
import torch

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.scores.geometry import (
    class_distance_normalized_variance,
    intrinsic_dimension,
    neighbor_overlap,
    trustworthiness,
)
from fastcluster_lm.scores.neighbors import nearest_neighbors


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cdnv_is_its_definition():
    X, labels = points(2, 60, 5), torch.arange(60) % 4
    X[1] += labels[:, None] * 3 + 100
    for layer, found in enumerate(class_distance_normalized_variance(X, labels * 7)):
        classes = [X[layer, labels == c].double() for c in range(4)]
        variance = [(c - c.mean(0)).square().sum(1).mean() for c in classes]
        pairs = [
            (variance[a] + variance[b]) / (2 * (classes[a].mean(0) - classes[b].mean(0)).square().sum())
            for a in range(4)
            for b in range(a + 1, 4)
        ]
        assert found == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-4)


def test_cdnv_of_collapsed_mixed_and_single_classes():
    labels = torch.arange(40) % 2
    collapsed = labels[None, :, None].float().expand(1, 40, 3)
    assert class_distance_normalized_variance(collapsed, labels) < 1e-12
    assert class_distance_normalized_variance(points(1, 40, 3), labels) > 1
    assert class_distance_normalized_variance(points(1, 40, 3), torch.zeros(40, dtype=torch.int64)).isnan()
    same = points(1, 20, 3).repeat_interleave(2, dim=1)
    assert class_distance_normalized_variance(same.double(), labels).item() > 1e20
    with pytest.raises(ShapeError, match="labels has shape"):
        class_distance_normalized_variance(same, labels[:5])


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_dimension_of_a_flat_sheet_is_found(dimension):
    flat = torch.rand(3, 2000, dimension, generator=torch.Generator().manual_seed(dimension))
    turned = flat @ points(3, dimension, 12)
    near = nearest_neighbors(turned, turned, 2, exclude_self=True)
    found = intrinsic_dimension(near.distances)
    assert found.shape == (3,)
    assert (found / dimension - 1).abs().max() < 0.12


def test_ties_are_left_out_of_the_dimension():
    distances = torch.tensor([[0.0, 1.0]] * 30 + [[1.0, 1.0]] * 30)[None]
    assert intrinsic_dimension(distances).isnan()
    mixed = torch.cat([distances, torch.tensor([[[1.0, 2.0]]]).expand(1, 20, 2)], 1)
    assert intrinsic_dimension(mixed).item() == pytest.approx(19 / (20 * np.log(2)))
    with pytest.raises(ShapeError, match="two neighbours"):
        intrinsic_dimension(distances[..., :1])


def test_overlap_counts_shared_neighbours():
    one = torch.tensor([[[1, 2, 3], [0, 2, 3]]])
    other = torch.tensor([[[3, 1, 9], [7, 8, 9]]])
    assert neighbor_overlap(one, other).item() == pytest.approx(2 / 6)
    assert neighbor_overlap(one, one.flip(-1)).item() == 1
    with pytest.raises(ShapeError, match="shapes"):
        neighbor_overlap(one, other[..., :2])


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("by_matmul", [False, True])
def test_trustworthiness_is_scikit_learns(k, by_matmul, monkeypatch):
    from sklearn.manifold import trustworthiness as theirs

    from fastcluster_lm.kernels.nearest_neighbors import ranks
    from fastcluster_lm.scores import geometry

    if by_matmul:
        monkeypatch.setattr(ranks, "library", lambda source: None)
    X = points(3, 80, 6) + 50
    flat = torch.stack([X[0, :, :2], points(80, 2, seed=1), X[2, :, :2] + points(80, 2, seed=2) * 0.3])
    indices = nearest_neighbors(flat, flat, k, exclude_self=True).indices
    expected = [theirs(a.numpy(), b.numpy(), n_neighbors=k) for a, b in zip(X, flat, strict=True)]
    for block in (geometry.BLOCK, 700):
        monkeypatch.setattr(geometry, "BLOCK", block)
        np.testing.assert_allclose(trustworthiness(X, indices), expected, rtol=1e-9)
    assert expected[1] < 0.6 < expected[0]


def test_trustworthiness_needs_enough_points():
    assert trustworthiness(points(1, 5, 2), torch.zeros(1, 5, 3, dtype=torch.int64)).isnan()
