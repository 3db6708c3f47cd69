"""Where probes run: in the training process, which then waits, or in a process beside it; it scores nothing itself."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import FclmError, ProbeError
from fastcluster_lm.probe.run_probe import ProbeResult, RunProbe

# probes that training may be ahead of the process beside it, and bytes of weights and states copied for them
LEAD, LEAD_BYTES = 4, 2**28


class FinishedProbe(NamedTuple):
    """A probe that is done, of the step after which it was asked for."""

    step: int
    result: ProbeResult


class SavedState(NamedTuple):
    """All that the next probe depends on, behind the probes asked for before it."""

    tensors: dict[str, Tensor]


Event = FinishedProbe | SavedState


class ProbeRunner(Protocol):
    """Run probes of a model in training, one after the other."""

    def observe(self, batch: Int[Tensor, " B"], states: Float[Tensor, "B layers d"], step: int) -> None:
        """Take what a training step's forward gave."""

    def submit(self, step: int) -> None:
        """Ask for a probe of the weights as they are now; it waits for the probe before."""

    def save(self) -> None:
        """Ask for the state that the next probe would begin from."""

    def collect(self, *, wait: bool) -> list[Event]:
        """Give what is done and was not given yet, in the order it was asked for; with `wait` all of it."""

    def close(self) -> None:
        """End what runs; nothing is collected any more."""


class InlineRunner:
    """Probes run at once, and training waits for them."""

    def __init__(self, probe: RunProbe) -> None:
        self._probe = probe
        self._done: list[Event] = []
        self.observe = probe.observe

    def submit(self, step: int) -> None:
        """Score now."""
        self._done.append(FinishedProbe(step, self._probe.score(step)))

    def save(self) -> None:
        """Take the state as it is."""
        self._done.append(SavedState(self._probe.state()))

    def collect(self, *, wait: bool) -> list[Event]:
        """Give what was done since."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Nothing runs."""


class WorkerRunner:
    """Probes run in a process of their own on copies of the weights; training waits only where they fall behind.

    Scores are those of InlineRunner, byte for byte: nothing here depends on when a probe ends
    """

    def __init__(self, entry: str, setup: Mapping[str, Any], probe: RunProbe, model: torch.nn.Module) -> None:
        """Start the process.

        entry is `module:function`, called there with the connection's file descriptor; it takes `setup` from it, builds
        the same probe and model, and calls `serve`. `probe` is asked what it needs and for its state, never to score
        Errors: ProbeError if the process cannot be started
        """
        self._probe, self._model = probe, model
        # what was asked for and has not come: the step of a probe, None for the state; and the bytes sent for it
        self._pending: deque[tuple[int | None, int]] = deque()
        self._bytes = 0
        self._done: list[Event] = []
        # a thread sends, so that training goes on while the process starts or takes in large weights
        self._sender = ThreadPoolExecutor(1, "probe-sender")
        self._sending: Future[None] | None = None
        module, function = entry.split(":")
        code = f"import sys; from {module} import {function}; {function}(int(sys.argv[1]))"
        self._connection, theirs = Pipe()
        # found where this process found it; spinning OpenMP threads would take training's core
        env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            command = [sys.executable, "-P", "-c", code, str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=env)
            except OSError as error:
                raise ProbeError(
                    f"the probe's process cannot be started: {error.strerror or error}; set probe.worker=off"
                ) from error
        self._send("setup", dict(setup))
        self._send("load", _copies(probe.state()))

    def observe(self, batch: Int[Tensor, " B"], states: Float[Tensor, "B layers d"], step: int) -> None:
        """Hand a copy of the states over."""
        if self._probe.streams:
            self._send("observe", _copy(batch), _copy(states), step)

    def submit(self, step: int) -> None:
        """Send a copy of the weights; wait where the process is more than LEAD probes behind, or LEAD_BYTES."""
        while len(self._pending) >= LEAD or (self._pending and sum(size for _, size in self._pending) > LEAD_BYTES):
            self._receive_one()
        weights = self._model.state_dict() if self._probe.needs_weights(step) else {}
        self._send("score", step, _copies(weights))
        self._expect(step)

    def save(self) -> None:
        """Ask the process for its state."""
        self._send("state")
        self._expect(None)

    def collect(self, *, wait: bool) -> list[Event]:
        """Give what has come."""
        while self._pending and (wait or self._connection.poll()):
            self._receive_one()
        done, self._done = self._done, []
        return done

    @property
    def behind(self) -> int:
        """How many things were asked for that have not come."""
        return len(self._pending)

    @property
    def process_id(self) -> int:
        """The process beside training."""
        return self._process.pid

    def close(self) -> None:
        """End the process, in the middle of a probe too: it keeps nothing."""
        self._process.kill()
        self._process.wait()
        self._sender.shutdown()
        self._connection.close()

    def _expect(self, step: int | None) -> None:
        self._pending.append((step, self._bytes))
        self._bytes = 0

    def _receive_one(self) -> None:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if kind == "failed":
            raise value
        step, _ = self._pending.popleft()
        self._done.append(SavedState(_tensors(value)) if step is None else FinishedProbe(step, value))

    def _send(self, *message: Any) -> None:
        if self._sending is not None and self._sending.done() and self._sending.exception() is not None:
            raise self._ended() from self._sending.exception()
        self._bytes += sum(_size(part) for part in message)
        self._sending = self._sender.submit(self._connection.send, message)

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
        return "state", _copies(probe.state())
    if kind == "load":
        probe.load_state(_tensors(content[0]))
    if kind == "observe":
        batch, states, step = content
        probe.observe(torch.from_numpy(batch), torch.from_numpy(states), step)
    return None


def _score(
    probe: RunProbe, model: torch.nn.Module, step: int, weights: dict[str, np.ndarray]
) -> tuple[str, ProbeResult | FclmError]:
    started = time.perf_counter()
    if weights:
        model.load_state_dict(_tensors(weights))
    try:
        result = probe.score(step)
    except FclmError as error:
        return "failed", error
    return "done", ProbeResult(result.rows, result.maps, result.warm, time.perf_counter() - started)


def _copy(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to the host, since its owner may go on to write into it."""
    return np.array(tensor.detach().cpu())


def _size(part: Any) -> int:
    arrays = part.values() if isinstance(part, dict) else [part]
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: _copy(tensor) for name, tensor in tensors.items()}


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
