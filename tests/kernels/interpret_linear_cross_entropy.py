"""Runs the linear_cross_entropy kernels on poisoned memory and prints a JSON line a case; it judges nothing.

As a script it runs them in Triton's interpreter; `measure` runs them wherever the tensors are.
"""

import json
import sys
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from fastcluster_lm.kernels.linear_cross_entropy import op

# (rows, vocabulary, width, dtype, programs, scale of the logits)
CASES = [(97, 131, d, "float32", 256, 1.0) for d in (1, 2, 15, 16, 17)]
CASES += [(97, 131, 33, "bfloat16", 256, 1.0), (65, 70, 16, "float16", 256, 1.0)]
# few programs, so that one walks through several tiles, its largest logit growing on the way
CASES += [(67, 331, 17, "float32", 2, 30.0), (67, 331, 17, "bfloat16", 2, 30.0)]
CASES += [(1, 1, 3, "float32", 256, 1.0), (0, 5, 8, "float32", 256, 1.0), (1, 67, 131, "float32", 256, 1.0)]
WIDE_CASES = [(37, 67, d, dtype, 256, 1.0) for d in (768, 2048) for dtype in ("float32", "bfloat16")]
TAIL = 64


@contextmanager
def poisoned_memory():
    """Let torch.empty give NaN or -7 with a tail that nobody may write; yields the tails."""
    plain, tails = torch.empty, []

    def empty(*shape: int, **options: Any) -> torch.Tensor:
        count = torch.Size(shape).numel()
        buffer = plain(count + TAIL, **options)
        buffer.fill_(torch.nan if buffer.is_floating_point() else -7)
        tails.append(buffer[count:])
        return buffer[:count].view(shape)

    torch.empty = empty
    try:
        yield tails
    finally:
        torch.empty = plain


def padded(X: torch.Tensor) -> torch.Tensor:
    """Put a matrix or vector inside a larger block of NaN (of -7 for numbers), so that a read outside it shows."""
    fill = torch.nan if X.is_floating_point() else -7
    block = torch.full([length + 5 if X.ndim == 2 else length + 64 for length in X.shape], fill).to(X)
    inner = block[tuple(slice(length) for length in X.shape)]
    inner.copy_(X)
    return inner


def apart(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Give the largest error as a share of the largest true value."""
    scale = float(truth.abs().max()) if truth.numel() else 0.0
    return float((found.double() - truth).abs().max()) / (scale or 1.0) if truth.numel() else 0.0


def plain_gradients(X: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, grads: torch.Tensor) -> list:
    """Give losses and gradients as plain torch computes them in the tensors' own precision."""
    X, weight = X.detach().requires_grad_(), weight.detach().requires_grad_()
    losses = F.cross_entropy(F.linear(X, weight), targets, reduction="none")
    return [losses.detach(), *torch.autograd.grad(losses, (X, weight), grads.to(losses.dtype))]


def run_kernels(X: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, grads: torch.Tensor) -> list:
    """Give losses and gradients by the three kernels."""
    losses, peaks, log_sums = op.launch(X, weight, targets)
    saved = (X, weight, targets, grads, padded(peaks), padded(log_sums))
    return [losses, op.launch_hidden_gradient(*saved), op.launch_weight_gradient(*saved)]


def measure(cases: list[tuple], device: str) -> list[dict]:
    """Run every case once, with its errors beside those of plain torch in the same dtype."""
    rows = []
    for n, v, width, dtype, programs, scale in cases:
        generator = torch.Generator().manual_seed(n + v + width)
        X = torch.randn(n, width, generator=generator).mul(scale / width**0.5).to(device, getattr(torch, dtype))
        weight = torch.randn(v, width, generator=generator).to(device, getattr(torch, dtype))
        targets = torch.randint(v, (n,), generator=generator)
        targets[: min(n, 2)] = torch.tensor([0, v - 1])[:n]
        targets, grads = targets.to(device), torch.randn(n, generator=generator).to(device)
        usual, op.PROGRAMS = op.PROGRAMS, programs
        with poisoned_memory() as tails:
            found = run_kernels(padded(X), padded(weight), padded(targets), padded(grads))
        op.PROGRAMS = usual
        truth = plain_gradients(X.double(), weight.double(), targets, grads.double())
        plain = plain_gradients(X, weight, targets, grads)
        row: dict[str, Any] = {"case": [n, v, width, dtype, programs, scale]}
        row["tails"] = all(bool((tail.isnan() if tail.is_floating_point() else tail == -7).all()) for tail in tails)
        row["dtypes"] = [str(tensor.dtype).removeprefix("torch.") for tensor in found]
        row["complete"] = all(
            bool(one.isfinite().all()) and one.shape == two.shape for one, two in zip(found, truth, strict=True)
        )
        names = ("losses", "gradient of X", "gradient of weight")
        row["errors"] = {name: apart(*pair) for name, *pair in zip(names, found, truth, strict=True)}
        row["plain_errors"] = {name: apart(*pair) for name, *pair in zip(names, plain, truth, strict=True)}
        rows.append(row)
    return rows


def measure_reruns(device: str) -> dict:
    """Run one case ten times and say whether all are equal, and what a target outside the vocabulary gives."""
    generator = torch.Generator().manual_seed(0)
    X, weight = (
        torch.randn(67, 17, generator=generator).to(device),
        torch.randn(131, 17, generator=generator).to(device),
    )
    targets, grads = torch.randint(131, (67,), generator=generator).to(device), torch.ones(67, device=device)
    runs = [run_kernels(X, weight, targets, grads) for _ in range(10)]
    equal = all(torch.equal(one, two) for run in runs[1:] for one, two in zip(runs[0], run, strict=True))
    targets[3], targets[5] = 131, -1
    return {"ten_equal": equal, "nan_rows": op.launch(X, weight, targets)[0].isnan().nonzero()[:, 0].tolist()}


if __name__ == "__main__":
    for line in measure(WIDE_CASES if "wide" in sys.argv else CASES, "cpu"):
        print(json.dumps(line))
    print(json.dumps(measure_reruns("cpu")))
