"""An alignment changes one weight as least squares says, moves source points alone, and leaves nothing behind."""

import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcluster_lm import align
from fastcluster_lm.config import ModelConfig, config_from_dict
from fastcluster_lm.engine import start_run
from fastcluster_lm.engine.export import export_hugging_face
from fastcluster_lm.errors import DataError, ProbeError, ShapeError, UsageError
from fastcluster_lm.model import GPT2
from tests.laws.conftest import SMALL
from tests.tiny_language_model import write_model

N, T, LABELS, CONTEXTS = 48, 4, 3, 4


class Case(NamedTuple):
    """A model in evaluation mode, what it takes, a layer and a map whose output is added to that layer's states."""

    model: nn.Module
    inputs: object
    layer: str
    linear: str


def own_model(n_layers: int = 3) -> GPT2:
    return GPT2(
        ModelConfig(d_model=16, n_layers=n_layers, n_heads=2, init_std=0.5), 20, T, torch.Generator().manual_seed(0)
    )


def plain_model() -> nn.Module:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 16)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True) for _ in range(2)
            )
            self.head = nn.Linear(16, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(x[:, -1])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Plain()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("align")
    start_run(config_from_dict({**SMALL, "probe": {**SMALL["probe"], "every": 0}}), folder / "run")
    export_hugging_face(folder / "run", folder / "hf")
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "hf")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(write_model(tmp_path_factory.mktemp("llama")))


@pytest.fixture(params=["plain", "ours", "exported", "llama"])
def case(request, tokens) -> Case:
    if request.param == "plain":
        return Case(plain_model().eval(), tokens, "blocks.0", "blocks.0.linear2")
    if request.param == "ours":
        return Case(own_model().eval(), (tokens, torch.full((N,), T - 1)), "blocks.1", "blocks.1.mlp_c_proj")
    # a cached fixture's model, whose weights a failing test may have changed
    model = copy.deepcopy(request.getfixturevalue(request.param)).eval()
    inputs = {"input_ids": tokens % model.config.vocab_size, "attention_mask": torch.ones_like(tokens)}
    if request.param == "exported":
        return Case(model, inputs, "transformer.h.1", "transformer.h.1.mlp.c_proj")
    return Case(model, inputs, "model.layers.1", "model.layers.1.mlp.down_proj")


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(20, (N, T), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(N) % LABELS


@pytest.fixture
def context() -> Tensor:
    return torch.arange(N) // LABELS % CONTEXTS


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def hooks_of(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def read(case: Case, labels: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, align.Alignment]:
    """Give states, keys, and the alignment of label 0 with label 1."""
    X = align.states(case.model, case.inputs, case.layer)
    K = align.keys(case.model, case.inputs, case.linear)
    return X, K, align.fit(X, labels, source=0, target=1, context=context)


def test_an_edit_is_the_least_squares_solution_in_either_orientation(case, labels, context):
    X, K, alignment = read(case, labels, context)
    hold, ridge, held = 0.3, 1e-2, torch.randn(7, K.shape[1], generator=torch.Generator().manual_seed(5))
    own, goals = [], []
    for x, k, label, where in zip(X.double(), K.double(), labels, context, strict=True):
        if label == 0:
            own.append(k)
            goals.append(X[(labels == 1) & (context == where)].double().mean(0) - x)
    own, goals, others = torch.stack(own), torch.stack(goals), K[labels != 0].double()
    d_in = K.shape[1]
    scale = own.square().sum() / d_in
    rows = torch.cat((own, hold**0.5 * others, hold**0.5 * held.double(), (ridge * scale) ** 0.5 * torch.eye(d_in)))
    wanted = torch.cat((goals, torch.zeros(len(rows) - len(goals), X.shape[1])))
    change = torch.from_numpy(np.linalg.lstsq(rows.numpy(), wanted.numpy(), rcond=None)[0])  # (d_in, d_out)
    before = weights_of(case.model)
    name = f"{case.linear}.weight"
    with alignment.edit(case.model, case.linear, keys=K, hold=hold, ridge=ridge, held=held):
        after = weights_of(case.model)
        moved = align.states(case.model, case.inputs, case.layer)
    assert differing(before, after) == [name]
    lying = change if "c_proj" in name and "h." in name else change.T
    torch.testing.assert_close(after[name], (before[name] + lying).float(), rtol=1e-5, atol=1e-6)
    # and the states of the layer go where the keys say, those at the map's own block being what it adds to
    torch.testing.assert_close(moved, (X + K.double() @ change).float(), rtol=1e-4, atol=1e-4)
    assert (moved - X).norm() > 1e-2


def test_a_square_map_is_changed_alike_whichever_way_it_lies(labels):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

    class Added(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part, self.whole = part, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.whole(x + self.part(x))

    X = torch.randn(N, 16, generator=torch.Generator().manual_seed(7))
    plain, theirs = Added(nn.Linear(16, 16)), Added(conv1d(16, 16))
    with torch.no_grad():
        theirs.part.weight.copy_(plain.part.weight.T)
        theirs.part.bias.copy_(plain.part.bias)
    for model in (plain, theirs):
        states, keys = align.states(model, X, "whole"), align.keys(model, X, "part")
        align.fit(states, labels, source=0, target=1).edit(model, "part", keys=keys)
        assert (align.states(model, X, "whole") - states).norm() > 1e-2
    torch.testing.assert_close(theirs.part.weight, plain.part.weight.T, rtol=1e-5, atol=1e-6)


def test_undoing_brings_back_every_bit_and_every_hook(case, labels, context):
    _, K, alignment = read(case, labels, context)
    before, hooks = weights_of(case.model), hooks_of(case.model)
    handle = alignment.edit(case.model, case.linear, keys=K)
    assert differing(before, weights_of(case.model))
    handle.undo()
    handle.undo()
    assert not differing(before, weights_of(case.model))
    gate = alignment.gate(case.model, case.layer)
    assert hooks_of(case.model) > hooks
    gate.undo()
    assert hooks_of(case.model) == hooks
    with (
        pytest.raises(KeyError),
        alignment.edit(case.model, case.linear, keys=K),
        alignment.gate(case.model, case.layer),
    ):
        raise KeyError
    assert not differing(before, weights_of(case.model)) and hooks_of(case.model) == hooks


def test_edits_are_undone_last_first_and_never_over_later_weights(labels, tokens, context):
    case = Case(plain_model().eval(), tokens, "blocks.0", "blocks.0.linear2")
    _, K, alignment = read(case, labels, context)
    before = weights_of(case.model)
    first, second = (alignment.edit(case.model, case.linear, keys=K) for _ in range(2))
    with pytest.raises(DataError, match=r"undo: expected 'blocks.0.linear2' as it was edited"):
        first.undo()
    second.undo()
    first.undo()
    assert not differing(before, weights_of(case.model))


def test_a_gate_moves_the_source_s_points_by_the_move_and_no_others_by_a_bit(case, labels, context):
    X, _, alignment = read(case, labels, context)
    cells = [(int(a), int(b)) for a, b in zip(labels, context, strict=True)]
    centroids = {cell: X[[own == cell for own in cells]].double().mean(0) for cell in sorted(set(cells))}
    expected, n_moved = X.clone(), 0
    for row, x in enumerate(X.double()):
        label, where = min(centroids, key=lambda cell: float((x - centroids[cell]).square().sum()))
        if label == 0:
            expected[row] = (x + centroids[1, where] - centroids[0, where]).float()
            n_moved += 1
    assert 0 < n_moved < N
    with alignment.gate(case.model, case.layer):
        gated = align.states(case.model, case.inputs, case.layer)
        elsewhere = align.states(case.model, case.inputs, case.layer, position=0)
    with alignment.gate(case.model, case.layer, strength=0.5):
        halfway = align.states(case.model, case.inputs, case.layer)
    assert torch.equal(halfway, alignment.moved(X, strength=0.5)) and not torch.equal(halfway, gated)
    still = (expected == X).all(1)
    assert torch.equal(gated[still], X[still]) and int((~still).sum()) == n_moved
    torch.testing.assert_close(gated, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(elsewhere, align.states(case.model, case.inputs, case.layer, position=0))


def test_a_gate_finds_its_token_by_the_name_of_an_argument(llama, labels, tokens):
    model = copy.deepcopy(llama).eval()
    mask = (torch.arange(T) < 2 + torch.arange(N)[:, None] % 3).long()
    inputs = {"input_ids": tokens, "attention_mask": mask}
    layer = "model.layers.1"
    X = align.states(model, inputs, layer, position="attention_mask")
    alignment = align.fit(X, labels, source=0, target=1)
    with alignment.gate(model, layer, position="attention_mask"):
        gated = align.states(model, inputs, layer, position="attention_mask")
    assert torch.equal(gated, alignment.moved(X)) and not torch.equal(gated, X)
    with alignment.gate(model, layer), pytest.raises(UsageError, match="is padding in layer"):
        model(**inputs)
    # of a model with an argument that is an index a row, given in turn
    ours, ends = own_model().eval(), torch.arange(N) % T
    X = align.states(ours, (tokens, ends), "blocks.1", position=ends)
    alignment = align.fit(X, labels, source=0, target=1)
    with alignment.gate(ours, "blocks.1", position="output_position"):
        assert torch.equal(align.states(ours, (tokens, ends), "blocks.1", position=ends), alignment.moved(X))


def test_fused_blocks_are_gated_and_say_that_they_have_no_keys(labels, tokens):
    model, inputs = own_model().eval(), (tokens, torch.full((N,), T - 1))
    eager = align.fit(align.states(model, inputs, "blocks.1"), labels, source=0, target=1)
    K = align.keys(model, inputs, "blocks.1.mlp_c_proj")
    model.fuse_blocks(True)
    X = align.states(model, inputs, "blocks.1")
    with eager.gate(model, "blocks.1"):
        assert torch.equal(align.states(model, inputs, "blocks.1"), eager.moved(X))
    with eager.edit(model, "blocks.1.mlp_c_proj", keys=K):
        assert not torch.equal(align.states(model, inputs, "blocks.1"), X)
    with pytest.raises(ProbeError, match=r"linear: expected 'blocks.1.mlp_c_proj' to be called.*fuse_blocks\(False\)"):
        align.keys(model, inputs, "blocks.1.mlp_c_proj")


def test_a_gate_lets_the_gradient_through_and_keeps_the_dtype():
    X = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.2, 0.0]], requires_grad=True)
    alignment = align.fit(X, ["a", "b", "a"], source="a", target="b")
    moved = alignment.moved(X.bfloat16())
    assert moved.dtype == torch.bfloat16 and torch.equal(moved[1], X[1].bfloat16())
    torch.testing.assert_close(alignment.moved(X).detach(), torch.tensor([[3.9, 0], [4, 0], [4.1, 0]]))
    torch.testing.assert_close(alignment.moved(X, strength=0.5).detach(), torch.tensor([[1.95, 0], [4, 0], [2.15, 0]]))
    alignment.moved(X).sum().backward()
    assert torch.equal(X.grad, torch.ones_like(X))


def test_what_does_not_fit_is_told(tokens, labels):
    case = Case(plain_model().eval(), tokens, "blocks.0", "blocks.0.linear2")
    X, K, alignment = read(case, labels, None)
    fits = dict(source=0, target=1)
    for wrong, message in (
        (lambda: align.fit(X[:, 0], labels, **fits), r"states: expected \(n, d\).*got shape \(48,\)"),
        (lambda: align.fit(X / 0, labels, **fits), "states: expected finite numbers, got NaN or infinity"),
        (lambda: align.fit(X, labels[1:], **fits), r"labels: expected \(48,\), one for each state, got shape \(47,\)"),
        (lambda: align.fit(X, labels, source=9, target=1), "source: expected one of the labels 0, 1, 2, got 9"),
        (lambda: align.fit(X, labels, source=1, target=1), "target: expected another label than the source's, got 1"),
        (
            lambda: align.fit(X, labels, **fits, context=labels),
            "context: expected the target's states in every .* in 0",
        ),
        (lambda: alignment.moved(X[:, :3]), r"X: expected \(n, 16\), as fitted, got shape \(48, 3\)"),
        (
            lambda: alignment.edit(case.model, case.linear, keys=K[1:]),
            "keys: expected 48, one for each state .* got 47",
        ),
        (lambda: alignment.edit(case.model, case.linear, keys=X), r"keys: expected \(n, 24\), as the map takes them"),
        (lambda: alignment.edit(case.model, case.linear, keys=K / 0), "keys: expected finite numbers, got NaN"),
        (lambda: alignment.edit(case.model, case.linear, keys=0 * K), "keys: expected keys .* not all 0, got zeros"),
        (lambda: alignment.edit(case.model, case.linear, keys=K, held=X), r"held: expected \(n, 24\)"),
        (
            lambda: alignment.edit(case.model, case.linear, keys=K, ridge=0.0),
            "ridge: expected .* above 0, got 1.0 and 0",
        ),
        (
            lambda: alignment.edit(case.model, "head", keys=K),
            "linear: expected one that gives width 16.*got 5 of 'head'",
        ),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            wrong()
        assert isinstance(caught.value, DataError | ShapeError)
    with pytest.raises(UsageError, match=r"linear: expected an nn.Linear or a Conv1D, got LayerNorm 'blocks.0.norm1'"):
        alignment.edit(case.model, "blocks.0.norm1", keys=K)
    with pytest.raises(UsageError, match=r"layer: expected names of the model's modules.*did you mean 'blocks.0'"):
        alignment.gate(case.model, "block.0")
    with pytest.raises(UsageError, match=r"layer: expected the name of one of .* got 'blocks.\*', which 2 match"):
        alignment.gate(case.model, "blocks.*")
    with pytest.raises(UsageError, match="model: expected one that is not compiled"):
        alignment.gate(torch.compile(case.model), case.layer)
    with (
        alignment.gate(case.model, "head"),
        pytest.raises(ShapeError, match=r"layer: expected 'head' .* got \(48, 5\)"),
    ):
        case.model(tokens)
