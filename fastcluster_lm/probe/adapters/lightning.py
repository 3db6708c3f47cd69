"""Let a Lightning Trainer call a ClusterProbe, and hand its scores to the loggers; it scores nothing itself."""

from collections.abc import Callable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fastcluster_lm.probe.cluster_probe import ClusterProbe
from fastcluster_lm.probe.record import going_on


class FclmLightningCallback(Callback):
    """Probe the model before the first step, every few optimiser steps, and after the last.

    make builds the probe once the model lies where it is trained; layers are named from the LightningModule on. Where
    the Trainer goes on from a checkpoint, so does the probe with its run.
    Errors: those of ClusterProbe's construction, before the first step; none later
    """

    def __init__(self, make: Callable[[nn.Module], ClusterProbe]) -> None:
        self._make = make
        self.probe: ClusterProbe | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the probe, and score the model as it is."""
        model = trainer.strategy.model
        if self.probe is not None:
            self.probe.abandon()
        with trainer.precision_plugin.forward_context(), going_on(trainer.global_step > 0):
            self.probe = self._make(pl_module if model is None else model)
        self._step(trainer, None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Probe if it is time; a batch that led to no optimiser step is passed over."""
        self._step(trainer, outputs)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Wait for probes that a worker has not done: who goes on from this checkpoint has all that came before it."""
        if self.probe is not None:
            self._log(trainer, self.probe.wait())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the trained model, unless that was done, and end the run."""
        if self.probe is not None:
            with trainer.precision_plugin.forward_context():
                rows = self.probe.close(trainer.global_step)
            self._log(trainer, rows)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the run folder free, as that of a run that was stopped."""
        if self.probe is not None:
            self.probe.abandon()

    def _step(self, trainer: Trainer, outputs: Any) -> None:
        if self.probe is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        # a wait on a GPU, so only for a probe
        known = loss.item() if isinstance(loss, Tensor) and self.probe.is_due(trainer.global_step) else None
        # the model computes as in training, the scores do not
        with trainer.precision_plugin.forward_context():
            rows = self.probe.step(trainer.global_step, loss=known)
        self._log(trainer, rows)

    def _log(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        if self.probe is None:
            return
        # those of a worker come at a later step, and of several probes at once
        for step, own in groupby(rows, key=itemgetter("step")):
            metrics = self.probe.headline(list(own))
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)
