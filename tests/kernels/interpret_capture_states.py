"""Runs the capture_states kernel on poisoned memory and prints a JSON line a case; it judges nothing.

As a script it runs it in Triton's interpreter; `measure` runs it wherever the tensors are.
"""

import json
from typing import Any

import torch

from fastcluster_lm.kernels.capture_states import op, reference
from tests.kernels.interpret_linear_cross_entropy import padded

# (sequences, tokens, width, layers, dtype)
CASES = [(13, 5, d, 2, "float32") for d in (1, 2, 15, 16, 17)]
CASES += [(1, 1, 3, 1, "float32"), (0, 4, 8, 2, "float32"), (67, 3, 33, 3, "bfloat16"), (7, 3, 129, 2, "float16")]
CASES += [(5, 7, 768, 2, "bfloat16"), (3, 2, 2048, 2, "float32")]
TAIL = 64


def measure(cases: list[tuple], device: str) -> list[dict]:
    """Run every case and compare it with plain torch in float64."""
    rows = []
    for batch, n_tokens, width, n_layers, dtype in cases:
        generator = torch.Generator().manual_seed(batch + width)
        layers = [
            torch.randn(batch, n_tokens, width, generator=generator).to(device, getattr(torch, dtype))
            for _ in range(n_layers)
        ]
        positions = torch.randint(n_tokens, (batch,), generator=generator).to(device)
        cells = batch * n_layers
        # no cell is written beside its own: a tail behind each buffer, and NaN where nothing came
        states_memory, norms_memory = (
            torch.full((count + TAIL,), torch.nan, device=device) for count in (cells * width, cells)
        )
        states = states_memory[: cells * width].view(batch, n_layers, width)
        sq_norms = norms_memory[:cells].view(batch, n_layers)
        runs = []
        for _ in range(10 if width == 17 else 2):
            states.fill_(torch.nan), sq_norms.fill_(torch.nan)
            for layer, x in enumerate(layers):
                inside = padded(x.flatten(0, 1)).unflatten(0, (batch, n_tokens))
                op.launch(inside, padded(positions), states, sq_norms, layer)
            runs.append(torch.cat([states.flatten(), sq_norms.flatten()]))
        truth, norms = reference.capture_states([x.double() for x in layers], positions)
        row: dict[str, Any] = {"case": [batch, n_tokens, width, n_layers, dtype]}
        row["exact"] = torch.equal(states.double(), truth)
        row["norm_error"] = float(((sq_norms - norms) / norms.clamp(min=1e-30)).abs().max()) if cells else 0.0
        row["rerun_equal"] = all(torch.equal(run, runs[0]) for run in runs)
        row["tails"] = bool(states_memory[cells * width :].isnan().all() and norms_memory[cells:].isnan().all())
        rows.append(row)
    return rows


def measure_odd_values(device: str) -> dict:
    """Give what comes of infinity, of values whose squares overflow, and of positions outside the sequence."""
    x = torch.ones(6, 3, 20, device=device)
    x[1, 2, 19], x[2, 2, 0] = torch.inf, 1e30
    positions = torch.tensor([2, 2, 2, 3, -1, 0], device=device)
    states, sq_norms = torch.empty(6, 1, 20, device=device), torch.empty(6, 1, device=device)
    op.launch(x, positions, states, sq_norms, 0)
    return {
        "finite_norms": sq_norms.isfinite().flatten().tolist(),
        "finite_states": states.isfinite().all(-1).flatten().tolist(),
    }


if __name__ == "__main__":
    for line in measure(CASES, "cpu"):
        print(json.dumps(line))
    print(json.dumps(measure_odd_values("cpu")))
