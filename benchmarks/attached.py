"""`fclm bench attached`: what a probe of many instances takes of an attached loop: processor seconds and memory."""

import os
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from fastcluster_lm.benchmarks.harness import Line, peak_mib, resident_mib
from fastcluster_lm.probe import ClusterProbe
from fastcluster_lm.store import RunFolder

# instances, width and tasks; blocks of the model; instances that its forward takes at once
SHAPE, LAYERS, BATCH = (20_000, 256, 12), 12, 256
# where the probe is computed
WORKERS = ("on", "off")


class Layers(nn.Module):
    """A model whose forward costs a matmul a layer, so that what it takes is little and is told apart."""

    def __init__(self, n_layers: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(4096, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Pass one token's state through all layers."""
        h = self.embed(tokens)
        for block in self.blocks:
            h = torch.relu(block(h)) + h
        return h


def bench_attached(shape: tuple[int, int, int] = SHAPE, workers: Sequence[str] = WORKERS) -> Iterator[Line]:
    """Probe once, beside the loop and within it; the shape is of instances, width and tasks."""
    for worker in workers:
        yield {"bench": "attached", "kind": f"worker {worker}", **_measure(*shape, worker)}


def _measure(n: int, width: int, n_tasks: int, worker: str) -> Line:
    """Measure one probe, from the call to its scores.

    Units:  seconds of this process's threads together (processor) or of the clock (wall); MiB; peak_over_states is the
            memory beyond what was held before, in multiples of the states'
    Notes:  step is the loop's own call, which without a worker computes the scores; process_and_answer_s what this
            process spends until they have come; worker_peak_mib is 0 without a worker
    """
    generator = torch.Generator().manual_seed(0)
    tokens, task = torch.randint(4096, (n,), generator=generator), torch.arange(n) % n_tasks
    torch.manual_seed(0)
    model = Layers(LAYERS, width)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # what the probe costs is told here
        warnings.simplefilter("ignore")
        probe = ClusterProbe(
            model, tokens, task, layers="blocks.*", every=1, out=Path(folder) / "run", worker=worker
        )  # fmt: skip
        with torch.no_grad():
            began = _used()
            for rows in tokens.split(BATCH):
                model(rows)
            forward = _used() - began
        before, began, clock = resident_mib(), _used(), time.perf_counter()
        probe.step(0)
        step, wall = _used() - began, time.perf_counter() - clock
        probe.wait()
        answered, peak = _used() - began - step, peak_mib()
        worker_peak = max((peak_mib(pid) for pid in _children()), default=0.0) if worker == "on" else 0.0
        probe.close()
        (row,) = RunFolder.open(Path(folder) / "run").steps()
    states = 4 * n * LAYERS * width / 2**20
    return {
        "layers": LAYERS,
        "n": n,
        "d": width,
        "classes": n_tasks,
        "worker": worker,
        "states_mib": states,
        "forward_processor_s": forward,
        "step_processor_s": step,
        "step_wall_s": wall,
        "beyond_forward_s": step - forward,
        "process_and_answer_s": answered,
        "peak_over_states": (peak - before) / states,
        "probe_s": row["probe_ms"] / 1e3,
        "worker_peak_mib": worker_peak,
    }


def _used() -> float:
    """Give the processor seconds of this process, all its threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _children() -> list[int]:
    """List the processes that this one has started and that still run, where Linux tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # state and parent stand behind the command's name, which may hold anything
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found
