"""The model against transformers' own GPT-2, and what its states promise."""

import pytest
import torch

from fastcluster_lm.config import ModelConfig
from fastcluster_lm.model import GPT2, hugging_face_state


def in_transformers(model: GPT2):
    """Load our weights into transformers' GPT2LMHeadModel."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=model.wte.num_embeddings,
        n_positions=model.n_positions,
        n_embd=model.config.d_model,
        n_layer=model.config.n_layers,
        n_head=model.config.n_heads,
        n_inner=model.config.d_mlp or None,
        attn_implementation="eager",
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    missing, unexpected = theirs.load_state_dict(hugging_face_state(model), strict=False)
    assert not unexpected
    # old versions keep the causal mask as a buffer; no weight may be missing
    assert all("attn.bias" in name or "masked_bias" in name for name in missing)
    return theirs


def some_tokens(model: GPT2, batch: int = 7) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(model.wte.num_embeddings, (batch, model.n_positions), generator=draw)


@pytest.mark.parametrize("d_mlp", [0, 24])
def test_logits_and_states_equal_those_of_transformers(d_mlp):
    config = ModelConfig(d_model=32, n_layers=3, n_heads=4, d_mlp=d_mlp, init_std=0.1)
    model = GPT2(config, 29, 11, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases and norms away from 0 and 1, or a swap would not show
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    tokens = some_tokens(model)
    position = torch.arange(7) + 4
    with torch.no_grad():
        theirs = in_transformers(model)(tokens, output_hidden_states=True)
        whole = model(tokens, position, all_tokens=True)
        ours = model(tokens, position)
    rows = torch.arange(7)
    torch.testing.assert_close(whole.logits, theirs.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.logits, theirs.logits[rows, position], atol=1e-5, rtol=0)
    for layer in range(3):  # transformers' last entry is after the final norm, ours before it
        torch.testing.assert_close(
            ours.states[:, layer], theirs.hidden_states[layer][rows, position], atol=1e-5, rtol=0
        )
    normed = torch.nn.functional.layer_norm(ours.states[:, 3], (32,), model.ln_f.weight, model.ln_f.bias)
    torch.testing.assert_close(normed, theirs.hidden_states[3][rows, position], atol=2e-5, rtol=0)


def test_the_last_block_at_some_positions_equals_the_whole_block(model):
    tokens = some_tokens(model)
    output, probe = torch.full((7,), 4), torch.full((7, 1), 2)
    whole = model(tokens, output, probe, all_tokens=True)
    part = model(tokens, output, probe)
    torch.testing.assert_close(part.logits, whole.logits[:, 4], atol=1e-6, rtol=0)
    torch.testing.assert_close(part.states, whole.states, atol=1e-6, rtol=0)
    assert not torch.allclose(part.states, model(tokens, output).states)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("all_tokens", [False, True])
def test_several_positions_of_one_forward_have_the_states_of_one_forward_each(model, all_tokens, fused):
    model.fuse_blocks(fused)
    tokens, output, probes = some_tokens(model), torch.full((7,), 4), torch.tensor([[2, 4]] * 7)
    with torch.no_grad():
        both = model(tokens, output, probes, all_tokens=all_tokens)
        alone = [model(tokens, output, probes[:, [at]], all_tokens=all_tokens) for at in (0, 1)]
    # all layers of the first position, then those of the second
    apart = torch.cat([one.states for one in alone], 1)
    torch.testing.assert_close(both.states, apart, atol=0 if fused else 1e-6, rtol=0)
    torch.testing.assert_close(both.logits, alone[0].logits, atol=0 if fused else 1e-6, rtol=0)
    assert both.states.shape == (7, 2 * (model.config.n_layers + 1), model.config.d_model)
    assert torch.equal(both.states[:, 0], model.wte(tokens[:, 2]) + model.wpe.weight[2])


def test_padding_after_the_input_changes_nothing(model):
    tokens, position = some_tokens(model), torch.full((7,), 3)
    other = tokens.clone()
    other[:, 4] = 0
    torch.testing.assert_close(model(tokens, position).logits, model(other, position).logits)


def test_states_carry_no_gradient_and_the_logits_do(model):
    output = model(some_tokens(model), torch.full((7,), 4))
    assert not output.states.requires_grad
    output.logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_layer_zero_is_blind_to_the_instruction(model):
    tokens, position = some_tokens(model), torch.full((7,), 4)
    tokens[:, 4] = 5
    states = model(tokens, position).states
    assert (states[:, 0] == states[:1, 0]).all()
    assert not torch.allclose(states[0, 1], states[1, 1])


def test_a_seed_draws_the_same_weights_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two = (GPT2(ModelConfig(d_model=8, n_heads=2), 9, 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_weights_come_from_the_generator_alone_in_the_order_of_their_names():
    config = ModelConfig(d_model=16, n_layers=2, n_heads=2, init_std=0.5)
    built, drawn = GPT2(config, 11, 6, torch.Generator().manual_seed(3)), torch.Generator().manual_seed(3)
    for name, weight in built.named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        elif "ln_" in name:
            assert (weight == 1).all()
        else:
            std = 0.5 / 2 if "c_proj" in name else 0.5
            assert torch.equal(weight, torch.empty_like(weight).normal_(0.0, std, generator=drawn).detach()), name
        assert weight.requires_grad and weight.is_leaf and weight.device.type == "cpu"


@pytest.mark.parametrize("training", [True, False])
def test_the_graph_has_no_break(model, training):
    torch._dynamo.reset()
    model.train(training)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    tokens, position = some_tokens(model), torch.full((7,), 4)
    for probes in (None, torch.tensor([[2, 4]] * 7)):
        torch.testing.assert_close(compiled(tokens, position, probes).states, model(tokens, position, probes).states)
