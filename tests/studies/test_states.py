"""States exchanged at a layer: nothing else changes, the answer follows, gradients flow."""

import pytest
import torch

from fastcluster_lm.errors import DataError
from fastcluster_lm.model import GPT2
from fastcluster_lm.studies.states import changed_states, group_means, kept_states


def forward(model: GPT2, instances, rows):
    return model(*instances.inputs(rows))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_states_of_other_instances_give_their_answers_from_the_last_layer_on(layer, model, splits):
    train = splits[0]
    one, other = torch.arange(4), torch.arange(20, 24)
    source = forward(model, train, other)
    with changed_states(model, layer, lambda x: source.states[:, layer]):
        patched = forward(model, train, one)
    if layer == 2:
        torch.testing.assert_close(patched.logits, source.logits)
    assert not torch.equal(patched.logits, forward(model, train, one).logits)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_that_are_not_changed_change_nothing(layer, model, splits):
    rows = torch.arange(6)
    plain = forward(model, splits[0], rows)
    with changed_states(model, layer, lambda x: x):
        same = forward(model, splits[0], rows)
    assert torch.equal(plain.logits, same.logits) and torch.equal(plain.states, same.states)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_kept_states_are_the_models_and_carry_a_gradient(layer, model, splits):
    rows = torch.arange(3)
    with kept_states(model, layer) as kept:
        output = forward(model, splits[0], rows)
    torch.testing.assert_close(kept[0].detach(), output.states[:, layer])
    kept[0].square().sum().backward()
    assert model.wte.weight.grad is not None and model.wte.weight.grad.abs().sum() > 0


def test_a_layer_that_is_not_there_is_refused(model):
    with pytest.raises(DataError, match="expected 0 to 2, got 3"), changed_states(model, 3, lambda x: x):
        pass


def test_group_means_by_hand():
    X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]])
    means = group_means(X, torch.tensor([0, 0, 2]), 3)
    assert means[0].tolist() == [2.0, 3.0] and means[2].tolist() == [10.0, 0.0]
    assert means[1].isnan().all()
