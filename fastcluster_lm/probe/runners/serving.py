"""The process beside training's side of a WorkerRunner: build what is probed, and answer; it starts no process."""

import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from fastcluster_lm.errors import FclmError
from fastcluster_lm.probe.pending import ProbeResult
from fastcluster_lm.probe.run_probe import RunProbe
from fastcluster_lm.probe.runners.worker import as_tensors, copies


def serve(connection: Connection, build: Callable[[Any], tuple[RunProbe, torch.nn.Module]]) -> None:
    """Build what a WorkerRunner's setup describes, and answer it until nobody listens.

    Errors that explain themselves are sent, to be raised where training is
    """
    probe: RunProbe | None = None
    model = torch.nn.Module()
    while True:
        try:
            kind, *content = connection.recv()
        except (EOFError, OSError):
            # training is done, or was stopped, in the middle of a message too
            return
        answer: tuple[str, int | None, Any] | None = None
        try:
            if kind == "setup":
                probe, model = build(content[0])
            elif probe is not None:
                answer = _answer(probe, model, kind, *content)
        except FclmError as error:
            answer = "failed", None, error
        if answer is None:
            continue
        try:
            connection.send(answer)
        except OSError:
            return


# nothing here has a gradient; without views and versions of tensors to keep track of, the many small ones cost less
@torch.inference_mode()
def _answer(probe: RunProbe, model: torch.nn.Module, kind: str, *content: Any) -> tuple[str, int | None, Any] | None:
    if kind == "score":
        return "done", content[0], _score(probe, model, *content)
    if kind == "state":
        return "state", None, copies(probe.state())
    if kind == "load":
        probe.load_state(as_tensors(content[0]))
    if kind == "observe":
        batch, states, step = content
        probe.observe(torch.from_numpy(batch), torch.from_numpy(states), step)
    return None


def _score(probe: RunProbe, model: torch.nn.Module, step: int, weights: dict[str, np.ndarray]) -> ProbeResult:
    started = time.perf_counter()
    if weights:
        model.load_state_dict(as_tensors(weights))
    result = probe.score(step)
    return replace(result, seconds=time.perf_counter() - started)
