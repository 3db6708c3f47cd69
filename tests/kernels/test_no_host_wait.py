"""Neighbours and the t-SNE descent on CUDA never wait for the device: shown without a GPU on tensors without memory."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastcluster_lm.kernels.edges import Edges
from fastcluster_lm.kernels.tsne_forces import StepRule, start_descent
from fastcluster_lm.kernels.tsne_forces.cuda import TritonDescent
from fastcluster_lm.scores.engines import _fused_neighbors as engine
from fastcluster_lm.scores.engines.params import NeighborsParams


class NoBlockingCopy(TorchDispatchMode):
    """Refuses copies between a GPU and the host that wait, which tensors without memory let through."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if function is torch.ops.aten._to_copy.default and args[0].is_cuda != out.is_cuda:
            assert out.is_cuda and kwargs.get("non_blocking"), f"a copy to {out.device} waits for the device"
        return out


@pytest.fixture
def no_memory() -> Iterator[None]:
    """Let tensors claim to be on a GPU; whatever reads a value of theirs raises."""
    with FakeTensorMode(), NoBlockingCopy():
        yield


def test_waits_are_seen(no_memory: None) -> None:
    X = torch.empty(3, device="cuda")
    with pytest.raises(DataDependentOutputException):
        bool((X > 0).any())
    for wait in (lambda: X.cpu(), lambda: torch.empty(3).to(X.device)):
        with pytest.raises(AssertionError, match="waits for the device"):
            wait()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_neighbours(dtype: torch.dtype, no_memory: None) -> None:
    X = torch.empty(2, 500, 7, device="cuda", dtype=dtype)
    ids = torch.arange(500, device="cuda")
    for params in (NeighborsParams(90, ids, ids), NeighborsParams(5)):
        for queries in (X, X.clone()):
            found = engine._find(queries, X, params, 2**20)
            assert found.distances.is_cuda and found.distances.dtype == torch.float32
            assert found.indices.shape == (2, 500, params.n_neighbors) and found.indices.dtype == torch.int64


def test_descent(no_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = pytest.importorskip("fastcluster_lm.kernels.tsne_forces.kernel")
    launched = []

    class Launch:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **kwargs: launched.append(grid)

    monkeypatch.setattr(kernel, "tsne_forces_kernel", Launch())
    monkeypatch.setattr(kernel, "tsne_step_kernel", Launch())
    # the guard of a device needs a GPU
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: torch.no_grad())
    start = torch.empty(3, 2, 500, device="cuda")
    flow = (torch.empty(1501, dtype=torch.int64), torch.empty(9, dtype=torch.int32), torch.empty(9))
    edges = Edges(*(torch.empty_like(part, device="cuda") for part in flow))
    descent = start_descent(start, edges)
    assert isinstance(descent, TritonDescent)
    descent.advance(2, StepRule(1.0, 0.5, 1.0, 5.0), torch.ones(3, dtype=torch.bool))
    assert launched == [(32, 3), (2, 3)] * 2
    assert descent.points().is_cuda and descent.gradient_norm().is_cuda
