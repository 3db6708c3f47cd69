"""linear_cross_entropy on a CPU against float64, its registration, its memory; the kernels without a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.linear_cross_entropy import linear_cross_entropy, op, reference
from tests.kernels import interpret_linear_cross_entropy as measured
from tests.kernels.processes import run_script
from tests.tolerances import LAST_ROUNDING, LINEAR_CROSS_ENTROPY


def draw(n: int, v: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Give rows, head and targets, the first and last token among them."""
    generator = torch.Generator().manual_seed(n + v + width)
    X = torch.randn(n, width, generator=generator).to(dtype)
    weight = torch.randn(v, width, generator=generator).to(dtype)
    targets = torch.randint(v, (n,), generator=generator)
    targets[: min(n, 2)] = torch.tensor([0, v - 1])[:n]
    return X, weight, targets


def with_gradients(function, X: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Give a loss and its gradients by name."""
    X, weight = X.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = function(X, weight, targets)
    # not 1, so that a gradient that forgets what came before it shows
    dX, dweight = torch.autograd.grad(loss * 3, (X, weight))
    return {"loss": loss.detach(), "gradient of X": dX, "gradient of weight": dweight}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 64])
@pytest.mark.parametrize(("n", "v"), [(1, 1), (1, 67), (97, 131)])
def test_loss_and_gradients_are_no_further_from_the_truth_than_plain_torch(n, v, width, dtype, monkeypatch):
    # tiles of 29 rows and 20 tokens, the last ones cut short
    monkeypatch.setattr(op, "TILE_ROWS", 29)
    monkeypatch.setattr(op, "TILE_BYTES", 4 * 29 * 20)
    X, weight, targets = draw(n, v, width, dtype)
    truth = with_gradients(reference.linear_cross_entropy, X.double(), weight.double(), targets)
    plain = with_gradients(reference.linear_cross_entropy, X, weight, targets)
    ours = with_gradients(linear_cross_entropy, X, weight, targets)
    assert ours["loss"].dtype == torch.float32 and ours["gradient of X"].dtype == dtype
    for name, true in truth.items():
        scale = float(true.abs().max()) or 1.0
        error, budget = float((ours[name] - true).abs().max()), float((plain[name] - true).abs().max())
        assert error <= budget + LINEAR_CROSS_ENTROPY * scale, (name, error, budget, scale)


def test_no_rows_give_nan_and_gradients_of_zero():
    found = with_gradients(linear_cross_entropy, *draw(0, 5, 3))
    assert found["loss"].isnan() and torch.equal(found["gradient of weight"], torch.zeros(5, 3))
    assert found["gradient of X"].shape == (0, 3)


def test_large_logits_and_rows_of_minus_infinity_before_finite_ones(monkeypatch):
    monkeypatch.setattr(op, "TILE_BYTES", 4 * 3 * 2)
    X, weight, targets = draw(3, 8, 4)
    found = with_gradients(linear_cross_entropy, X * 1e3, weight, targets)
    truth = with_gradients(reference.linear_cross_entropy, X.double() * 1e3, weight.double(), targets)
    for name, true in truth.items():
        torch.testing.assert_close(found[name].double(), true, rtol=1e-5, atol=1e-5 * float(true.abs().max()))
    huge = torch.full((1, 1), 3e38), torch.tensor([[-3e38], [-3e38], [1e-38], [2e-38]]), torch.tensor([2])
    assert torch.isclose(linear_cross_entropy(*huge), F.cross_entropy(F.linear(*huge[:2]), huge[2]))


def test_ten_runs_are_equal():
    drawn = draw(97, 131, 17)
    first = with_gradients(linear_cross_entropy, *drawn)
    for _ in range(9):
        assert all(
            torch.equal(value, first[name]) for name, value in with_gradients(linear_cross_entropy, *drawn).items()
        )


def test_a_gradient_that_is_not_needed_is_not_computed(monkeypatch):
    asked = []
    plain = op._gradients
    monkeypatch.setattr(op, "_gradients", lambda *rest: asked.append(rest[-2:]) or plain(*rest))
    X, weight, targets = draw(5, 7, 3)
    linear_cross_entropy(X.requires_grad_(), weight, targets).backward()
    assert asked == [(True, False)] and weight.grad is None
    linear_cross_entropy(X.detach(), weight.requires_grad_(), targets).backward()
    assert asked[1:] == [(False, True)] and weight.grad.abs().sum() > 0


def test_ops_are_registered_as_torch_wants_them():
    X, weight, targets = draw(9, 7, 3)
    opcheck(torch.ops.fclm.linear_cross_entropy.default, (X.requires_grad_(), weight.requires_grad_(), targets))
    _, peaks, log_sums = op._losses(X, weight, targets)
    saved = torch.rand(9), X.detach(), weight.detach(), targets, peaks.detach(), log_sums.detach()
    opcheck(torch.ops.fclm.linear_cross_entropy_backward.default, (*saved, True, False))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_into_one_graph(backend):
    torch._dynamo.reset()
    drawn = draw(9, 7, 3)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend=backend)
    plain = with_gradients(linear_cross_entropy, *drawn)
    for name, value in with_gradients(compiled, *drawn).items():
        assert torch.equal(value, plain[name]), name


def test_no_tensor_is_larger_than_a_tile_or_an_argument(monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, Tensor):
                    self.seen = max(self.seen, tensor.numel())
            return result

    monkeypatch.setattr(op, "TILE_BYTES", 4 * 2048)
    X, weight, targets = draw(64, 1031, 4)
    with Largest() as ours:
        with_gradients(linear_cross_entropy, X, weight, targets)
    with Largest() as plain:
        with_gradients(reference.linear_cross_entropy, X, weight, targets)
    assert ours.seen == weight.numel() and plain.seen == 64 * 1031


@pytest.mark.parametrize("target", [-1, 7])
def test_a_target_outside_the_vocabulary_is_refused(target):
    X, weight, targets = draw(5, 7, 3)
    targets[3] = target
    with pytest.raises(DataError, match="expected 0 to 6"):
        linear_cross_entropy(X, weight, targets)


def test_unfit_arguments_are_refused():
    X, weight, targets = draw(5, 7, 3)
    with pytest.raises(ShapeError, match=r"weight \(7, 2\)"):
        linear_cross_entropy(X, weight[:, :2], targets)
    with pytest.raises(ShapeError, match=r"targets \(4,\)"):
        linear_cross_entropy(X, weight, targets[:4])
    with pytest.raises(DataError, match="at least one token"):
        linear_cross_entropy(X, weight[:0], targets)
    with pytest.raises(DataError, match="float64"):
        linear_cross_entropy(X.double(), weight.double(), targets)
    with pytest.raises(DataError, match="int32"):
        linear_cross_entropy(X, weight, targets.int())


def judge(rows: list[dict]) -> None:
    """Hold what `measure` found against plain torch's own errors: on a GPU as in the interpreter."""
    for row in rows:
        assert row["tails"] and row["complete"], row
        assert row["dtypes"] == ["float32", row["case"][3], row["case"][3]], row
        rounding = LAST_ROUNDING * torch.finfo(getattr(torch, row["case"][3])).eps
        for name, error in row["errors"].items():
            least = 0.0 if name == "losses" else rounding
            assert error <= max(row["plain_errors"][name], least) + LINEAR_CROSS_ENTROPY, (name, row)


def judge_reruns(row: dict) -> None:
    assert row == {"ten_equal": True, "nan_rows": [3, 5]}, row


@pytest.mark.triton
def test_kernels_in_the_interpreter_against_float64():
    pytest.importorskip("triton")
    *rows, reruns = run_script("interpret_linear_cross_entropy.py", TRITON_INTERPRET="1")
    assert len(rows) == len(measured.CASES)
    judge(rows)
    judge_reruns(reruns)


@pytest.mark.triton
@pytest.mark.slow
def test_wide_rows_in_the_interpreter_against_float64():
    pytest.importorskip("triton")
    *rows, _ = run_script("interpret_linear_cross_entropy.py", "wide", TRITON_INTERPRET="1")
    assert len(rows) == len(measured.WIDE_CASES)
    judge(rows)


@pytest.mark.gpu
def test_kernels_on_a_gpu_against_float64():
    judge(measured.measure(measured.CASES + measured.WIDE_CASES, "cuda"))
    judge_reruns(measured.measure_reruns("cuda"))


def judge_needs(rows: list[dict]) -> None:
    for row in rows:
        assert row["stack"] == row["local"] == 0, f"spills: {row}"
        assert row["registers"] <= 232 and row["shared"] <= 96 * 2**10, row


# the forward, and two gradients with two widths of tile, three for 16-bit inputs, on three architectures
@pytest.mark.triton
@pytest.mark.parametrize(("dtype", "launches"), [("float32", 15), ("bfloat16", 21)])
def test_kernels_compile_for_gpus_without_spills(dtype, launches, tmp_path):
    pytest.importorskip("triton")
    rows = run_script("compile_linear_cross_entropy.py", "80,90,100", dtype, TRITON_CACHE_DIR=str(tmp_path))
    assert len(rows) == launches
    judge_needs(rows)


@pytest.mark.triton
@pytest.mark.slow
def test_kernels_compile_for_float16_without_spills(tmp_path):
    pytest.importorskip("triton")
    judge_needs(run_script("compile_linear_cross_entropy.py", "80,90,100", "float16", TRITON_CACHE_DIR=str(tmp_path)))


def test_a_row_without_a_target_counts_as_in_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    X, weight = torch.randn(9, 5, generator=generator), torch.randn(7, 5, generator=generator)
    targets = torch.randint(0, 7, (9,), generator=generator)
    targets[[0, 4, 8]] = -100
    ours, theirs = ([part.clone().requires_grad_() for part in (X, weight)] for _ in range(2))
    one = linear_cross_entropy(*ours, targets)
    other = F.cross_entropy(theirs[0] @ theirs[1].T, targets)
    one.backward(), other.backward()
    torch.testing.assert_close(one, other)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert ours[0].grad[4].abs().sum() == 0 < ours[0].grad[1].abs().sum()
