"""Score states that an attached probe has read: at once, or in a process beside training; it reads no states itself."""

import os
import pickle
import select
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcluster_lm.device import cpu_cores
from fastcluster_lm.errors import UsageError
from fastcluster_lm.probe.pending import Captured, ProbeResult
from fastcluster_lm.probe.runners.patience import Patience
from fastcluster_lm.probe.runners.process import WorkerProcess, started
from fastcluster_lm.probe.runners.shared_states import Region, Setup, StatesScorer
from fastcluster_lm.probe.runners.worker import as_tensors

# what the process calls
ENTRY = "fastcluster_lm.probe.runners.shared_states:serve_states"
# states from which on scores take so long that a process, which takes 2 s of a core to start, is worth it by itself
WORTH_BYTES = 2**20
# probes that training may be ahead of the process, and bytes of states that may then lie there; one may take more
LEAD, LEAD_BYTES = 16, 2**28


class Scored(NamedTuple):
    """What became of a probe that was asked for: its scores, or why it has none; all that the next one depends on."""

    asked: Captured
    result: ProbeResult | None
    state: Mapping[str, Tensor]
    skipped: str | None = None


def beside_policy(wanted: str, device: torch.device, n_bytes: int) -> tuple[bool, str]:
    """Decide whether states of so many bytes are scored beside training, and say why; no score depends on it on a CPU.

    Errors: UsageError for another word, and where a process is asked for that cannot be
    """
    if wanted not in ("auto", "on", "off"):
        raise UsageError(f"worker: expected auto, on or off, got {wanted!r}")
    possible = os.name == "posix" and bool(sys.executable)
    if wanted == "on" and not possible:
        raise UsageError("worker: expected auto or off on this system, which is no POSIX one; got on")
    if wanted != "auto":
        return wanted == "on", "asked for" if wanted == "on" else "turned off"
    cores, threads = cpu_cores(), torch.get_num_threads()
    if not possible:
        return False, "a process beside training is for POSIX systems"
    if device.type != "cpu":
        return False, f"the model lies on {device.type}, where scores are quick"
    if cores <= threads:
        return False, f"training takes all of {cores} cores; torch.set_num_threads below that leaves one to the probe"
    if n_bytes < WORTH_BYTES:
        return False, f"{n_bytes / 2**20:.2g} MiB of states are scored before a process has started"
    return True, f"training takes {threads} of {cores} cores"


class AttachedInline:
    """Score at once, where the states are; training waits."""

    beside = False

    def __init__(self, scorer: StatesScorer) -> None:
        self._scorer = scorer
        self._done: list[Scored] = []

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state; before the first probe."""
        self._scorer.load_state(state)

    def make_ready(self) -> None:
        """Wait for nothing: no probe is ever under way."""

    def room(self, split: str, shape: tuple[int, int, int]) -> None:
        """Leave states where they are: they are scored there."""

    def submit(self, asked: Captured, states: Mapping[str, Tensor]) -> None:
        """Score now."""
        result, skipped = self._scorer.attempt(asked, states)
        self._done.append(Scored(asked, result, self._scorer.state(), skipped))

    def collect(self, *, wait: bool) -> list[Scored]:
        """Give what was done since."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End nothing: nothing runs."""


class AttachedWorker:
    """Score in a process of its own, from memory that both see; training waits only where that falls behind.

    A process that ends costs the probes that it had been given; the next one has another, which goes on from the last
    state that came. Scores are those of AttachedInline on the CPU, byte for byte
    """

    beside = True

    def __init__(self, setup: Setup, *, timeout_s: float = 300.0) -> None:
        """Start the process, which loads torch while training goes on; timeout_s is the limit of a Patience.

        Errors: ProbeError where the system starts none
        """
        self._setup, self._timeout_s = setup, timeout_s
        self._state: Mapping[str, Tensor] = {}
        self._done: list[Scored] = []
        # probes under way, with where their states lie; places that are free
        self._pending: deque[tuple[Captured, dict[str, Region]]] = deque()
        self._free: list[dict[str, Region]] = []
        self._place: dict[str, Region] = {}
        self._process: _Process | None = _Process(self._timeout_s)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state; before the first probe."""
        self._state = state

    def make_ready(self) -> None:
        """Wait while as many probes are under way as there is room for."""
        places = [place for _, place in self._pending]
        size = max((sum(region.size for region in place.values()) for place in places), default=1)
        while len(self._pending) >= max(1, min(LEAD, LEAD_BYTES // size)):
            self._receive()
        self._place = self._free.pop() if self._free else {}

    def room(self, split: str, shape: tuple[int, int, int]) -> Tensor:
        """Give memory that both processes see, the same as before where that is free and large enough.

        Errors: ProbeError where the system has no more
        """
        size = 4 * prod(shape)
        if split not in self._place or self._place[split].size < size:
            self._place[split] = Region.of(size)
        return self._place[split].tensor(shape)

    def submit(self, asked: Captured, states: Mapping[str, Tensor]) -> None:
        """Say where the states lie.

        Errors: ProbeError where no process can be started any more
        """
        if self._process is None:
            self._process = _Process(self._timeout_s)
        shapes = {split: (self._place[split], tuple(own.shape)) for split, own in states.items()}
        try:
            self._process.score(self._setup, self._state, asked, shapes)
        except OSError:
            # it ended; what it had been given is told when it is collected
            self._pending.append((asked, self._place))
            self._lose(self._process.ended())
        else:
            self._pending.append((asked, self._place))

    def collect(self, *, wait: bool) -> list[Scored]:
        """Give what has come; with `wait` all that was asked for."""
        while self._process is not None and self._pending and (wait or self._process.has_answered()):
            self._receive()
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End the process, in the middle of a probe too: it keeps nothing."""
        if self._process is not None:
            self._process.close()
        self._process = None
        self._pending.clear()
        self._free.clear()

    def _receive(self) -> None:
        """Take one answer, or the end of the process for the answer to all it had been given."""
        assert self._process is not None
        # nothing is lost if this is interrupted, and what it waits for can be asked for again
        self._process.wait()
        try:
            answered, result, state, skipped = self._process.take()
        except (EOFError, OSError):
            self._lose(self._process.ended())
            return
        except BaseException:
            # what is left of an answer that was cut off would be taken for the next one
            self._lose("training was interrupted in the middle of an answer")
            raise
        asked, place = self._pending[0]
        if answered != asked:
            self._lose(f"it answered for step {answered.step} where step {asked.step} was due")
            return
        self._pending.popleft()
        self._free.append(place)
        self._state = as_tensors(state)
        self._done.append(Scored(asked, result, self._state, skipped))

    def _lose(self, why: str) -> None:
        """Give up the process, and the probes under way in it."""
        assert self._process is not None
        self._process.close()
        self._process = None
        # whatever it may still write to, it has no more
        for asked, _ in self._pending:
            self._done.append(Scored(asked, None, self._state, f"the probe's process ended: {why}"))
        self._pending.clear()


# both have the same verbs
AttachedRunner = AttachedInline | AttachedWorker


class _Process:
    """One process, what it has been told, and the patience with it."""

    def __init__(self, timeout_s: float) -> None:
        self._worker: WorkerProcess = started(ENTRY)
        self._patience = Patience(self._worker.process.pid, timeout_s)
        self._arrived = select.poll()
        self._arrived.register(self._worker.connection.fileno(), select.POLLIN)
        # memory that it has been given, by the number it goes by there
        self._given: list[Region] = []

    @property
    def pid(self) -> int:
        return self._worker.process.pid

    def score(
        self,
        setup: Setup,
        state: Mapping[str, Tensor],
        asked: Captured,
        shapes: Mapping[str, tuple[Region, tuple[int, ...]]],
    ) -> None:
        """Ask for one probe; all messages are small, so that none waits for a process that is at work.

        Errors: OSError if it has ended
        """
        if not self._given:
            # what is large goes through memory too: labels, and the last state
            told = pickle.dumps((setup, dict(state)))
            region = Region.of(len(told))
            region.write(told)
            self._worker.connection.send(("setup", self._number(region)))
        places = {split: (self._number(region), shape) for split, (region, shape) in shapes.items()}
        self._worker.connection.send(("score", asked, places))

    def has_answered(self) -> bool:
        """Say whether an answer, or its end, can be taken without waiting."""
        return bool(self._arrived.poll(0))

    def wait(self) -> None:
        """Wait until an answer, or its end, can be taken."""
        with self._patience.waiting(), self._worker.waiting.told():
            while not self._arrived.poll(1000):
                pass

    def take(self) -> Any:
        """Take the answer that has come.

        Errors: EOFError or OSError if the process has ended
        """
        answer = self._worker.connection.recv()
        if answer[1] is not None:
            self._patience.longest = max(self._patience.longest, answer[1].seconds)
        return answer

    def ended(self) -> str:
        """Say how it ended."""
        try:
            code: int | None = self._worker.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            code = None
        if self._patience.reason is not None:
            return f"it {self._patience.reason} while training waited for it"
        return f"its status is {code}, and what it printed stands above"

    def close(self) -> None:
        """End it."""
        self._patience.close()
        self._worker.close()

    def _number(self, region: Region) -> int:
        """Give the number that a region goes by in the process, handing it over if it is new there."""
        for number, known in enumerate(self._given):
            if known is region:
                return number
        self._worker.connection.send(("region", region.size))
        region.send(self._worker.connection)
        self._given.append(region)
        return len(self._given) - 1
