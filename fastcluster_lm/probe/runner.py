"""Where probes run: in the training process, which then waits, or in a process beside it; it scores nothing itself."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import FclmError, ProbeError
from fastcluster_lm.probe.run_probe import ProbeResult, RunProbe


class FinishedProbe(NamedTuple):
    """A probe that is done, of the step after which it was asked for."""

    step: int
    result: ProbeResult


class ProbeRunner(Protocol):
    """Run probes of a model in training, one after the other."""

    def observe(self, batch: Int[Tensor, " B"], states: Float[Tensor, "B layers d"], step: int) -> None:
        """Take what a training step's forward gave."""

    def submit(self, step: int) -> None:
        """Ask for a probe of the weights as they are now; it waits for the probe before."""

    def collect(self, *, wait: bool) -> list[FinishedProbe]:
        """Give the probes that are done and were not given yet, in order; with `wait` all that were asked for."""

    def state(self) -> dict[str, Tensor]:
        """Give all that the next probe depends on, once those asked for are done."""

    def close(self) -> None:
        """End what runs; nothing is collected any more."""


class InlineRunner:
    """Probes run at once, and training waits for them."""

    def __init__(self, probe: RunProbe) -> None:
        self._probe = probe
        self._done: list[FinishedProbe] = []
        self.observe, self.state = probe.observe, probe.state

    def submit(self, step: int) -> None:
        """Score now."""
        self._done.append(FinishedProbe(step, self._probe.score(step)))

    def collect(self, *, wait: bool) -> list[FinishedProbe]:
        """Give what was scored since."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Nothing runs."""


class WorkerRunner:
    """Probes run in a process of their own on copies of the weights; training waits only where one overtakes the other.

    Scores are those of InlineRunner, byte for byte: nothing here depends on when a probe ends
    """

    def __init__(self, entry: str, setup: Mapping[str, Any], probe: RunProbe, model: torch.nn.Module) -> None:
        """Start the process.

        entry is `module:function`, called there with the connection's file descriptor; it takes `setup` from it, builds
        the same probe and model, and calls `serve`. `probe` is asked what it needs and for its state, never to score
        """
        self._probe, self._model = probe, model
        self._pending: list[int] = []
        self._observed: list[tuple[np.ndarray, np.ndarray, int]] = []
        self._done: list[FinishedProbe] = []
        module, function = entry.split(":")
        code = f"import sys; from {module} import {function}; {function}(int(sys.argv[1]))"
        self._connection, theirs = Pipe()
        # found where this process found it; spinning OpenMP threads would take training's core
        env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=env,
            )
        self._send(("setup", dict(setup)))
        self._send(("load", _arrays(probe.state())))

    def observe(self, batch: Int[Tensor, " B"], states: Float[Tensor, "B layers d"], step: int) -> None:
        """Hand the states over, or keep them until the probe that runs is done."""
        if not self._probe.streams:
            return
        self._observed.append((batch.cpu().numpy(), states.cpu().numpy(), step))
        self._receive(wait=False)
        if not self._pending:
            self._hand_over()

    def submit(self, step: int) -> None:
        """Send a copy of the weights, once the probe before is done."""
        self._receive(wait=True)
        self._hand_over()
        weights = self._model.state_dict() if self._probe.needs_weights(step) else None
        self._send(("score", step, None if weights is None else _arrays(weights)))
        self._pending.append(step)

    def collect(self, *, wait: bool) -> list[FinishedProbe]:
        """Give the probes whose results have come."""
        self._receive(wait=wait)
        done, self._done = self._done, []
        return done

    def state(self) -> dict[str, Tensor]:
        """Ask the process for its state."""
        self._receive(wait=True)
        self._hand_over()
        self._send(("state",))
        return _tensors(self._take())

    def close(self) -> None:
        """End the process; it ends by itself once nobody listens."""
        self._connection.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hand_over(self) -> None:
        if self._observed:
            self._send(("observe", self._observed))
            self._observed = []

    def _receive(self, *, wait: bool) -> None:
        while self._pending and (wait or self._connection.poll()):
            result = self._take()
            self._done.append(FinishedProbe(self._pending.pop(0), result))

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._ended() from error

    def _take(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if kind == "failed":
            raise value
        return value

    def _ended(self) -> ProbeError:
        try:
            code: int | None = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            code = None
        return ProbeError(
            f"the probe's process ended with status {code}, and what it printed stands above; training is as it was: "
            "resume the run, with -s probe.worker=off if it lacked memory"
        )


def serve(connection: Connection, probe: RunProbe, model: torch.nn.Module) -> None:
    """Answer a WorkerRunner until nobody listens; errors that explain themselves are its to raise."""
    while True:
        try:
            kind, *content = connection.recv()
        except (EOFError, ConnectionError):
            # training is done, or was stopped
            return
        answer = _answer(probe, model, kind, *content)
        if answer is None:
            continue
        try:
            connection.send(answer)
        except ConnectionError:
            return


def _answer(probe: RunProbe, model: torch.nn.Module, kind: str, *content: Any) -> tuple[str, Any] | None:
    if kind == "score":
        return _score(probe, model, *content)
    if kind == "state":
        return "state", _arrays(probe.state())
    if kind == "load":
        probe.load_state(_tensors(content[0]))
    if kind == "observe":
        for batch, states, step in content[0]:
            probe.observe(torch.from_numpy(batch), torch.from_numpy(states), step)
    return None


def _score(
    probe: RunProbe, model: torch.nn.Module, step: int, weights: dict[str, np.ndarray] | None
) -> tuple[str, ProbeResult | FclmError]:
    started = time.perf_counter()
    if weights is not None:
        model.load_state_dict(_tensors(weights))
    try:
        result = probe.score(step)
    except FclmError as error:
        return "failed", error
    return "done", ProbeResult(result.rows, result.maps, result.warm, time.perf_counter() - started)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
