"""Training: it learns, it stops on what is not finite, and a saved state goes on bit for bit."""

import copy

import pytest
import torch

from fastcluster_lm.config import ModelConfig, TrainingConfig
from fastcluster_lm.device import choose_device
from fastcluster_lm.errors import TrainingError
from fastcluster_lm.model import GPT2
from fastcluster_lm.training import EarlyStoppingMark, Trainer
from fastcluster_lm.training.optimizer import learning_rate

CONFIG = TrainingConfig(steps=30, batch_size=16, warmup_steps=3, learning_rate=1e-2)


def build(splits, vocabulary, config=CONFIG, seed=0, dropout=0.0) -> Trainer:
    shape = ModelConfig(d_model=16, n_layers=2, n_heads=2, init_std=0.1, dropout=dropout)
    model = GPT2(shape, len(vocabulary), splits[0].tokens.shape[1], torch.Generator().manual_seed(seed))
    return Trainer(model, *splits, config, choose_device("cpu"), seed)


@pytest.mark.parametrize("loss", ["output", "all"])
def test_it_learns_what_it_is_shown(splits, vocabulary, loss):
    config = TrainingConfig(steps=150, batch_size=32, warmup_steps=5, learning_rate=1e-2, loss=loss)
    trainer = build(splits, vocabulary, config)
    first = trainer.advance().loss
    for _ in range(149):
        last = trainer.advance().loss
    assert last < 0.5 * first
    assert trainer.evaluator.accuracy(trainer.train) > 0.8


def test_the_loss_is_that_of_plain_autograd(splits, vocabulary):
    trainer = build(splits, vocabulary)
    model, sampler = copy.deepcopy(trainer.model), copy.deepcopy(trainer.sampler.state())
    result = trainer.advance()
    twin = build(splits, vocabulary).sampler
    twin.load_state(sampler)
    batch = twin.draw()
    logits = model(splits[0].tokens[batch], splits[0].output_position[batch], all_tokens=True).logits[:, 4]
    expected = -logits.log_softmax(-1).gather(1, splits[0].targets[batch][:, None]).mean()
    assert result.loss == pytest.approx(expected.item(), abs=1e-6)
    assert result.states.shape == (16, 3, 16)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("stop", [1, 7])
def test_a_saved_state_goes_on_bit_for_bit(splits, vocabulary, stop, dropout):
    whole = build(splits, vocabulary, dropout=dropout)
    losses = [whole.advance().loss for _ in range(12)]
    stopped = build(splits, vocabulary, dropout=dropout)
    for _ in range(stop):
        stopped.advance()
    weights, moments, values = copy.deepcopy(stopped.state())
    resumed = build(splits, vocabulary, seed=9, dropout=dropout)
    resumed._seed = 0
    resumed.load_state(weights, moments, values)
    torch.rand(3)  # the caller's global generator must not matter
    assert [resumed.advance().loss for _ in range(12 - stop)] == losses[stop:]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dropout_leaves_the_global_generator_alone(splits, vocabulary):
    trainer = build(splits, vocabulary, dropout=0.5)
    before = torch.get_rng_state()
    trainer.advance()
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_that_is_not_finite_stops_before_the_update(splits, vocabulary):
    trainer = build(splits, vocabulary)
    trainer.advance()
    with torch.no_grad():
        trainer.model.blocks[0].c_fc.bias[0] = float("nan")
    before = [weight.clone() for weight in trainer.model.parameters()]
    with pytest.raises(TrainingError, match="step 2: expected a finite loss, got nan"):
        trainer.advance()
    assert trainer.step == 1
    for one, other in zip(before, trainer.model.parameters(), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_a_gradient_that_is_not_finite_stops_before_the_update(splits, vocabulary):
    trainer = build(splits, vocabulary)
    trainer.model.ln_f.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match="step 1: expected a finite gradient"):
        trainer.advance()
    assert trainer.step == 0


@pytest.mark.parametrize("fixed_shape", [True, False])
def test_evaluation_restores_the_mode_and_fills_up_the_last_chunk_of_a_fixed_graph(splits, vocabulary, fixed_shape):
    trainer = build(splits, vocabulary)
    trainer.evaluator.batch_size, trainer.evaluator.fixed_shape = 7, fixed_shape
    trainer.model.train()
    shapes = []
    forward = trainer.evaluator.forward
    trainer.evaluator.forward = lambda *inputs: shapes.append(inputs[0].shape) or forward(*inputs)
    accuracy = trainer.evaluator.accuracy(trainer.val)
    assert trainer.model.training
    rest = len(trainer.val) % 7
    assert rest and set(shapes) == ({(7, 5)} if fixed_shape else {(7, 5), (rest, 5)})
    guesses = trainer.model(trainer.val.tokens, trainer.val.output_position).logits.argmax(-1)
    assert accuracy == pytest.approx((guesses == trainer.val.targets).double().mean().item())


def test_evaluation_writes_each_instance_into_its_own_row(splits, vocabulary):
    trainer = build(splits, vocabulary)
    trainer.evaluator.batch_size = 7
    buffer = torch.full((3, len(trainer.val), 16), float("nan"))
    trainer.evaluator.states_into(trainer.val, buffer)
    expected = trainer.model(trainer.val.tokens, trainer.val.output_position).states.transpose(0, 1)
    torch.testing.assert_close(buffer, expected)


def test_the_learning_rate_warms_up_and_anneals():
    rates = [learning_rate(step, CONFIG) for step in range(1, 31)]
    assert rates[0] == pytest.approx(1e-2 / 3)
    assert rates[2] == pytest.approx(1e-2)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_the_early_stopping_mark_is_the_best_step_and_stays():
    mark = EarlyStoppingMark(patience=2, delta=0.01)
    for step, accuracy in enumerate([0.1, 0.5, 0.505, 0.4]):
        mark.look(step, accuracy)
    assert mark.step == 1
    mark.look(4, 0.9)
    assert mark.step == 1


def test_a_further_loss_term_is_added_and_one_of_zero_changes_no_bit(splits, vocabulary):
    plain, zero, pulled = (build(splits, vocabulary) for _ in range(3))
    zero.extra_loss = lambda batch: torch.zeros(())
    pulled.extra_loss = lambda batch: pulled.model.ln_f.bias.sum() * 10
    losses = [[trainer.advance().loss for _ in range(3)] for trainer in (plain, zero, pulled)]
    assert losses[0] == losses[1]
    assert losses[2][1:] != losses[0][1:]
    for one, other in zip(plain.model.parameters(), zero.model.parameters(), strict=True):
        assert torch.equal(one, other)
    # the gradient of the term pushes every bias down
    assert (pulled.model.ln_f.bias < plain.model.ln_f.bias).all()
