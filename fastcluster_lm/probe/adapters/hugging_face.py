"""Let a Hugging Face Trainer call a ClusterProbe, and log its scores beside its own; it scores nothing itself."""

from collections.abc import Callable
from copy import copy
from itertools import groupby
from operator import itemgetter
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastcluster_lm.errors import UsageError
from fastcluster_lm.probe.cluster_probe import ClusterProbe
from fastcluster_lm.probe.record import going_on


class FclmTrainerCallback(TrainerCallback):
    """Probe the model before the first step, every few steps, and after the last.

    make builds the probe once the model lies where it is trained; its scores go to `log_history`, to the probe's own
    `log`, and with a trainer, which tells a callback in `callbacks=[...]` nothing of itself, to `report_to`. Where the
    Trainer goes on from a checkpoint, so does the probe with its run.
    Errors: those of ClusterProbe's construction, before the first step; none later
    """

    def __init__(self, make: Callable[[nn.Module], ClusterProbe], trainer: Trainer | None = None) -> None:
        if not callable(make):
            raise UsageError(
                f"make: expected a function of the model that gives a ClusterProbe, got a {type(make).__name__}; the "
                "trainer, if it is given, comes second"
            )
        self._trainer, self._make = trainer, make
        self.probe: ClusterProbe | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Build the probe, and score the model as it is."""
        if self.probe is not None:
            self.probe.abandon()
        with going_on(state.global_step > 0):
            self.probe = self._make(kwargs["model"])
        self._step(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Probe if it is time; the step is an optimiser step, however many batches it took."""
        self._step(args, state, control)
        self._before_save(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for probes before a checkpoint that is due here."""
        self._before_save(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Wait for probes after a checkpoint that nobody knew of before."""
        if self.probe is not None:
            self._log(self.probe.wait(), args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score the trained model, unless that was done, and end the run."""
        if self.probe is not None:
            self._log(self.probe.close(state.global_step), args, state, control)

    def _before_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Wait for probes that a worker has not done: who goes on from this checkpoint has all that came before it."""
        if control.should_save and self.probe is not None:
            self._log(self.probe.wait(), args, state, control)

    def _step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        if self.probe is None:
            return
        # the newest before this step, whose own is logged after it: one that goes on knows that, too
        older = (one for one in reversed(state.log_history) if "loss" in one and one["step"] < state.global_step)
        self._log(self.probe.step(state.global_step, loss=next(older, {}).get("loss")), args, state, control)

    def _log(
        self, rows: list[dict[str, Any]], args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        if self.probe is None:
            return
        # those of a worker come at a later step, and of several probes at once
        for step, own in groupby(rows, key=itemgetter("step")):
            logs = self.probe.headline(list(own))
            then = copy(state)
            if step == state.global_step and state.epoch is not None:
                logs["epoch"] = state.epoch
            then.global_step = step
            state.log_history.append({**logs, "step": step})
            if self._trainer is not None:
                # on_log takes back the Trainer's wish to log this step's loss, and that is still to come
                wanted = control.should_log
                self._trainer.callback_handler.on_log(args, then, control, logs)
                control.should_log = wanted
