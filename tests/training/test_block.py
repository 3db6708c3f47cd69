"""Blocks as one op and the update in training: the same steps as torch's, and a choice that is written down."""

import math
from dataclasses import replace

import pytest
import torch

from fastcluster_lm.config import ModelConfig, config_from_dict
from fastcluster_lm.device import choose_device
from fastcluster_lm.engine import Rooms
from fastcluster_lm.errors import UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.adamw_step import op as adamw
from fastcluster_lm.kernels.transformer_block import op as block_op
from fastcluster_lm.model import block_policy
from fastcluster_lm.tasks import taskset_of
from fastcluster_lm.training import Trainer
from tests.laws.conftest import SMALL
from tests.training.conftest import CONFIG, trained

needs_compiler = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])


@needs_compiler
@pytest.mark.parametrize("loss", ["output", "all"])
def test_fused_and_plain_blocks_take_the_same_steps(model, splits, loss, monkeypatch):
    config = replace(CONFIG, loss=loss)
    # gradients that compiled code gave, one a block and step: on some processors both ways round alike
    compiled = []
    backward = block_op._backward
    monkeypatch.setattr(block_op, "_backward", lambda *given: compiled.append(1) or backward(*given))
    plain, expected = trained(model, splits, replace(config, block="plain"))
    assert not plain.fused_block and not compiled
    fused, found = trained(model, splits, replace(config, block="fused"))
    assert fused.fused_block and len(compiled) == len(found) * len(model.blocks)
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
        torch.testing.assert_close(one.states, other.states, rtol=0, atol=1e-3)
    assert fused.validate() == pytest.approx(plain.validate(), abs=0.05)


@needs_compiler
def test_auto_blocks_are_fused_where_they_fit(model, splits):
    default, found = trained(model, splits, CONFIG)
    assert default.fused_block and all(block.fused for block in default.model.blocks)
    _, expected = trained(model, splits, replace(CONFIG, block="fused"))
    assert [step.loss for step in found] == [step.loss for step in expected]


def test_the_choice_says_why(monkeypatch):
    cpu, narrow = choose_device("cpu"), ModelConfig(d_model=32, n_heads=2)
    monkeypatch.setattr(native, "status", lambda: (True, "a compiler"))

    def decide(wanted="auto", device=cpu, precision=torch.float32, model=narrow):
        return block_policy(wanted, device, precision, model)

    assert decide() == (True, "width 32 is below 192, where a step is mostly small operations")
    assert decide(model=replace(narrow, d_model=192)) == (
        False,
        "at width 192, 192 or more, torch's matmuls are as quick",
    )
    assert decide("plain") == decide("fused")[:0] + (False, "asked for") and decide("fused") == (True, "asked for")
    cuda = replace(cpu, torch_device=torch.device("cuda"))
    for reason, hindered in (
        ("the op is for CPUs", {"device": cuda}),
        ("matmuls are in bfloat16", {"precision": torch.bfloat16}),
        ("the op has no dropout", {"model": replace(narrow, dropout=0.1)}),
        ("multiples of 8", {"model": replace(narrow, n_heads=8)}),
        ("multiples of 8", {"model": replace(narrow, d_mlp=12)}),
    ):
        assert not decide(**hindered)[0] and reason in decide(**hindered)[1]
        with pytest.raises(UsageError, match="training.block: expected auto or plain, got fused"):
            decide("fused", **hindered)
    monkeypatch.setattr(native, "status", lambda: (False, "no C++ compiler was found"))
    assert decide() == (False, "there is no compiled code: no C++ compiler was found")


@needs_compiler
def test_the_choice_is_written_down():
    config = config_from_dict(SMALL)
    for block, name, reason in (("auto", "fused", "below 192"), ("plain", "plain", "asked for")):
        chosen = replace(config, training=replace(config.training, block=block))
        resolved = Rooms(chosen, taskset_of(chosen.tasks, chosen.seed)).resolved()
        assert resolved["block"] == name and reason in resolved["block_reason"]


@needs_compiler
@pytest.mark.parametrize("loss", ["output", "all"])
def test_the_compiled_graph_with_fused_blocks_has_no_break(model, splits, loss, traced_only):
    config = replace(CONFIG, loss=loss, block="fused", compile="on")
    _, found = trained(model, splits, config, steps=2)
    _, expected = trained(model, splits, replace(config, compile="off"), steps=2)
    assert [step.loss for step in found] == [step.loss for step in expected]


@needs_compiler
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_compiled_update_takes_torchs_steps_and_keeps_its_state(model, splits, clip, monkeypatch):
    config = replace(CONFIG, grad_clip=clip)
    ours, found = trained(model, splits, config)
    monkeypatch.setattr(adamw, "library", lambda source: None)
    theirs, expected = trained(model, splits, config)
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    for (name, weight), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        state, expected_state = ours.optimizer.state[weight], theirs.optimizer.state[other]
        assert state.keys() == expected_state.keys() and state["step"] == expected_state["step"] == 5
        for key in ("exp_avg", "exp_avg_sq"):
            assert state[key].shape == weight.shape
            scale = float(expected_state[key].abs().max())
            torch.testing.assert_close(state[key], expected_state[key], rtol=0, atol=1e-3 * scale, msg=name)


@needs_compiler
def test_a_weight_without_a_gradient_goes_torchs_way(model, splits, monkeypatch):
    trainer = Trainer(model, *splits, CONFIG, choose_device("cpu"), seed=0)
    trainer.advance()
    update = trainer._step._update
    native_steps = []
    take = type(update._native).take
    monkeypatch.setattr(type(update._native), "take", lambda *given: native_steps.append(1) or take(*given))
    trainer.advance()
    assert len(native_steps) == 1
    first, second = (weight.detach().clone() for weight in list(model.parameters())[:2])
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    next(model.parameters()).grad = None
    assert math.isfinite(update.take(1e-2)) and len(native_steps) == 1
    assert torch.equal(next(model.parameters()).detach(), first)
    assert not torch.equal(list(model.parameters())[1].detach(), second)
