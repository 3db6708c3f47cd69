"""adamw_step against float64 and torch's own AdamW over several steps; its threads, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.adamw_step import AdamWStep, Moments, reference
from tests.tolerances import ADAMW_STEP

pytestmark = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])
SHAPES = ((), (1,), (7,), (8,), (3, 11), (64, 32), (20011,))
RATE, BETAS, EPS = 1e-2, (0.9, 0.97), 1e-8


def draw(dtype: torch.dtype = torch.float32) -> Moments:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    means, square_means = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    decays = [0.1 if weight.ndim >= 2 else 0.0 for weight in weights]
    return Moments(weights, means, square_means, [torch.zeros((), dtype=dtype) for _ in weights], decays, *BETAS, EPS)


def gradients_of(step: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [(torch.randn(shape, generator=generator) * 10.0 ** (step % 3 - 1)).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("limit", [1.0, 40.0, math.inf])
def test_steps_are_no_further_from_the_truth_than_torchs(limit):
    truth, ours = draw(torch.float64), draw()
    theirs = [weight.clone().requires_grad_() for weight in ours.weights]
    groups = [{"params": [weight], "weight_decay": decay} for weight, decay in zip(theirs, ours.decays, strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS, fused=True)
    native_step = AdamWStep(ours)
    assert native_step.compiled
    for step in range(6):
        expected = reference.adamw_step(truth, gradients_of(step, torch.float64), RATE, limit)
        for weight, gradient in zip(theirs, gradients_of(step), strict=True):
            weight.grad = gradient
        torch.nn.utils.clip_grad_norm_(theirs, limit)
        optimizer.step()
        given = gradients_of(step)
        assert native_step.take(given, RATE, limit) == pytest.approx(expected, rel=1e-6)
        assert all(torch.equal(part, before) for part, before in zip(given, gradients_of(step), strict=True))
    for name in ("weights", "means", "square_means"):
        for at, true in enumerate(getattr(truth, name)):
            state = optimizer.state[theirs[at]]
            other = {"weights": theirs[at], "means": state["exp_avg"], "square_means": state["exp_avg_sq"]}[
                name
            ].detach()
            scale = float(true.abs().max())
            error, budget = (float((part - true).abs().max()) for part in (getattr(ours, name)[at], other))
            assert error <= budget + ADAMW_STEP * scale, (name, at, error, budget, scale)
    assert [step.item() for step in ours.steps] == [6.0] * len(SHAPES)


def test_no_bit_depends_on_the_threads():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            moments = draw()
            step = AdamWStep(moments)
            norms = [step.take(gradients_of(number), RATE, 1.0) for number in range(3)]
            found.append((norms, moments))
    finally:
        torch.set_num_threads(before)
    for norms, moments in found[1:]:
        assert norms == found[0][0]
        for one, other in zip(moments[:4], found[0][1][:4], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(2, 3), (6, 20010)])
def test_a_gradient_that_is_not_finite_moves_nothing(broken, place):
    moments, untouched = draw(), draw()
    gradients = gradients_of(0)
    gradients[place[0]][place[1]] = broken
    assert not math.isfinite(AdamWStep(moments).take(gradients, RATE, 1.0))
    for one, other in zip(moments[:4], untouched[:4], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_unfit_arguments_are_refused():
    step = AdamWStep(draw())
    with pytest.raises(ShapeError, match="there are 6 gradients and 7 weights"):
        step.take(gradients_of(0)[:-1], RATE, 1.0)
    with pytest.raises(ValueError, match="expected a contiguous torch.float32 CPU tensor, got torch.float64"):
        step.take([*gradients_of(0)[:-1], torch.zeros(20011, dtype=torch.float64)], RATE, 1.0)


def test_what_compiled_code_does_not_take_is_moved_by_the_reference():
    moments, expected = draw(torch.float64), draw(torch.float64)
    step = AdamWStep(moments)
    assert not step.compiled
    for number in range(2):
        given = gradients_of(number, torch.float64)
        assert step.take(given, RATE, 1.0) == reference.adamw_step(expected, given, RATE, 1.0)
    for one, other in zip(moments[:4], expected[:4], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(ShapeError, match="there are 6 gradients and 7 weights"):
        step.take(gradients_of(0, torch.float64)[:-1], RATE, 1.0)
