"""What is read of a language model of transformers: its own hidden states, whatever stands beside a prompt."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fastcluster_lm.config import config_from_dict  # noqa: E402
from fastcluster_lm.engine import start_run  # noqa: E402
from fastcluster_lm.engine.export import export_hugging_face  # noqa: E402
from fastcluster_lm.engine.rooms import Rooms  # noqa: E402
from fastcluster_lm.errors import ProbeError, UsageError  # noqa: E402
from fastcluster_lm.probe.sources.prompts import Layers, PromptReader  # noqa: E402
from fastcluster_lm.tasks import taskset_of  # noqa: E402
from tests.laws.conftest import SMALL  # noqa: E402
from tests.tiny_language_model import N_BLOCKS, WIDTH, write_model  # noqa: E402

# of float32 forwards of unlike shapes
ERROR = 1e-5
PROMPTS = [[3, 4, 5], [1], [9, 8, 7, 6, 5, 4, 3], [2, 2], [21, 20, 19, 18]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Load the small Llama."""
    folder = write_model(tmp_path_factory.mktemp("model"))
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def read(model, batch_size: int, layers: Layers = Layers.RESIDUAL) -> torch.Tensor:
    return torch.cat(list(PromptReader(model, layers).states_in_chunks(PROMPTS, batch_size)), 1)


def test_the_states_are_those_that_transformers_gives_but_for_the_final_norm(model):
    found = read(model, 2)
    assert found.shape == (N_BLOCKS + 1, len(PROMPTS), WIDTH) and found.dtype == torch.float32
    for place, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            theirs = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        for layer in range(N_BLOCKS):
            assert torch.allclose(found[layer, place], theirs[layer][0, -1], atol=ERROR)
        # their last entry is after the norm
        assert torch.allclose(model.model.norm(found[-1, place]), theirs[-1][0, -1], atol=ERROR)
        assert not torch.allclose(found[-1, place], theirs[-1][0, -1], atol=0.01)
    # and not all the same
    assert found.std(1).min(0).values.max() > 0.01


def test_the_layers_of_the_head_are_those_that_transformers_gives_but_for_the_embedding(model):
    found = read(model, 2, Layers.HEAD)
    assert found.shape == (N_BLOCKS, len(PROMPTS), WIDTH)
    for place, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            theirs = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        for layer in range(N_BLOCKS):
            assert torch.allclose(found[layer, place], theirs[layer + 1][0, -1], atol=ERROR)
    # below the last layer both choices are of the same states
    residual = read(model, 2)
    assert torch.equal(found[:-1], residual[1:-1]) and not torch.allclose(found[-1], residual[-1], atol=0.01)


def test_of_several_forwards_the_first_is_read(model):
    tokens = torch.tensor([PROMPTS[0]])
    for layers in Layers:
        reader = PromptReader(model, layers)
        with torch.no_grad(), reader.reading(torch.tensor([2])) as states:
            model(tokens)
            model(tokens + 1)
        assert torch.equal(torch.stack(states), read(model, 1, layers)[:, :1])


@pytest.mark.parametrize("order", [(0, 2), (0, 1, 1, 2)], ids=["left out", "twice"])
def test_a_forward_that_does_not_run_every_block_once_is_refused(model, order):
    states = model.model.embed_tokens(torch.tensor([[1]]))
    places = model.model.rotary_emb(states, torch.tensor([[0]]))
    for layers in Layers:
        expected = len(order) + (layers is Layers.RESIDUAL)
        reader = PromptReader(model, layers)
        with pytest.raises(ProbeError, match=f"gave {expected} layers; expected each of 3 blocks to run once"):
            run_blocks(reader, states, places, order)


def run_blocks(reader: PromptReader, states, places, order) -> None:
    with torch.no_grad(), reader.reading(torch.tensor([0])):
        for at in order:
            reader._blocks[at](states, position_embeddings=places)


def test_prompts_beside_a_prompt_do_not_matter(model):
    alone, together = read(model, 1), read(model, len(PROMPTS))
    assert torch.allclose(alone, together, atol=ERROR)


def test_nothing_is_left_on_the_model(model):
    before = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    read(model, 3)
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()] == before


def test_an_exported_run_has_the_states_that_it_has_here(tmp_path):
    config = config_from_dict({**SMALL, "probe": {"every": 0}})
    folder = start_run(config, tmp_path / "run").folder
    rooms = Rooms(config, taskset_of(config.tasks, config.seed))
    weights = folder.read_checkpoint(12)[0]["model"]
    rooms.trainer.model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    ours = torch.cat(list(rooms.trainer.evaluator.states_in_chunks(rooms.trainer.val)), 1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export_hugging_face(folder.path, tmp_path / "hf")).eval()
    prompts = [
        tokens[: end + 1]
        for tokens, end in zip(
            rooms.trainer.val.tokens.tolist(), rooms.trainer.val.output_position.tolist(), strict=True
        )
    ]
    found = torch.cat(list(PromptReader(theirs, Layers.RESIDUAL).states_in_chunks(prompts, 50)), 1)
    assert ours.shape == found.shape and ours.std() > 0.05
    assert torch.allclose(ours, found, atol=ERROR)


def test_a_model_whose_blocks_are_not_found_is_refused(model):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base_model = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
            self.config = model.config

    with pytest.raises(UsageError, match="Odd: expected a list of 3 blocks, as its config says, found lists of 1;"):
        PromptReader(Odd(), Layers.RESIDUAL)
