"""capture_states: on a CPU what plain indexing gives, on fake CUDA tensors the op, its kernel without a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastcluster_lm.errors import DataError
from fastcluster_lm.kernels.capture_states import StateCapture, reference
from fastcluster_lm.model import Evaluator, ModelOutput
from fastcluster_lm.scores.batches import check_finite
from tests.kernels import interpret_capture_states as measured
from tests.kernels.processes import run_script


def capture(layers: list[torch.Tensor], last: torch.Tensor, positions: torch.Tensor) -> StateCapture:
    """Take the layers in turn, the last one where it is computed at the positions alone."""
    taken = StateCapture(layers[0], positions, len(layers) + 1)
    for x in layers:
        taken.add(x)
    taken.add_rows(last)
    return taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [0, 1, 13])
def test_a_cpu_gives_the_bits_of_plain_indexing(batch, dtype):
    generator = torch.Generator().manual_seed(batch)
    layers = [torch.randn(batch, 5, 17, generator=generator).to(dtype).requires_grad_() for _ in range(4)]
    positions = torch.randint(5, (batch,), generator=generator)
    rows = torch.arange(batch)
    taken = capture(layers[:3], layers[3][rows, positions][:, None], positions)
    truth, _ = reference.capture_states(layers, positions)
    assert torch.equal(taken.states(), truth.float()) and not taken.states().requires_grad
    assert taken.sq_norms() is None


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_into_one_graph(backend):
    torch._dynamo.reset()
    layers, positions = [torch.randn(4, 3, 8) for _ in range(2)], torch.tensor([0, 2, 1, 2])
    compiled = torch.compile(lambda *parts: capture(*parts).states(), fullgraph=True, backend=backend)
    parts = layers, layers[1][:, -1:], positions
    assert torch.equal(compiled(*parts), capture(*parts).states())


class Operators(TorchDispatchMode):
    """Notes the names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_on_cuda_each_layer_goes_into_its_slice_with_no_join_and_no_gradient():
    pytest.importorskip("triton")
    with FakeTensorMode(), torch.device("cuda"):
        layers = [torch.empty(6, 5, 17, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        positions = torch.empty(6, dtype=torch.int64)
        with Operators() as seen:
            taken = capture(layers, torch.empty(6, 1, 17, dtype=torch.bfloat16), positions)
            states, sq_norms = taken.states(), taken.sq_norms()
    assert seen.names.count("fclm.capture_states.default") == 4 and not any("cat" in name for name in seen.names)
    assert states.shape == (6, 4, 17) and states.dtype == torch.float32 and states.device.type == "cuda"
    assert sq_norms.shape == (6, 4) and not states.requires_grad and not sq_norms.requires_grad


def test_squared_norms_stand_for_the_pass_over_the_points():
    X = torch.randn(3, 7, 4)
    X[1, 2, 3] = torch.nan
    with pytest.raises(DataError, match="states holds NaN or infinity in layer 1"):
        check_finite(X, "states", sq_norms=X.square().sum(-1))
    # huge values are finite, though their squares are not
    huge = torch.full((1, 2, 3), 1e30)
    check_finite(huge, "states", sq_norms=huge.square().sum(-1))
    # nothing else is looked at
    check_finite(X, "states", sq_norms=torch.ones(3, 7))


@pytest.mark.parametrize("fixed_shape", [True, False])
def test_evaluation_hands_on_the_squared_norms_in_the_order_of_the_points(splits, model, fixed_shape):
    def with_norms(*inputs):
        output = model(*inputs)
        return ModelOutput(output.logits, output.states, output.states.square().sum(-1))

    chosen = splits[1]
    buffer = torch.empty(3, len(chosen), 16)
    found = Evaluator(model, with_norms, 7, fixed_shape=fixed_shape).states_into(chosen, buffer)
    torch.testing.assert_close(found, buffer.square().sum(-1))
    assert Evaluator(model, model, 7, fixed_shape=fixed_shape).states_into(chosen, buffer) is None


def judge(rows: list[dict]) -> None:
    """Hold what `measure` found: on a GPU as in the interpreter."""
    for row in rows:
        assert row["exact"] and row["rerun_equal"] and row["tails"], row
        assert row["norm_error"] <= 1e-6, row


def judge_odd_values(row: dict) -> None:
    # infinity, an overflow of squares, positions beyond the end and before the start
    assert row["finite_norms"] == [True, False, False, False, False, True], row
    assert row["finite_states"] == [True, False, True, False, False, True], row


@pytest.mark.triton
def test_kernel_in_the_interpreter_against_float64():
    pytest.importorskip("triton")
    *rows, odd = run_script("interpret_capture_states.py", TRITON_INTERPRET="1")
    assert len(rows) == len(measured.CASES)
    judge(rows)
    judge_odd_values(odd)


@pytest.mark.gpu
def test_kernel_on_a_gpu_against_float64():
    judge(measured.measure(measured.CASES, "cuda"))
    judge_odd_values(measured.measure_odd_values("cuda"))


@pytest.mark.triton
def test_kernel_compiles_for_gpus_without_spills(tmp_path):
    pytest.importorskip("triton")
    rows = run_script("compile_capture_states.py", TRITON_CACHE_DIR=str(tmp_path))
    # three tiles, two types of number, three GPUs
    assert len(rows) == 18
    for row in rows:
        assert row["stack"] == row["local"] == 0 and row["registers"] <= 64 and row["shared"] <= 2048, row
