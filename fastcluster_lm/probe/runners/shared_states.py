"""Both ends of scoring beside an attached loop: memory that two processes see, and what the other one does with it."""

import gc
import mmap
import os
import pickle
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.errors import FclmError, ProbeError
from fastcluster_lm.kernels import native
from fastcluster_lm.probe.pending import Captured, ProbeResult
from fastcluster_lm.probe.plan import ProbePlan
from fastcluster_lm.probe.positions import Scorers, joined
from fastcluster_lm.probe.runners.process import Waiting
from fastcluster_lm.probe.runners.worker import copies
from fastcluster_lm.probe.undisturbed import plain_torch
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.points import Points

_T = TypeVar("_T")


class Region:
    """Memory that both processes see: a file without a name, which is gone once neither holds it."""

    def __init__(self, descriptor: int, size: int, *, new: bool = False) -> None:
        """Map a file, whose descriptor is this object's from now on; a new one is given its size first."""
        self.size, self._descriptor = size, descriptor
        if new:
            os.ftruncate(descriptor, size)
        self._memory = mmap.mmap(descriptor, size)

    @classmethod
    def of(cls, size: int) -> "Region":
        """Make new memory.

        Errors: ProbeError where the system has no more
        """
        try:
            descriptor = os.memfd_create("states") if hasattr(os, "memfd_create") else _unnamed_file()
            # from here on the object closes it
            region = cls(descriptor, size, new=True)
        except OSError as error:
            raise ProbeError(
                f"{size / 2**20:.0f} MiB that two processes share cannot be had: {error.strerror or error}; score "
                "fewer instances or layers, or give worker='off'"
            ) from error
        return region

    def __del__(self) -> None:
        os.close(self._descriptor)

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """See its beginning as float32 values."""
        return torch.frombuffer(self._memory, dtype=torch.float32, count=prod(shape)).view(shape)

    def write(self, data: bytes) -> None:
        """Fill it."""
        self._memory[: len(data)] = data

    def read(self) -> bytes:
        """Give all of it."""
        return self._memory[:]

    def send(self, connection: Connection) -> None:
        """Hand it to the process at the other end, which calls `received`."""
        with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            socket.send_fds(channel, [b"m"], [self._descriptor])

    @classmethod
    def received(cls, connection: Connection, size: int) -> "Region":
        """Take what the other end's `send` gives."""
        with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if not descriptors:
            raise EOFError
        return cls(descriptors[0], size)


class StatesScorer:
    """Score states of the same points, probe after probe; where memory is short in smaller blocks."""

    def __init__(self, scorers: Scorers, points: Mapping[str, Points]) -> None:
        self.scorers, self.points = scorers, points

    def score(self, asked: Captured, states: Mapping[str, Tensor]) -> ProbeResult:
        """Score one probe, of which all but the points is said; where memory is short in blocks half as large.

        Shapes: states (P * layers, n, d) by split, of the points on the map for a step probe
        """
        started = time.perf_counter()
        chosen = {name: self.points[name] if asked.full else self.points[name].shown() for name in states}
        captured = replace(asked, points={name: own.at(states[name]) for name, own in chosen.items()})
        found = {}
        with plain_torch():
            # one after the other, so that where memory is short none is scored twice: its map would have gone on
            for name, scorer, own in self.scorers.apart(captured):
                found[name] = in_less_memory(partial(scorer.score, own), self.scorers.halve_memory)
        return replace(joined(found), seconds=time.perf_counter() - started)

    def attempt(self, asked: Captured, states: Mapping[str, Tensor]) -> tuple[ProbeResult | None, str | None]:
        """Score one probe, or say why it has no scores: for want of memory, or by an error of ours."""
        try:
            return self.score(asked, states), None
        except (torch.OutOfMemoryError, FclmError) as error:
            return None, reason_of(error)

    def state(self) -> dict[str, Tensor]:
        """Give all that the next probe depends on."""
        with plain_torch():
            return self.scorers.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        with plain_torch():
            self.scorers.load_state(state)


@dataclass(frozen=True)
class Setup:
    """All that a process beside training needs to score as this one would.

    engine: its name; torch_threads: as many as training's, on which sums of torch depend; compiled: whether kernels are
    """

    positions: tuple[str, ...]
    scores: ScoresConfig
    engine: str
    seed: int
    plan: ProbePlan
    points: Mapping[str, Points]
    torch_threads: int
    compiled: bool

    @classmethod
    def of(cls, scorers: Scorers, points: Mapping[str, Points]) -> "Setup":
        """Describe scorers of this process."""
        first, threads = scorers.first, torch.get_num_threads()
        described = (scorers.names, first.config, first.engine.name, first.seed, first.plan)
        return cls(*described, points, threads, native.compiled())

    def build(self, waiting: Waiting) -> StatesScorer:
        """Make the scorer, in the process that is to run it."""
        if not self.compiled:
            # what could not be compiled there is not tried again here
            native.turn_off("the loop that is probed has none")
        native.share_cores(waiting.__bool__, self.scores.threads, self.torch_threads)
        host = torch.device("cpu")
        engine = choose_engine(self.engine, host, self.scores.memory_mib)
        return StatesScorer(Scorers(self.positions, self.scores, engine, host, self.seed, self.plan), self.points)


def in_less_memory(attempt: Callable[[], _T], halve: Callable[[], bool]) -> _T:
    """Try again with half as much at a time, and half again, where memory is short and less is possible."""
    while True:
        try:
            return attempt()
        except torch.OutOfMemoryError:
            if not halve():
                raise


def reason_of(error: BaseException) -> str:
    """Say in a line why a probe has no scores."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def serve_states(descriptor: int, waiting_descriptor: int) -> None:
    """Score what an attached loop sends until it ends; the process beside training calls it, with two descriptors."""
    waiting, regions = Waiting(waiting_descriptor), []
    scorer: StatesScorer | None = None
    with Connection(descriptor) as connection:
        while True:
            try:
                kind, *content = connection.recv()
                if kind == "region":
                    regions.append(Region.received(connection, *content))
            except (EOFError, OSError):
                # training is done, or was stopped, in the middle of a message too
                return
            if kind == "setup":
                setup, state = pickle.loads(regions[content[0]].read())
                scorer = setup.build(waiting)
                scorer.load_state(state)
                # what was built stays, so that no later collection walks through it
                gc.collect()
                gc.freeze()
            elif kind == "score" and scorer is not None:
                answer = _answer(scorer, regions, *content)
                try:
                    connection.send(answer)
                except OSError:
                    return


# nothing here has a gradient; without views and versions of tensors to keep track of, the many small ones cost less
@torch.inference_mode()
def _answer(
    scorer: StatesScorer, regions: list[Region], asked: Captured, places: Mapping[str, tuple[int, tuple[int, ...]]]
) -> tuple[Captured, ProbeResult | None, dict[str, Any], str | None]:
    states = {split: regions[number].tensor(shape) for split, (number, shape) in places.items()}
    result, skipped = scorer.attempt(asked, states)
    return asked, result, copies(scorer.state()), skipped


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
