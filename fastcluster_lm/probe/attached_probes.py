"""Take the probes of an attached loop from states that are read to rows that are written; others say which and when."""

import time
import warnings
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcluster_lm.device import generators_kept
from fastcluster_lm.errors import FclmError
from fastcluster_lm.probe.cost import Cost
from fastcluster_lm.probe.pending import Captured
from fastcluster_lm.probe.positions import Scorers
from fastcluster_lm.probe.record import Record
from fastcluster_lm.probe.runners.attached import AttachedInline, AttachedRunner, AttachedWorker, Scored
from fastcluster_lm.probe.runners.shared_states import Setup, StatesScorer, in_less_memory, reason_of
from fastcluster_lm.probe.sources.inputs import Inputs
from fastcluster_lm.probe.sources.modules import LayerReader
from fastcluster_lm.scores.points import Points

Row = dict[str, Any]


class ProbeSkippedWarning(UserWarning):
    """A probe gave no scores, or none of some layers; training goes on."""


class Asked(NamedTuple):
    """A probe whose states were read, or not: seconds that training stood still for it, and what is known beside.

    again: whether its step had a probe before, from whose state a loop goes on
    """

    probe: Captured
    again: bool
    started: float
    seconds: float
    seen: Mapping[str, float | None]
    skipped: str | None


class AttachedProbes:
    """Take probes one after the other from the states of a model in training to a run folder.

    record: the run folder; None on ranks that write none, which read a sharded model's states with the others
    beside: whether a process beside training scores
    Errors: ProbeError where the system starts none; the record is then closed
    """

    def __init__(
        self,
        reader: LayerReader,
        inputs: Mapping[str, Inputs],
        points: Mapping[str, Points],
        scorers: Scorers,
        record: Record | None,
        cost: Cost,
        *,
        beside: bool,
    ) -> None:
        self._reader, self._record, self._cost = reader, record, cost
        # of a full probe, and of a step probe, by split: inputs, and which of them, None for all
        bank = next(iter(points))
        self._inputs: dict[bool, dict[str, tuple[Inputs, Tensor | None]]] = {
            True: {name: (own, None) for name, own in inputs.items()},
            False: {bank: (inputs[bank], points[bank].on_map)},
        }
        self._newest = -1
        self._key_frame_every = scorers.first.config.key_frame_every
        # asked for and not written yet
        self._asked: deque[Asked] = deque()
        self.runner: AttachedRunner | None = None
        if record is not None:
            try:
                self.runner = (
                    AttachedWorker(Setup.of(scorers, points))
                    if beside
                    else AttachedInline(StatesScorer(scorers, points))
                )
            except FclmError:
                record.close()
                raise

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state; before the first probe."""
        if self.runner is not None:
            self.runner.load(state)

    def ask(self, step: int, seen: Mapping[str, float | None], *, full: bool) -> dict[str, Tensor]:
        """Read the states, ask for their scores, and give them on the host; none where there is no memory, say.

        seen: what is known of the step beside its scores
        Shapes: -> (P * layers, n, d) by split; of a step probe those of the first split's points on the map
        """
        started, skipped, inputs = time.perf_counter(), None, self._inputs[full]
        again, self._newest = step == self._newest, step
        probe = Captured(step, {}, full=full, key_frame=full and self._is_key_frame())
        states: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        try:
            if self.runner is not None:
                self.runner.make_ready()
            with generators_kept():
                for name, (own, chosen) in inputs.items():
                    room = None if self.runner is None else partial(self.runner.room, name)
                    read = partial(self._reader.read, own, chosen, room=room)
                    states[name] = in_less_memory(read, self._reader.halve_batch)
            if self._record is None or self.runner is None:
                return {}
            self.runner.submit(probe, states)
            # on a GPU that trains, room for them is short
            kept = {name: X.cpu() for name, X in states.items()}
        except (torch.OutOfMemoryError, FclmError) as error:
            if self._reader.sharded and isinstance(error, torch.OutOfMemoryError) and len(states) < len(inputs):
                # the other ranks wait inside a forward that this one left; to go on would mix up what they exchange
                raise
            skipped = reason_of(error)
        self._asked.append(Asked(probe, again, started, time.perf_counter() - started, seen, skipped))
        return kept

    def collect(self, *, wait: bool) -> list[tuple[int, list[Row]]]:
        """Write the probes that are done, with `wait` all, in the order of their steps; give each's step and rows."""
        if self.runner is None:
            return []
        found = {(scored.asked.step, scored.asked.full): scored for scored in self.runner.collect(wait=wait)}
        written = []
        while self._asked:
            step, full = self._asked[0].probe.step, self._asked[0].probe.full
            if self._asked[0].skipped is None and (step, full) not in found:
                break
            written.append((step, self._write(self._asked.popleft(), found.get((step, full)))))
        return written

    def close(self) -> None:
        """End what scores; what it has not done is lost."""
        if self.runner is not None:
            self.runner.close()
        if self._record is not None:
            self._record.close()

    def _is_key_frame(self) -> bool:
        """Say whether the map of a full probe that is asked for now starts cold: by how many came before it."""
        if self._record is None:
            return False
        before = sum(asked.skipped is None and asked.probe.full for asked in self._asked)
        n, every = self._record.full_probes + before, self._key_frame_every
        return n == 0 or (every > 0 and n % every == 0)

    def _write(self, asked: Asked, scored: Scored | None) -> list[Row]:
        """Write what became of a probe: its rows and map, the state behind it, and last the row of its step."""
        assert self._record is not None and self.runner is not None
        step, full, rows, seconds_beside = asked.probe.step, asked.probe.full, [], 0.0
        skipped = lacks = asked.skipped if scored is None else scored.skipped
        try:
            if scored is not None and scored.result is not None:
                result = scored.result
                self._record.write_scores(step, result.rows, result.maps, result.map_notes(), full=full)
                rows, skipped, lacks = result.rows, result.skipped, None
                seconds_beside = result.seconds if self.runner.beside else 0.0
                if skipped is not None:
                    warnings.warn(f"the probe of step {step} skipped {skipped}", ProbeSkippedWarning, stacklevel=5)
        except FclmError as error:
            skipped = lacks = reason_of(error)
        if lacks is not None:
            warnings.warn(f"the probe of step {step} was skipped: {lacks}", ProbeSkippedWarning, stacklevel=5)
        try:
            if scored is not None and not asked.again:
                self._record.write_state(step, scored.state, full=full)
            wait = asked.seconds if self.runner.beside else time.perf_counter() - asked.started
            self._record.write_step(step, wait + seconds_beside, wait=wait, skipped=skipped, **asked.seen)
            if rows:
                self._cost.probed(step, wait, seconds_beside, full=full)
        except FclmError as error:
            warnings.warn(f"step {step} could not be written: {error}", ProbeSkippedWarning, stacklevel=5)
        return rows
