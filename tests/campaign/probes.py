"""Hundreds of probes in one process: what its memory, its open files and its threads grow by."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from fastcluster_lm.engine import Hooks, start_run
from tests.campaign.children import fork
from tests.campaign.outcome import Outcome
from tests.campaign.tiny import tiny

PROMISE = "Probes leak nothing: memory, open files and threads stay as they are over hundreds of them."
# full probes of a run, its step probes, and those attached to another loop: a third each
TIMES = (180, 1500)
MOST_KIB = 50.0
# the first probes fill caches that stay
WARMING_SHARE = 0.3

# KiB in use, open descriptors, threads
Reading = tuple[int, int, int]


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Take so many probes, a third of each kind; all of a kind hold, or none."""
    each, held, broken, figures = times // 3, 0, [], []
    for name, kind in KINDS.items():
        end = fork(partial(kind, each, folder / name), limit_s=60 + each)
        if not isinstance(end.value, list) or len(end.value) < each:
            broken.append(f"{name}: {end.told()[:500]}")
            continue
        slope, faults = _judge(end.value)
        figures.append(f"{name} {slope:+.1f}")
        broken += [f"{name}, {each} probes: {fault}" for fault in faults]
        held += 0 if faults else each
    figure = f"KiB a probe: {', '.join(figures)} (at most {MOST_KIB:g}); descriptors and threads constant"
    return Outcome("probes in one process", 3 * each, held, figure, broken)


def _judge(readings: list[Reading]) -> tuple[float, list[str]]:
    """Fit what memory grows by a probe once the process is warm, and say what grew."""
    warm = np.array(readings[int(len(readings) * WARMING_SHARE) :])
    slope = float(np.polyfit(np.arange(len(warm)), warm[:, 0], 1)[0])
    faults = [f"memory grew by {slope:.1f} KiB a probe"] if slope > MOST_KIB else []
    for column, what in ((1, "open descriptors"), (2, "threads")):
        if (low := warm[:, column].min()) != (high := warm[:, column].max()):
            faults.append(f"{what} went from {low} to {high}")
    return slope, faults


def _reading() -> Reading:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = dict(line.split(":", 1) for line in status.splitlines())
    # not what files are mapped: that the kernel may drop and bring back as it likes
    return int(found["RssAnon"].split()[0]), len(os.listdir("/proc/self/fd")), int(found["Threads"])


def _full_probes(count: int, path: Path) -> list[Reading]:
    # the closest that full probes may stand, and a cold map now and then
    return _of_run(count, path, every=10, full_every=10, source="fresh")


def _step_probes(count: int, path: Path) -> list[Reading]:
    return _of_run(count, path, every=1, full_every=50, source="batch")


def _of_run(count: int, path: Path, *, every: int, full_every: int, source: str) -> list[Reading]:
    readings: list[Reading] = []

    def read(row: dict, scores: object) -> None:
        if row["step"] % every == 0:
            readings.append(_reading())

    config = tiny(source, steps=every * count)
    config = replace(
        config,
        training=replace(config.training, checkpoint_every=20 * every, keep_checkpoints=2, eval_every=20 * every),
        probe=replace(config.probe, every=every, full_every=full_every),
    )
    start_run(config, path, Hooks(on_step=read))
    return readings


def _attached_probes(count: int, path: Path) -> list[Reading]:
    import torch
    from torch import nn

    from fastcluster_lm import ClusterProbe
    from fastcluster_lm.config import ScoresConfig

    word, x = (part.flatten() for part in torch.meshgrid(torch.arange(12), torch.arange(4), indexing="ij"))
    task, answer = word % 3, (x * (word % 3 + 1) + word % 3) % 4
    tokens = torch.stack([word, x + 12], 1)
    made = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3, generator=made)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    labels = {"task": task, "distribution": word, "input": x, "output": answer}
    scores = ScoresConfig(n_init=1, n_iter=10, warm_iter=4, n_nulls=2, n_neighbors=1, perplexity=5.0)
    readings: list[Reading] = []
    with ClusterProbe(model, tokens, labels, layers=["0", "1", "2"], every=1, out=path, scores=scores) as probe:
        for step in range(count):
            probe.step(step)
            loss = nn.functional.cross_entropy(model(tokens)[:, -1], answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            readings.append(_reading())
    return readings


KINDS: dict[str, Callable[[int, Path], list[Reading]]] = {
    "full": _full_probes,
    "step": _step_probes,
    "attached": _attached_probes,
}
