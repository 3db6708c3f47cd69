"""The fused output head in training: the same gradients, no logits, and a choice that is written down."""

from dataclasses import replace

import pytest
import torch

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.device import choose_device, head_policy
from fastcluster_lm.engine import Rooms
from fastcluster_lm.tasks import taskset_of
from fastcluster_lm.training import Trainer
from tests.laws.conftest import SMALL
from tests.training.conftest import CONFIG, trained


@pytest.mark.parametrize("loss", ["output", "all"])
def test_fused_and_plain_heads_take_the_same_steps(model, splits, loss):
    config = replace(CONFIG, loss=loss)
    plain, expected = trained(model, splits, replace(config, head="plain"))
    fused, found = trained(model, splits, replace(config, head="fused"))
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
        torch.testing.assert_close(one.states, other.states, rtol=0, atol=1e-3)
    first = {name: weight.grad for name, weight in plain.model.named_parameters()}
    for name, weight in fused.model.named_parameters():
        torch.testing.assert_close(weight.grad, first[name], rtol=0, atol=1e-3 * float(first[name].abs().max()))


def test_a_fused_head_computes_no_logits(model, splits, monkeypatch):
    fused = Trainer(model, *splits, replace(CONFIG, head="fused"), choose_device("cpu"), seed=0)
    monkeypatch.setattr(type(model), "forward", lambda *args, **options: pytest.fail("logits were computed"))
    fused.advance()


def test_the_default_head_of_a_small_run_is_the_plain_one(model, splits):
    default, found = trained(model, splits, CONFIG)
    _, expected = trained(model, splits, replace(CONFIG, head="plain"))
    assert not default.fused_head
    assert [step.loss for step in found] == [step.loss for step in expected]


def test_the_choice_goes_by_the_size_of_the_logits_and_says_so():
    cpu = choose_device("cpu")
    assert head_policy("auto", cpu, 32.0) == (True, "the logits of a step take 32 MiB, 32 or more")
    assert head_policy("auto", cpu, 31.9) == (False, "the logits of a step take 31.9 MiB, less than 32")
    assert head_policy("fused", cpu, 0.1) == (True, "asked for")
    assert head_policy("plain", cpu, 1e6) == (False, "asked for")
    cuda = replace(cpu, torch_device=torch.device("cuda"))
    assert not head_policy("auto", cuda, 1000.0)[0] and head_policy("auto", cuda, 1024.0)[0]


def test_the_choice_is_written_down():
    config = config_from_dict(SMALL)
    for head, name, reason in (("auto", "plain", "less than 32"), ("fused", "fused", "asked for")):
        chosen = replace(config, training=replace(config.training, head=head))
        resolved = Rooms(chosen, taskset_of(chosen.tasks, chosen.seed)).resolved()
        assert resolved["head"] == name and reason in resolved["head_reason"]


@pytest.mark.parametrize("loss", ["output", "all"])
def test_the_compiled_graph_of_the_hidden_states_has_no_break(model, splits, loss, traced_only):
    config = replace(CONFIG, loss=loss, head="fused", compile="on")
    _, found = trained(model, splits, config, steps=2)
    _, expected = trained(model, splits, replace(config, compile="off"), steps=2)
    assert [step.loss for step in found] == pytest.approx([step.loss for step in expected], rel=1e-6)
