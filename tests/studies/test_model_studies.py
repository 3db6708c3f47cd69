"""Inputs of several tokens, and other architectures: each on data with a known answer, and on a miniature."""

import json

import pytest
import torch

from fastcluster_lm.config import ModelConfig, apply_settings
from fastcluster_lm.engine import Rooms, RunFolder
from fastcluster_lm.engine.checkpoint import load_checkpoint
from fastcluster_lm.studies.experiments import architectures, multi_token
from fastcluster_lm.tasks import taskset_of
from tests.studies.planted import LAYERS, judged

KINDS = (*architectures.TRANSFORMERS[1:], *architectures.OTHERS)


def test_two_tokens_write_every_input_and_output(taskset):
    texts = (("aaaa", "abab"), ("acdc",), ("eeee",), ("bggg",), ("ijij",), ("ckkl",))
    found = multi_token.pairs(taskset, texts, torch.device("cpu"))
    assert multi_token.side(3) == 2 and multi_token.side(9) == 3 and multi_token.side(1) == 1
    assert found.tokens.shape == (2 * 7 * 3, 4 + 3)
    first, second = found.select(torch.arange(0, len(found), 2)), found.select(torch.arange(1, len(found), 2))
    assert (first.tokens[:, -1] == 0).all() and torch.equal(second.tokens[:, -1], first.targets)
    assert torch.equal(first.tokens[:, :-1], second.tokens[:, :-1])
    # two tokens name an input, and two an output, without a doubt
    inputs = {(tuple(row), int(given)) for row, given in zip(first.tokens[:, 4:6].tolist(), first.input, strict=True)}
    outputs = {((int(a), int(b)), int(o)) for a, b, o in zip(first.targets, second.targets, first.output, strict=True)}
    for named, count in ((inputs, taskset.n_inputs), (outputs, taskset.n_outputs)):
        assert len(named) == len({tokens for tokens, _ in named}) == len({meant for _, meant in named}) == count
    assert int(max(found.tokens.max(), found.targets.max())) < multi_token.n_tokens(taskset)


def test_the_probed_places_are_the_tokens_asked_for(taskset):
    found = multi_token.pairs(taskset, (("aaaa",),) + (("acdc",),) + (("eeee",),) * 4, torch.device("cpu"))
    at = multi_token._seen_everywhere(found)
    assert list(multi_token.PLACES) == ["instruction", "first input", "second input", "first output"]
    assert len(at) == len(found) // 2 and at.inputs(torch.arange(2))[2].tolist() == [[3, 4, 5, 6]] * 2


def test_multi_token_measures_a_miniature_and_finds_what_carries(miniature, tmp_path):
    short = apply_settings(miniature, ["training.steps=10", "training.eval_every=5"])
    multi_token.train_on_pairs(short, tmp_path, {})
    found = multi_token.STUDY.measure({"pairs": tmp_path})
    assert {row["place"] for row in found.rows} == set(multi_token.PLACES)
    # the embedding of the second input cannot know the instruction
    blind = [row for row in found.rows if row["place"] == "second input" and row["layer"] == 0]
    assert blind[0]["ari"] == pytest.approx(0.0, abs=0.05)
    made = [{"place": "second input", "layer": la, "ari": 0.6 if la else -5.0, "null_ari": 0.1} for la in LAYERS]
    (tmp_path / "places.json").write_text(json.dumps({"rows": made, "val_accuracy": 1.0}))
    told = multi_token.STUDY.measure({"pairs": tmp_path})
    assert (told.statistic, told.control) == (pytest.approx(0.6), pytest.approx(0.1))
    assert told.beside["ARI, second input"] == pytest.approx(0.6) and told.beside["ARI, first input"] is None
    assert judged(multi_token.STUDY, [(0.6 + 0.01 * s, 0.1) for s in range(5)]).verdict == "supported"
    assert judged(multi_token.STUDY, [(0.1 + 0.01 * s, 0.1) for s in range(5)]).verdict == "not supported"


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_hands_out_its_states_and_learns(kind):
    torch.manual_seed(0)
    model = architectures.Wrapped(kind, ModelConfig(d_model=16, n_layers=2, n_heads=2, init_std=0.1), 12, 5)
    tokens = torch.randint(1, 12, (8, 5))
    end = torch.full((8,), 4)
    output = model(tokens, end)
    assert output.logits.shape == (8, 12) and output.states.shape == (8, 3, 16)
    assert not output.states.requires_grad
    # the embedding sees its own token alone, the last layer the first one too
    other = tokens.clone()
    other[:, 0] = other[:, 0] % 11 + 1
    changed = model(other, end)
    torch.testing.assert_close(changed.states[:, 0], output.states[:, 0])
    # and no state is a normed one: those of a final norm all have one size
    sizes = output.states[:, 2].square().mean(1)
    assert kind == "bert" or float(sizes.max() / sizes.min()) > 1.01
    assert (changed.states[:, 2] - output.states[:, 2]).abs().max() > 1e-6
    optimizer, targets = torch.optim.Adam(model.parameters(), 1e-2), torch.arange(8)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(tokens, end).logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1.0


def test_a_run_of_another_architecture_is_probed_and_leaves_the_global_generator_alone(miniature, tmp_path):
    short = apply_settings(miniature, ["training.steps=4", "training.eval_every=2", "probe.every=2"])
    before = torch.get_rng_state()
    architectures.train_architecture(short, tmp_path, {"kind": "lstm"})
    assert torch.equal(before, torch.get_rng_state())

    def build(model, vocab_size, n_positions, weights):
        return architectures.Wrapped("lstm", model, vocab_size, n_positions)

    rooms = Rooms(short, taskset_of(short.tasks, short.seed), build)
    load_checkpoint(rooms, RunFolder.open(tmp_path / "run"), 4, chosen=True)
    assert rooms.trainer.step == 4
    found = architectures.STUDY.measure({"lstm": tmp_path, "gpt2": tmp_path})
    assert {row["architecture"] for row in found.rows} == {"lstm", "gpt2"}


def test_only_those_that_learnt_are_compared():
    accuracy = {"gpt2": 0.99, "bert": 0.5, "t5": 0.95, "lstm": 0.99, "mamba": 0.2}
    ari = {"gpt2": 0.8, "bert": 0.0, "t5": 0.6, "lstm": 0.5, "mamba": 0.1}
    assert architectures.families(ari, accuracy) == (pytest.approx(0.7), pytest.approx(0.5))
    assert architectures.families(ari, {**accuracy, "lstm": 0.3}) == (pytest.approx(0.7), None)
    assert judged(architectures.STUDY, [(0.7 + 0.01 * s, 0.4) for s in range(5)]).verdict == "supported"
    assert judged(architectures.STUDY, [(0.4 + 0.01 * (s - 2), 0.4) for s in range(5)]).verdict == "undecided"
    assert judged(architectures.STUDY, [(0.7, None)] * 5).verdict == "undecided"
