"""Means and variances of classes: compiled against plain loops and torch, far from the origin and collapsed."""

import pytest
import torch

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.class_spread import class_pairs, class_spread, op
from fastcluster_lm.scores.geometry import class_distance_normalized_variance


@pytest.fixture(autouse=True, params=["as here", "in torch"])
def way(request, monkeypatch):
    """Take each test through the compiled kernel, where there is one, and through torch, as a GPU goes."""
    if request.param == "in torch":
        monkeypatch.setattr(op, "library", lambda source: None)


@pytest.mark.parametrize("d", [1, 3, 4, 17])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_means_and_variances_are_those_of_plain_loops(d, offset):
    X = torch.randn(3, 50, d, generator=torch.Generator().manual_seed(d)) + offset
    codes = torch.arange(50) % 6
    means, variances = class_spread(X, codes, 6)
    for c in range(6):
        own = X[:, codes == c].double()
        torch.testing.assert_close(means[:, c], own.mean(1), rtol=1e-14, atol=1e-12)
        expected = (own - own.mean(1, keepdim=True)).square().sum(-1).mean(-1)
        torch.testing.assert_close(variances[:, c], expected, rtol=1e-10, atol=0)


def test_collapsed_classes_have_no_variance():
    codes = torch.arange(40) % 4
    X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))[codes][None]
    means, variances = class_spread(X, codes, 4)
    # a mean of ten equal floats may miss them by float64's own rounding
    assert variances.abs().max() < 1e-28 and (means[0] - X[0, :4]).abs().max() < 1e-14


def test_codes_that_do_not_fit_are_refused():
    X = torch.zeros(1, 4, 2)
    with pytest.raises(ShapeError, match=r"codes have shape \(3,\); expected \(4,\)"):
        class_spread(X, torch.zeros(3).long(), 1)
    with pytest.raises(DataError, match="codes run from 0 to 2; expected 0 to 1"):
        class_spread(X, torch.tensor([0, 1, 2, 0]), 2)


@pytest.mark.skipif(not native.status()[0], reason=native.status()[1])
@pytest.mark.parametrize("n_classes", [2, 5, 24])
def test_compiled_pairs_of_classes_are_those_of_torch(n_classes, monkeypatch):
    generator = torch.Generator().manual_seed(n_classes)
    codes = torch.arange(120) % n_classes
    X = torch.randn(n_classes, 7, generator=generator)[codes] + 0.3 * torch.randn(4, 120, 7, generator=generator)
    # two means that are one but for rounding, points far from the origin, and classes without variance
    X[1] += 1e6
    X[2, codes == 1] = X[2, codes == 0] * (1 + 1e-7)
    X[3] = X[3, :n_classes][codes]
    monkeypatch.undo()
    compiled = class_pairs(X, codes, n_classes, (8 * torch.finfo(X.dtype).eps) ** 2)
    monkeypatch.setattr(op, "library", lambda source: None)
    expected = class_distance_normalized_variance(X, codes)
    torch.testing.assert_close(compiled, expected, rtol=1e-6, atol=1e-12)
    assert expected[2].isinf() and expected[3].abs() < 1e-12


def test_codes_of_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"codes have shape \(3,\); expected \(4,\)"):
        class_pairs(torch.zeros(1, 4, 2), torch.zeros(3).long(), 2, 0.0)
    with pytest.raises(DataError, match="codes run from 0 to 2; expected 0 to 1"):
        class_pairs(torch.zeros(1, 4, 2), torch.tensor([0, 1, 2, 0]), 2, 0.0)
