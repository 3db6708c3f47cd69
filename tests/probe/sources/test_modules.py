"""Reading layers: which, at which position, of which kinds of output, through every wrapper, and never in silence."""

import itertools
from collections import OrderedDict
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from torch import nn

from fastcluster_lm.errors import ProbeError, ShapeError, UsageError
from fastcluster_lm.probe.sources import modules
from fastcluster_lm.probe.sources.layer_names import matching_layers
from fastcluster_lm.probe.sources.modules import LayerReader
from tests.probe.attached import Net, instances

tokens, _ = instances()


class Counter(nn.Module):
    """Layer l gives 100 l + 10 t + token at position t, so that every state is known."""

    def __init__(self, kind="tensor", n_layers=3):
        super().__init__()
        self.layers = nn.ModuleList(Step(kind) for _ in range(n_layers))
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, tokens, scale=None, flag=True):
        assert flag is True
        h = tokens.float()[..., None] + 10.0 * torch.arange(tokens.shape[1])[:, None]
        if scale is not None:
            h = h * scale[:, None, None]
        for layer in self.layers:
            output = layer(h)
            h = output if isinstance(output, torch.Tensor) else next(iter(output.values())) if isinstance(
                output, dict
            ) else output[0]  # fmt: skip
            # as inference code does: what a layer gave is written over
            h += 100
        return h


class Pair(NamedTuple):
    states: torch.Tensor
    cache: None


class Step(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, h):
        h = h.clone()
        kinds = {
            "tensor": h, "tuple": (h, None), "named tuple": Pair(h, None), "list": [h],
            "mapping": OrderedDict(last=h, other=h + 1), "nothing": (None, "text"),
        }  # fmt: skip
        return kinds[self.kind]


short = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [3, 1, 4, 1]])


def expected(at):
    """Give what Counter's three layers have at a position of each instance."""
    rows = torch.arange(3)
    state = short[rows, at].float() + 10 * torch.as_tensor(at)
    return torch.stack([state + 100 * layer for layer in range(3)])[..., None]


@pytest.mark.parametrize("kind", ["tensor", "tuple", "named tuple", "list", "mapping"])
def test_the_first_tensor_of_any_output_is_read_before_it_is_written_over(kind):
    states = LayerReader(Counter(kind), "layers.*", positions=[1]).read(short)
    assert torch.equal(states, expected(1))


@pytest.mark.parametrize(
    ("position", "at"),
    [
        (0, 0),
        (2, 2),
        (-1, 3),
        (-4, 0),
        (torch.tensor([3, 0, 1]), torch.tensor([3, 0, 1])),
        (torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]]), torch.tensor([1, 3, 1])),
        (torch.tensor([[True, False, True, False], [True, False, False, False], [False, False, False, True]]),
         torch.tensor([2, 0, 3])),
        (lambda output, rows: output[torch.arange(len(rows)), rows], torch.arange(3)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_the_state_at_each_position_is_known(position, at, batch_size):
    reader = LayerReader(Counter(), "layers.*", positions=[position], batch_size=batch_size)
    assert torch.equal(reader.read(short), expected(at))


def test_a_position_off_by_one_would_be_seen():
    states = LayerReader(Counter(), "layers.*", positions=[1]).read(short)
    assert not torch.equal(states, expected(2)) and not torch.equal(states, expected(0))


def test_inputs_are_a_tensor_a_mapping_or_a_tuple():
    scale = torch.tensor([1.0, 2.0, 3.0])
    by_name = LayerReader(Counter(), "layers.0").read({"tokens": short, "scale": scale, "flag": True})
    in_turn = LayerReader(Counter(), "layers.0", batch_size=2).read((short, scale))
    assert torch.equal(by_name, in_turn)
    assert by_name[0, :, 0].tolist() == [34.0, 76.0, 93.0]


class Masked(Counter):
    def forward(self, input_ids, attention_mask=None, labels=None, decoder_attention_mask=None):
        return super().forward(input_ids)


def padded(side, n=5):
    """Give tokens and a mask: the last instance has a token less than the others."""
    mask = torch.ones(n, short.shape[1], dtype=torch.long)
    mask[-1, -1 if side == "right" else 0] = 0
    return {"input_ids": short.repeat(2, 1)[:n], "attention_mask": mask}


@pytest.mark.parametrize(("side", "position"), [("right", -1), ("left", 0), ("right", torch.tensor([0, 0, 0, 0, 3]))])
def test_a_token_that_is_padding_is_refused_with_the_remedy_though_the_first_instances_have_none(side, position):
    inputs = padded(side)
    if isinstance(position, torch.Tensor):
        position = torch.where(position == 3, short.shape[1] - 1, position)
    with pytest.raises(
        UsageError, match=r"of instance 4 is padding .* 1 of 5 instances\); give position='attention_mask'"
    ):
        LayerReader(Masked(), "layers.*", positions=[position]).read(inputs, torch.arange(2))
    LayerReader(Masked(), "layers.*", positions=["attention_mask"]).read(inputs)
    LayerReader(Masked(), "layers.*", positions=[-1 if side == "left" else 0]).read(inputs)


def test_a_decoder_s_tokens_are_judged_by_its_own_mask():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = Masked()

        def forward(self, **inputs):
            return self.decoder(**inputs)

    inputs = padded("right")
    inputs["labels"] = inputs["input_ids"]
    LayerReader(Both(), "decoder.layers.*", positions=[-1]).read(inputs)
    inputs["decoder_attention_mask"] = inputs["attention_mask"]
    with pytest.raises(UsageError, match="is padding"):
        LayerReader(Both(), "decoder.layers.*", positions=[-1]).read(inputs)


def test_several_positions_come_from_one_forward_and_may_differ_by_layer():
    model = Counter()
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    by_layer = {"layers.0": 0, "layers.*": 1}
    both = LayerReader(model, "layers.*", positions=[by_layer, 1], batch_size=len(short)).read(short)
    assert len(forwards) == 1
    first, second = (LayerReader(model, "layers.*", positions=[at]).read(short) for at in (0, 1))
    assert torch.equal(both, torch.cat([first[:1], second[1:], second]))


def test_a_position_may_be_the_name_of_an_input():
    class Masked(Counter):
        def forward(self, tokens, attention_mask):
            return super().forward(tokens)

    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 1]])
    reader = LayerReader(Masked(), "layers.*", positions=["attention_mask"], batch_size=2)
    states = reader.read({"tokens": short, "attention_mask": mask})
    assert torch.equal(states, expected(torch.tensor([2, 0, 3])))
    with pytest.raises(ShapeError, match=r"marks \(n, 4\) with one or more in each row"):
        reader.read({"tokens": short, "attention_mask": mask * 0})


def test_layers_come_in_the_models_order_whatever_is_asked_for_first():
    model = Net(n_blocks=11)
    names = matching_layers(model, ["blocks.*", "embed"])
    assert names == ["embed", *(f"blocks.{i}" for i in range(11))]
    assert matching_layers(model, ["blocks.*.0"]) == [f"blocks.{i}.0" for i in range(11)]
    assert matching_layers(model, ["blocks.[12]"]) == ["blocks.1", "blocks.2"]
    with pytest.raises(UsageError, match=r"none matches 'blocks'; there are: \(?none"):
        matching_layers(nn.Linear(2, 2), ["blocks"])


def test_layers_of_unlike_width_keep_their_distances():
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 2))
    X = torch.randn(9, 4)
    states = LayerReader(model, "*").read(X)
    assert states.shape == (3, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(torch.cdist(states[2], states[2]), torch.cdist(model(X), model(X)))
    assert (states[2, :, 2:] == 0).all()


@pytest.mark.parametrize("wrap", ["compile", "compile in place", "compile a layer", "compile forward", "data parallel"])
def test_a_wrapped_model_is_read_as_the_plain_one(wrap):
    torch._dynamo.reset()
    model = Net()
    model.noise = 0.0
    plain = LayerReader(model, "blocks.*").read(tokens)
    names = LayerReader(model, "blocks.*").names
    wrapped = model
    if wrap == "compile":
        wrapped = torch.compile(model, backend="eager")
    elif wrap == "compile in place":
        model.compile(backend="eager")
    elif wrap == "compile a layer":
        model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    elif wrap == "compile forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        wrapped = nn.DataParallel(model)
    # the graphs are there before the hooks are
    wrapped(tokens)
    reader = LayerReader(wrapped, "blocks.*")
    assert reader.names == names
    assert torch.equal(reader.read(tokens), plain)


def test_hooks_on_a_compiled_graph_fall_silent_and_the_reader_notices(monkeypatch):
    torch._dynamo.reset()
    model = Counter()
    model.forward = torch.compile(model.forward, backend="eager")
    model(short)
    reader = LayerReader(model, "layers.*")
    assert torch.equal(reader.read(short), expected(3))
    # neither run as written nor under another autocast, which would compile it again
    monkeypatch.setattr(modules, "undisturbed", lambda model: nullcontext())
    monkeypatch.setattr(LayerReader, "_precision", lambda self, device: nullcontext())
    with pytest.raises(ProbeError, match=r"layer 'layers\.0' gave nothing"):
        reader.read(short)


def test_a_layer_that_is_never_called_is_refused():
    model = Counter()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ProbeError, match="layer 'unused' gave nothing"):
        LayerReader(model, ["layers.*", "unused"]).read(short)


def test_a_layer_without_a_tensor_is_refused():
    model = nn.Sequential(Step("nothing"))
    with pytest.raises(ShapeError, match="layer '0' gives a tuple without a tensor"):
        LayerReader(model, "0").read(short)


def test_images_need_a_function_and_are_told_so():
    model, X = nn.Sequential(nn.Conv2d(1, 2, 3)), torch.randn(5, 1, 6, 6)
    with pytest.raises(ShapeError, match=r"gives shape \(5, 2, 4, 4\) for 5 instances; .* give position=function"):
        LayerReader(model, "0").read(X)
    states = LayerReader(model, "0", positions=[lambda output, rows: output.mean((2, 3))]).read(X)
    with torch.no_grad():
        torch.testing.assert_close(states[0], model(X).mean((2, 3)))


def test_hooks_are_gone_after_an_error_too():
    model = Counter()
    with pytest.raises(ShapeError):
        LayerReader(model, "layers.*", positions=[9]).read(short)
    assert not any(part._forward_hooks for part in model.modules())


def test_precision_is_the_callers_or_what_was_asked_for_and_states_are_float32():
    model = Net()
    model.noise = 0.0
    full = LayerReader(model, "blocks.1").read(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        as_caller = LayerReader(model, "blocks.1").read(tokens)
    asked = LayerReader(model, "blocks.1", autocast=torch.bfloat16).read(tokens)
    assert torch.equal(as_caller, asked) and not torch.equal(as_caller, full)
    assert full.dtype == asked.dtype == torch.float32
    torch.testing.assert_close(asked, full, atol=0.05, rtol=0.05)


def test_weights_that_autocast_keeps_from_before_the_step_are_not_read():
    model = nn.Sequential(nn.Linear(4, 4))
    X = torch.randn(6, 4)
    reader = LayerReader(model, "0")
    with torch.autocast("cpu", torch.bfloat16):
        model(X).sum().backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        inside = reader.read(X)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inside, reader.read(X))


def test_states_are_held_once():
    model = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(4)])
    reader = LayerReader(model, "*", batch_size=10)
    inputs = torch.rand(200, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        states = reader.read(inputs)
    steps = sorted(seen.events(), key=lambda event: event.time_range.start)
    # net of each operator, and of what was freed between them
    taken = list(itertools.accumulate(event.self_cpu_memory_usage for event in steps))
    assert states.nbytes <= max(taken) <= states.nbytes * 1.3


def test_states_go_where_the_caller_says():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
    place = torch.full((2, 25, 8), torch.nan)
    reader = LayerReader(model, "*", batch_size=10)
    inputs = torch.rand(25, 8)
    states = reader.read(inputs, room=lambda shape: place.view(shape))
    assert states.data_ptr() == place.data_ptr() and torch.equal(states, reader.read(inputs))
    assert torch.equal(states[1, :, 3:], torch.zeros(25, 5))


def test_a_width_that_changes_is_refused():
    class Changing(torch.nn.Module):
        def forward(self, X):
            return X[:, : len(X) // 2]

    with pytest.raises(ShapeError, match="width 2 after ones of width 5"):
        LayerReader(torch.nn.Sequential(Changing()), "0", batch_size=10).read(torch.rand(15, 8))


def lora(model):
    """Adapt a model's linear layers."""
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0.0", "1.0"]))


@pytest.mark.parametrize("wrap", [lora, lambda model: torch.compile(lora(model)), nn.DataParallel])
def test_adapted_layers_keep_their_plain_names(wrap):
    torch.manual_seed(0)
    model = Net()
    model.noise = 0.0
    plain = LayerReader(model, ["embed", "blocks.*", "blocks.*.0"]).read(tokens)
    wrapped = wrap(model)
    reader = LayerReader(wrapped, ["embed", "blocks.*", "blocks.*.0"])
    assert reader.names == ["embed", "blocks.0", "blocks.0.0", "blocks.1", "blocks.1.0"]
    # an adapter adds nothing before it has learnt
    assert torch.equal(reader.read(tokens), plain)
    # nor is it the layer below the adapter that is read
    changed = [weight for name, weight in wrapped.named_parameters() if "lora_B" in name]
    with torch.no_grad():
        for weight in changed:
            weight.fill_(0.5)
    assert bool(changed) != torch.equal(reader.read(tokens)[2], plain[2])
    # a name as the wrapped model spells it is known too, inside another module as well
    spelled = next(name for name, _ in wrapped.named_modules() if name.endswith("blocks.1.0"))
    assert LayerReader(wrapped, spelled).names == ["blocks.1.0"]
    outer = nn.ModuleDict({"net": wrapped})
    assert matching_layers(outer, ["net.blocks.*"]) == ["net.blocks.0", "net.blocks.1"]


def test_a_function_of_the_forward_gives_what_no_module_does():
    model = Counter()

    def between(model, batch):
        h = model.layers[0](batch["tokens"].float()[..., None])
        return {"before": h, "sum": (h + model.layers[1](h))[:, 0]}

    inputs = {"tokens": short}
    reader = LayerReader(model, between, positions=[1], batch_size=2)
    assert reader.names == []
    states = reader.read(inputs)
    assert reader.names == ["before", "sum"]
    assert states[0, :, 0].tolist() == short[:, 1].tolist() and states[1, :, 0].tolist() == (2 * short[:, 0]).tolist()
    assert model.training and not any(part._forward_hooks for part in model.modules())
    names = iter([["a"], ["a"], ["b"]])
    changing = LayerReader(
        model, lambda model, batch: dict.fromkeys(next(names), batch[..., None].float()), batch_size=2
    )
    changing.read(short)
    with pytest.raises(ProbeError, match="layers: the function gave b after a"):
        changing.read(short)
    for nothing in ({}, short):
        with pytest.raises(UsageError, match="layers: expected the function to give states by name"):
            LayerReader(model, lambda model, batch, nothing=nothing: nothing).read(short)
