"""Frames of points: the compiled pass against float64, whatever the number of threads, and what it must not hide."""

import math

import pytest
import torch

from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.point_frames import op, point_frames
from fastcluster_lm.scores.batches import spared_scaling


@pytest.fixture(autouse=True, params=["as here", "in torch"])
def way(request, monkeypatch):
    """Take each test through the compiled kernel, where there is one, and through torch."""
    if request.param == "in torch":
        monkeypatch.setattr(op, "library", lambda source: None)


@pytest.mark.parametrize("n", [1, 16, 17, 300, op.CHUNK, op.CHUNK + 1, 2 * op.CHUNK + 40])
@pytest.mark.parametrize("d", [1, 8, 13])
def test_a_frame_is_that_of_float64(n, d):
    X = (
        torch.randn(3, n, d, generator=torch.Generator().manual_seed(n))
        * torch.tensor([1.0, 50.0, 0.02])[:, None, None]
    )
    X += 7
    found, exact = point_frames(X, every=3), X.double()
    assert found.means.shape == (3, 1, d) and found.means.dtype == torch.float32
    away = (found.means.double() - exact.mean(1, keepdim=True)).abs().amax((1, 2))
    assert (away < 5e-7 * exact.abs().amax((1, 2))).all()
    assert found.reach == pytest.approx(float(exact.norm()), rel=1e-6)
    apart = (X[:, ::3] - found.means).abs().amax((1, 2))
    assert found.apart == (float(apart.min()) if n > 1 else math.inf)


def test_points_that_are_all_one_lie_at_their_mean_and_do_not_count():
    X = torch.randn(3, 27, 9, generator=torch.Generator().manual_seed(0))
    counted = point_frames(X, every=2)
    X[1] = X[1, 0].clone()
    found = point_frames(X, every=2)
    assert torch.equal(found.means[1, 0], X[1, 0])
    assert found.apart == float((X[::2, ::2] - counted.means[::2]).abs().amax((1, 2)).min())
    assert spared_scaling(X).plain and not spared_scaling(X).bring(X)[1].any()
    # all but one, the last, which may not be one of the few
    X[1, -1, -1] += 1
    assert point_frames(X, every=2).apart < 1
    last = point_frames(X[1:2], every=20)
    assert last.apart == float((X[1:2, ::20] - last.means).abs().max())


def test_threads_change_no_bit(monkeypatch):
    X = torch.randn(2, 5 * op.CHUNK + 3, 9, generator=torch.Generator().manual_seed(0)) + 3
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(native, "_threads", threads)
        found.append(point_frames(X, every=7))
    for other in found[1:]:
        assert torch.equal(other.means, found[0].means) and other[1:] == found[0][1:]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e20])
def test_points_that_float32_cannot_square_are_seen(value):
    X = torch.randn(2, 700, 5, generator=torch.Generator().manual_seed(0))
    X[1, 650, 2] = value
    assert not math.isfinite(point_frames(X, every=1).reach)
    assert not spared_scaling(X).plain


def test_other_numbers_and_views_have_frames_too():
    X = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    expected = point_frames(X, every=2)
    for other in (X.double(), X.mT.contiguous().mT):
        found = point_frames(other, every=2)
        torch.testing.assert_close(found.means.float(), expected.means)
        assert found[1:] == pytest.approx(expected[1:])


def test_a_plain_frame_needs_points_and_others_of_modest_size():
    X = torch.randn(2, 100, 6, generator=torch.Generator().manual_seed(0))
    plain = spared_scaling(X)
    assert plain.plain and torch.equal(plain.scale, torch.ones(2, 1, 1))
    torch.testing.assert_close(plain.bring(X).mean(1), torch.zeros(2, 6), rtol=0, atol=1e-6)
    room = torch.empty_like(X)
    assert plain.bring(X, out=room) is room and torch.equal(room, X - plain.offset)
    assert not spared_scaling(X, others=X * 1e8).plain
    assert not spared_scaling(X * 1e8).plain
    # one layer that hardly differs is enough
    assert not spared_scaling(torch.stack([X[0], 3 + 2e-7 * X[1]])).plain
    scaled = spared_scaling(X * 1e8)
    assert scaled.bring(X * 1e8).abs().max() < 4
    torch.testing.assert_close(scaled.of_layers(slice(1, 2)).bring(X[1:] * 1e8), scaled.bring(X * 1e8)[1:])
