"""transformer_block against float64, every gradient by name; its registration, its threads, what it refuses."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.transformer_block import BlockWeights, fits, op, reference, transformer_block
from tests.kernels.memory import assert_ten_equal, poisoned
from tests.tolerances import TRANSFORMER_BLOCK

pytestmark = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])


def draw(
    batch: int, tokens: int, width: int, inner: int, queries: int = 0
) -> tuple[Tensor, Tensor | None, BlockWeights]:
    """Give activations, positions of queries if there are to be some, and weights whose norms are not 1 and 0."""
    generator = torch.Generator().manual_seed(batch + tokens + width)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    shapes = ((width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,))
    shapes += ((width,), (width,), (inner, width), (inner,), (width, inner), (width,))
    weights = BlockWeights(*(some(*shape) for shape in shapes))
    weights = weights._replace(ln_1=1 + weights.ln_1, ln_2=1 + weights.ln_2)
    positions = torch.randint(tokens, (batch, queries), generator=generator) if queries else None
    return some(batch, tokens, width) * 4, positions, weights


def with_gradients(
    function, x: Tensor, positions: Tensor | None, weights: BlockWeights, n_heads: int
) -> dict[str, Tensor]:
    """Give the output and every gradient, by name."""
    x = x.detach().requires_grad_()
    weights = BlockWeights(*(weight.detach().requires_grad_() for weight in weights))
    y = function(x, positions, weights, n_heads)
    # a gradient that differs from cell to cell
    dy = torch.sin(torch.arange(y.numel())).view_as(y).to(y.dtype)
    found = torch.autograd.grad((y * dy).sum(), (x, *weights))
    return {"y": y.detach(), **dict(zip(("x", *BlockWeights._fields), found, strict=True))}


@pytest.mark.parametrize("queries", [0, 1, 3])
@pytest.mark.parametrize(
    ("batch", "tokens", "width", "inner", "n_heads"),
    [(1, 1, 8, 8, 1), (3, 5, 32, 128, 2), (13, 7, 48, 40, 3), (97, 11, 16, 64, 2), (2, 67, 64, 8, 8)],
)
def test_output_and_gradients_are_no_further_from_the_truth_than_plain_torch(
    batch, tokens, width, inner, n_heads, queries
):
    x, positions, weights = draw(batch, tokens, width, inner, queries)
    doubles = BlockWeights(*(weight.double() for weight in weights))
    truth = with_gradients(reference.transformer_block, x.double(), positions, doubles, n_heads)
    plain = with_gradients(reference.transformer_block, x, positions, weights, n_heads)
    with poisoned():
        ours = with_gradients(transformer_block, x, positions, weights, n_heads)
    for name, true in truth.items():
        scale = float(true.abs().max())
        error, budget = float((ours[name] - true).abs().max()), float((plain[name] - true).abs().max())
        assert error <= budget + TRANSFORMER_BLOCK * scale, (name, error, budget, scale)


def test_large_values_stay_finite():
    x, _, weights = draw(2, 5, 16, 32)
    found = with_gradients(transformer_block, x * 1e4, None, BlockWeights(*(w * 30 for w in weights)), 2)
    assert all(bool(value.isfinite().all()) for value in found.values())
    truth = with_gradients(
        reference.transformer_block, x.double() * 1e4, None, BlockWeights(*(w.double() * 30 for w in weights)), 2
    )
    torch.testing.assert_close(found["y"].double(), truth["y"], rtol=1e-4, atol=1e-4 * float(truth["y"].abs().max()))


def test_a_query_sees_nothing_behind_its_position():
    x, positions, weights = draw(3, 6, 16, 32, 2)
    positions = torch.tensor([[0, 2], [2, 2], [1, 0]])
    y = transformer_block(x, positions, weights, 2)
    other = x.clone()
    other[:, 3:] = torch.nan
    assert torch.equal(y, transformer_block(other, positions, weights, 2))
    # and the whole block, at these positions
    whole = transformer_block(x, None, weights, 2)
    torch.testing.assert_close(y, whole.gather(1, positions[:, :, None].expand(-1, -1, 16)), rtol=0, atol=0)


@pytest.mark.parametrize("queries", [0, 2])
def test_a_sequences_results_do_not_depend_on_those_beside_it(queries):
    x, positions, weights = draw(41, 5, 32, 64, queries)
    with torch.no_grad():
        whole = transformer_block(x, positions, weights, 2)
        for chosen in (slice(0, 1), slice(7, 30)):
            part = transformer_block(x[chosen], None if positions is None else positions[chosen], weights, 2)
            assert torch.equal(part, whole[chosen])
    assert torch.equal(whole, transformer_block(x, positions, weights, 2).detach()), "keeping something changes nothing"


def test_no_bit_depends_on_the_threads_and_ten_runs_are_equal():
    x, positions, weights = draw(300, 5, 16, 32, 2)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(with_gradients(transformer_block, x, positions, weights, 2))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(value, found[0][name]) for name, value in other.items())
    assert_ten_equal(lambda: tuple(with_gradients(transformer_block, x, positions, weights, 2).values()))


def test_ops_are_registered_as_torch_wants_them():
    for queries in (0, 2):
        x, positions, weights = draw(5, 4, 16, 24, queries)
        own = tuple(weight.requires_grad_() for weight in weights)
        for keep in (True, False):
            opcheck(torch.ops.fclm.transformer_block.default, (x, positions, *(w.detach() for w in own), 2, keep))
        opcheck(torch.ops.fclm.transformer_block.default, (x.requires_grad_(), positions, *own, 2, True))
        y, kept = op._forward(x.detach(), positions, weights, 2, keep=True)
        plain = [weight.detach() for weight in weights]
        opcheck(
            torch.ops.fclm.transformer_block_backward.default,
            (torch.rand_like(y), x.detach(), positions, plain, kept.detach(), 2),
        )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("queries", [0, 2])
def test_compiles_into_one_graph_of_the_same_bits(backend, queries):
    torch._dynamo.reset()
    drawn = (*draw(6, 5, 16, 32, queries), 2)
    compiled = torch.compile(transformer_block, fullgraph=True, backend=backend)
    plain = with_gradients(transformer_block, *drawn)
    for name, value in with_gradients(compiled, *drawn).items():
        assert torch.equal(value, plain[name]), name


def test_unfit_arguments_are_refused():
    x, _, weights = draw(2, 3, 16, 32)
    assert fits(16, 32, 2) and not fits(16, 32, 4) and not fits(16, 30, 2) and not fits(16, 32, 3)
    with pytest.raises(ShapeError, match="4 heads; the widths of a head and of the MLP must be multiples of 8"):
        transformer_block(x, None, weights, 4)
    with pytest.raises(DataError, match="x is torch.float64 on cpu; expected float32"):
        transformer_block(x.double(), None, weights, 2)
    with pytest.raises(DataError, match="positions run from 1 to 3; expected 0 to 2"):
        transformer_block(x, torch.tensor([[1], [3]]), weights, 2)
    with pytest.raises(ValueError, match="expected a contiguous torch.float32 CPU tensor"):
        transformer_block(x, None, weights._replace(fc=weights.fc.double()), 2)
