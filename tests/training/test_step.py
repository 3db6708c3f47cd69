"""The step that a GPU captures as a graph, played here by running it again; and matmuls in bfloat16."""

import pytest
import torch

from fastcluster_lm.config import TrainingConfig
from fastcluster_lm.device import Device, graph_policy, precision_policy
from fastcluster_lm.errors import TrainingError
from fastcluster_lm.kernels.adamw_step import op as adamw
from fastcluster_lm.training.optimizer import build_optimizer
from fastcluster_lm.training.step import WARM_UPS, GraphedStep
from tests.training.test_loop import CONFIG, build


class Played:
    """Stands for a captured graph: work runs at every replay, never else, and gives the same buffers again."""

    def __init__(self) -> None:
        self.replays, self.step = 0, None

    def __call__(self, work):
        def play():
            self.replays += 1
            buffer = self.step._states
            work()
            self.step._states = buffer.copy_(self.step._states)

        return play


def graphed(splits, vocabulary):
    trainer, record = build(splits, vocabulary), Played()
    trainer.optimizer = build_optimizer(trainer.model, CONFIG)
    trainer._step = GraphedStep(
        trainer.model,
        trainer.optimizer,
        trainer._loss,
        CONFIG.grad_clip,
        torch.device("cpu"),
        CONFIG.batch_size,
        record,
    )
    record.step = trainer._step
    return trainer, record


def test_a_played_step_is_the_step(splits, vocabulary, monkeypatch):
    # both by torch's optimiser: one that rounds otherwise makes other steps of a gradient that is nothing but rounding,
    # as that of the keys' biases is
    monkeypatch.setattr(adamw, "library", lambda source: None)
    eager, (played, record) = build(splits, vocabulary), graphed(splits, vocabulary)
    kept = []
    for step in range(6):
        one, other = eager.advance(), played.advance()
        assert torch.equal(one.batch, other.batch)
        # the learning rate is a float32 tensor in a graph
        assert other.loss == pytest.approx(one.loss, rel=1e-5) and other.grad_norm == pytest.approx(
            one.grad_norm, rel=1e-4
        )
        torch.testing.assert_close(other.states, one.states, rtol=1e-4, atol=1e-5)
        kept.append((other.states, other.states.clone()))
        # warm-ups are no steps
        assert record.replays == step + 1
    # what was handed out is not the buffer of the next replay
    assert all(torch.equal(states, copy) for states, copy in kept)
    for one, other in zip(eager.model.parameters(), played.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    steps = {float(entries["step"]) for entries in played.optimizer.state.values()}
    assert steps == {6.0} and WARM_UPS > 0


def test_a_played_step_that_is_not_finite_leaves_the_weights(splits, vocabulary):
    trainer, _ = graphed(splits, vocabulary)
    trainer.advance()
    hook = trainer.model.ln_f.weight.register_hook(lambda grad: grad * float("inf"))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    moments = [entries["exp_avg"].clone() for entries in trainer.optimizer.state.values()]
    with pytest.raises(TrainingError, match="step 2: expected a finite gradient"):
        trainer.advance()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(
        torch.equal(entries["exp_avg"], old)
        for entries, old in zip(trainer.optimizer.state.values(), moments, strict=True)
    )
    hook.remove()
    assert trainer.advance().step == 2


def test_bfloat16_is_for_matmuls_alone(splits, vocabulary):
    config = TrainingConfig(steps=30, batch_size=16, warmup_steps=3, learning_rate=1e-2, precision="bfloat16")
    low, full = build(splits, vocabulary, config), build(splits, vocabulary)
    seen = []
    low.model.blocks[0].c_fc.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    one, other = low.advance(), full.advance()
    assert seen == [torch.bfloat16]
    assert one.states.dtype == torch.float32
    assert {weight.dtype for weight in low.model.parameters()} == {torch.float32}
    assert one.loss != other.loss and one.loss == pytest.approx(other.loss, rel=0.02)
    torch.testing.assert_close(one.states, other.states, rtol=0.05, atol=0.05)
    assert low.validate() >= 0 and torch.is_autocast_enabled("cpu") is False


def test_the_policies_say_why():
    cpu, cuda = (Device(torch.device(kind), torch.float32, 1, "") for kind in ("cpu", "cuda"))
    assert graph_policy("auto", cpu, 0.0) == (False, "there are CUDA graphs on a GPU only")
    assert graph_policy("auto", cuda, 0.0)[0] and not graph_policy("off", cuda, 0.0)[0]
    assert not graph_policy("auto", cuda, 0.1)[0]
    assert precision_policy("auto", cpu)[0] == torch.float32
    assert precision_policy("bfloat16", cpu) == (torch.bfloat16, "asked for")
