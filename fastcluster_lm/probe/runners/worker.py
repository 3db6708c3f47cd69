"""Run probes in a process beside training, on copies of the weights; it scores nothing itself."""

import select
import subprocess
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import FclmError, ProbeError
from fastcluster_lm.probe.run_probe import RunProbe
from fastcluster_lm.probe.runners.patience import Patience
from fastcluster_lm.probe.runners.process import WorkerProcess
from fastcluster_lm.probe.runners.runner import Event, FinishedProbe, SavedState

# probes and states that training may be ahead of the process beside it, and bytes that may wait to be sent there
LEAD, LEAD_BYTES = 4, 2**28
# more of them, as long as all take no longer than so many seconds, for which training waits when it is stopped: a small
# model takes hundreds of steps while the process starts
LONGEST_LEAD, LEAD_SECONDS = 16, 5.0


class WorkerRunner:
    """Score probes in a process of their own, on copies of the weights; training waits only where they fall behind.

    Notes: scores are those of InlineRunner, byte for byte: nothing here depends on when a probe ends. Training puts
           messages (setup, load, observe, score, state) in a queue that a thread sends in order; the process answers
           each score and state in the same order, so that what was asked for first comes first
    """

    def __init__(
        self,
        worker: WorkerProcess,
        setup: Mapping[str, Any],
        probe: RunProbe,
        model: torch.nn.Module,
        *,
        timeout_s: float = 300.0,
    ) -> None:
        """Give a process its work, and end it with this runner.

        What it runs takes `setup` from the connection, builds the same probe and model, and calls `serve`. `probe` is
        asked what it needs and for its state, never to score; timeout_s is the limit of a Patience
        """
        self._probe, self._model = probe, model
        # what was asked for and has not come: the step of a probe, None for the state
        self._pending: deque[int | None] = deque()
        self._done: list[Event] = []
        self._failure: FclmError | None = None
        # that the last probe took
        self._seconds = 0.0
        # a thread sends, so that training goes on while the process starts or takes in large weights
        self._sender = ThreadPoolExecutor(1, "probe-sender")
        self._sending: Future[None] | None = None
        self._unsent = 0
        self._lock = Lock()
        self._worker = worker
        # asked after every step, where the connection's own poll would make a selector each time
        self._arrived = select.poll()
        self._arrived.register(worker.connection.fileno(), select.POLLIN)
        self._patience = Patience(worker.process.pid, timeout_s)
        self._send("setup", dict(setup))
        self._send("load", copies(probe.state()))

    def observe(self, batch: Int[Tensor, " B"], states: Float[Tensor, "B layers d"], step: int) -> None:
        """Hand a copy of the states over."""
        if self._probe.observes:
            self._send("observe", _copy(batch), _copy(states), step)

    def submit(self, step: int) -> None:
        """Send a copy of the weights; wait where the process is too far behind."""
        # a few probes may always be under way, more of them as long as all are done within seconds
        while len(self._pending) >= LEAD and (
            len(self._pending) >= LONGEST_LEAD or len(self._pending) * self._seconds > LEAD_SECONDS
        ):
            self._receive_one()
        weights = self._model.state_dict() if self._probe.needs_weights(step) else {}
        self._send("score", step, copies(weights))
        self._pending.append(step)

    def save(self) -> None:
        """Ask the process for its state."""
        self._send("state")
        self._pending.append(None)

    def collect(self, *, wait: bool) -> list[Event]:
        """Give what has come; an error only once all that came before it was given."""
        with suppress(FclmError):
            while self._pending and self._failure is None and (wait or self._arrived.poll(0)):
                self._receive_one()
        # what ended the loop is kept, and raised here when it is its turn
        if self._failure is not None and not self._done:
            raise self._failure
        done, self._done = self._done, []
        return done

    @property
    def behind(self) -> int:
        """How many things were asked for that have not come."""
        return len(self._pending)

    @property
    def probes_behind(self) -> int:
        """How many of them are probes, and not the state behind one."""
        return sum(step is not None for step in self._pending)

    @property
    def process_id(self) -> int:
        """The process beside training."""
        return self._worker.process.pid

    def close(self) -> None:
        """End the process, in the middle of a probe too: it keeps nothing."""
        self._patience.close()
        # the sender, whose messages then arrive nowhere, lets go of the connection before it is closed
        self._worker.process.kill()
        self._sender.shutdown()
        self._worker.close()

    def _receive_one(self) -> None:
        """Take one answer; an error is kept, and no answer is taken after it."""
        if self._failure is None:
            try:
                self._done.append(self._next())
            except FclmError as error:
                self._failure = error
        if self._failure is not None:
            raise self._failure

    def _receive_the_rest(self, cause: BaseException | None) -> NoReturn:
        """Take the answers that a process which takes in no more had given, and raise what ended it."""
        while self._failure is None:
            with suppress(FclmError):
                self._receive_one()
        raise self._failure from cause

    def _next(self) -> Event:
        """Wait for the next answer, and see that it is the one that is due."""
        # 1. while this waits the process may use training's cores, and patience ends it if it makes no headway
        try:
            with self._patience.waiting(), self._worker.waiting.told():
                kind, step, value = self._worker.connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if kind == "failed":
            raise value
        # 2. answers come in the order of what was asked for
        asked = self._pending.popleft()
        if step != asked:
            raise ProbeError(f"expected the probe's process to answer for step {asked}, got an answer for {step}")
        if step is None:
            return SavedState(as_tensors(value))
        # 3. how long a probe takes decides how far training may go ahead, and how long is too long
        self._seconds = value.seconds
        self._patience.longest = max(self._patience.longest, value.seconds)
        return FinishedProbe(step, value)

    def _send(self, *message: Any) -> None:
        """Hand a message to the sender's thread; wait where too many bytes of earlier ones are not yet sent."""
        size = sum(_size(part) for part in message)
        with self._lock:
            full = self._unsent > LEAD_BYTES
        # 1. too full: wait for the sender, but take answers meanwhile, since a process takes in nothing more while it
        #    cannot give its own
        while full and self._sending is not None and not self._sending.done():
            with self._patience.waiting():
                while not self._sending.done() and not self._arrived.poll(10):
                    pass
            if not self._sending.done():
                self._receive_one()
        # 2. an earlier message could not be sent: the process is gone, and what it had answered counts
        if self._sending is not None and self._sending.done() and self._sending.exception() is not None:
            self._receive_the_rest(self._sending.exception())
        # 3. one thread sends, so that messages arrive in their order
        with self._lock:
            self._unsent += size
        self._sending = self._sender.submit(self._deliver, message, size)

    def _deliver(self, message: tuple[Any, ...], size: int) -> None:
        """Send from the sender's thread; what cannot be sent ends the process, so that nobody waits for its answer."""
        try:
            self._worker.connection.send(message)
        except BaseException:
            self._worker.process.kill()
            raise
        finally:
            with self._lock:
                self._unsent -= size

    def _ended(self) -> ProbeError:
        """Say why the process is gone, and what to do."""
        try:
            code: int | None = self._worker.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            code = None
        if self._patience.reason is not None:
            return ProbeError(
                f"the probe's process {self._patience.reason} while training waited for it, and was ended; training is "
                "as it was: resume the run, with -s probe.worker=off if it happens again, or with more of "
                "probe.worker_timeout_s"
            )
        return ProbeError(
            f"the probe's process ended with status {code}, and what it printed stands above; training is as it was: "
            "resume the run, with -s probe.worker=off if it lacked memory"
        )


def _copy(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to the host, since its owner may go on to write into it."""
    return np.array(tensor.detach().cpu())


def _size(part: Any) -> int:
    arrays = part.values() if isinstance(part, dict) else [part]
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def copies(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copy tensors into arrays, as they are sent."""
    return {name: _copy(tensor) for name, tensor in tensors.items()}


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Make tensors again of what was sent."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
