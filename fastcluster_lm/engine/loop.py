"""The steps of one call: each is taken, probed, written and saved as it is due; it builds nothing."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastcluster_lm.engine.rooms import Rooms
from fastcluster_lm.errors import FclmError, RunFolderError, TrainingError
from fastcluster_lm.probe import ProbeRunner, SavedState, WorkerProcess
from fastcluster_lm.probe.runners.worker import copies
from fastcluster_lm.store import RowQueue, RunFolder
from fastcluster_lm.store.budget import DiskBudget
from fastcluster_lm.training import StepResult

Row = dict[str, Any]


@dataclass(frozen=True)
class Hooks:
    """What the caller of a run wants to hear and say: what is out of the ordinary, where it begins, each step, whether
    to stop, whether to save a checkpoint now.

    on_step gets a step's row and the score rows that have come since the step before, None without any; those of a
    probe beside training come some steps after its own
    """

    note: Callable[[str], None] = lambda text: None
    on_start: Callable[[RunFolder, int], None] = lambda folder, step: None
    on_step: Callable[[Row, list[Row] | None], None] = lambda row, scores: None
    should_stop: Callable[[], bool] = lambda: False
    should_save: Callable[[], bool] = lambda: False


def train(run: Rooms, folder: RunFolder, hooks: Hooks, ahead: WorkerProcess | None = None) -> bool:
    """Take every step that is left; say whether the last one was reached.

    ahead is a process that waits for the run's probes
    Errors: TrainingError, ProbeError or RunFolderError, with all rows written that could be
    """
    runner = run.start_runner(ahead)
    try:
        finished = Loop(run, folder, runner, hooks).run()
    except TrainingError as error:
        lower = f"training.learning_rate={run.config.training.learning_rate / 2:g}"
        raise TrainingError(f"{error}: fclm train --resume {folder.path} -s {lower}") from error
    finally:
        if runner is not None:
            runner.close()
    if finished:
        # what a crash left under no name, or a resume set aside and this run has written again
        folder.clean()
        summary = _summary(run, folder)
        for said in folder.let_go_of_repeated(summary):
            hooks.note(said)
        folder.mark_finished(summary)
    return finished


class Loop:
    """A run on its way, from the step where its rooms stand."""

    def __init__(self, run: Rooms, folder: RunFolder, runner: ProbeRunner | None, hooks: Hooks) -> None:
        self._run, self._trainer, self._cadence = run, run.trainer, run.cadence
        self._folder, self._rows, self._runner, self._hooks = folder, RowQueue(folder), runner, hooks
        self._budget = DiskBudget(folder, run.config.store, run.plan, run.cadence.is_key_frame, hooks.note)
        self._flushed_at = time.monotonic()
        self._waited = 0.0
        # copies that wait for the probe's state, states that have come, and the last step that was copied
        self._unwritten: deque[tuple[int, dict[str, dict[str, np.ndarray]], Row]] = deque()
        self._states: deque[dict[str, torch.Tensor]] = deque()
        self._saved = run.trainer.step or None
        # score rows that came while something else was waited for, to be shown after the next step
        self._late: list[Row] = []

    def run(self) -> bool:
        """Go on to the last step, or to where the caller stops; say whether it was the last."""
        trainer, total = self._trainer, self._run.config.training.steps
        try:
            self.begin()
            while trainer.step < total:
                if trainer.step > 0 and self._hooks.should_stop():
                    if self._saved != trainer.step:
                        self._save()
                    self.collect(wait=True)
                    self._write_checkpoints()
                    return False
                if trainer.step > 0 and self._hooks.should_save():
                    self._save_now()
                self.advance()
        except RunFolderError:
            raise
        except FclmError as error:
            self._keep_what_came(error)
            raise
        return True

    def begin(self) -> None:
        """Probe the model as it is before the first step; a run that goes on has that behind it."""
        self._hooks.on_start(self._folder, self._trainer.step)
        if self._trainer.step == 0:
            self._finish_step({"step": 0})

    def advance(self) -> None:
        """Take one step, and do all that is due after it.

        Errors: TrainingError, ProbeError, DataError, RunFolderError
        """
        result = self._trainer.advance()
        row = {key: getattr(result, key) for key in ("step", "loss", "lr", "grad_norm", "step_ms", "tokens_per_s")}
        self._finish_step(row, result)

    def _finish_step(self, row: Row, result: StepResult | None = None) -> None:
        """Validate, probe, write and save, whatever of them is due after this step."""
        training, step = self._run.config.training, row["step"]
        last = step == training.steps
        if step % training.eval_every == 0 or last:
            row["val_accuracy"] = self._trainer.validate()
        self._waited = 0.0
        saved = step > 0 and (step % training.checkpoint_every == 0 or last)
        while saved and len(self._unwritten) > 1:
            # no more than two copies are held
            self._late += self.collect(wait=True)
            self._write_checkpoints()
        probed = self._runner is not None and self._cadence.is_due(step)
        self._rows.add_step(row, probed=probed)
        if self._runner is not None:
            started = time.perf_counter()
            if result is not None:
                self._runner.observe(result.batch, result.states, step)
            if probed:
                self._runner.submit(step)
            self._waited += time.perf_counter() - started
        if saved:
            self._save()
        scores, self._late = self._late + self.collect(wait=last), []
        if self._runner is not None:
            row["probe_wait_ms"] = self._waited * 1e3
        self._write_checkpoints()
        if self._is_due(step) or time.monotonic() - self._flushed_at > 2.0:
            self._flush()
        self._hooks.on_step(row, scores or None)

    def _is_due(self, step: int) -> bool:
        """Say whether rows are written at once; those of step probes can wait."""
        training = self._run.config.training
        probed = self._cadence.is_due(step) and self._cadence.is_full(step)
        return probed or step % training.eval_every == 0 or step == training.steps

    def collect(self, *, wait: bool) -> list[Row]:
        """Take what the probes have given: rows and maps, and states that complete a checkpoint."""
        scores: list[Row] = []
        while self._runner is not None:
            started = time.perf_counter()
            events = self._runner.collect(wait=wait)
            self._waited += time.perf_counter() - started
            for event in events:
                if isinstance(event, SavedState):
                    self._states.append(event.tensors)
                    continue
                if event.result.maps:
                    self._budget.write_map(event.step, event.result.maps, event.result.map_notes())
                self._rows.add_probe(event.step, event.result.rows, event.result.seconds * 1e3, event.result.skipped)
                scores += event.result.rows
            # an error comes after all that came before it
            if not wait or not events:
                break
        return scores

    def _keep_what_came(self, error: FclmError) -> None:
        """Write the rows, maps and checkpoints that are complete; the error at hand remains the one that is told."""
        try:
            self.collect(wait=True)
        except FclmError as later:
            if later is not error:
                error.add_note(str(later))
        self._write_checkpoints()
        self._flush()

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        self._rows.flush()

    def _save(self) -> None:
        """Keep a copy of all that the next step depends on, to be written with the probe's own state once that is here.

        So training does not wait for the probe of this step
        """
        weights, moments, values = self._trainer.state()
        self._saved = self._trainer.step
        self._unwritten.append((self._saved, {"model": copies(weights), "optimizer": copies(moments)}, values))
        if self._runner is not None:
            self._runner.save()
        else:
            self._states.append({})

    def _save_now(self) -> None:
        """Write a checkpoint of the step at hand, unless it has one, and go on once it is there."""
        if self._saved != self._trainer.step:
            self._save()
        self._late += self.collect(wait=True)
        self._write_checkpoints()
        self._hooks.note(f"step {self._trainer.step} is saved")

    def _write_checkpoints(self) -> None:
        """Write the copies whose probe state is here, behind the rows of all probes up to their step."""
        while self._states:
            step, tensors, values = self._unwritten.popleft()
            self._flush()
            self._folder.write_checkpoint(step, {**tensors, "probe": copies(self._states.popleft())}, values)
            if self._run.config.training.keep_checkpoints:
                self._folder.keep_last(self._run.config.training.keep_checkpoints)
            self._budget.tidy()


def _summary(run: Rooms, folder: RunFolder) -> Row:
    rows = folder.steps()
    probe_seconds, waited, step_seconds = (
        sum(row[column] or 0.0 for row in rows) / 1e3 for column in ("probe_ms", "probe_wait_ms", "step_ms")
    )
    accuracies = [row["val_accuracy"] for row in rows if row["val_accuracy"] is not None]
    return {
        "steps": run.trainer.step,
        "early_stopping_step": run.trainer.mark.step,
        "val_accuracy": accuracies[-1],
        "probes": sum(row["probe_ms"] is not None for row in rows),
        "probe_seconds": probe_seconds,
        "probe_wait_seconds": waited,
        "step_seconds": step_seconds,
        "probe_share": waited / max(waited + step_seconds, 1e-9),
    }
