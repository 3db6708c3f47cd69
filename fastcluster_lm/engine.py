"""Wire the rooms for one run: build it, train it, probe it, write it down; it prints nothing and parses nothing."""

import gc
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcluster_lm.config import RunConfig, config_from_dict, config_to_dict, differing_keys
from fastcluster_lm.data import Vocabulary, build_instances, split_instructions
from fastcluster_lm.device import Device, choose_device, cpu_cores, describe_environment, generator, worker_policy
from fastcluster_lm.errors import ConfigError, RunFolderError, TrainingError
from fastcluster_lm.kernels import native
from fastcluster_lm.model import GPT2
from fastcluster_lm.probe import (
    Cadence,
    InlineRunner,
    ProbeRunner,
    RunProbe,
    WorkerRunner,
    choose_probe_set,
    serve,
)
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.store import RowQueue, RunFolder
from fastcluster_lm.tasks import TaskSet, taskset_from_dict, taskset_of
from fastcluster_lm.training import StepResult, Trainer

Row = dict[str, Any]


@dataclass(frozen=True)
class Hooks:
    """What the caller of a run wants to hear and say: where it begins, each step and its scores, whether to stop."""

    on_start: Callable[[RunFolder, int], None] = lambda folder, step: None
    on_step: Callable[[Row, list[Row] | None], None] = lambda row, scores: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class RunOutcome:
    """How a call ended: the folder, and whether the last step was reached."""

    folder: RunFolder
    finished: bool
    already_finished: bool = False
    resumed_from: int | None = None


def start_run(config: RunConfig, out: str | Path, hooks: Hooks | None = None) -> RunOutcome:
    """Train and probe a new run in a new folder.

    Errors: RunExistsError if the folder exists; ConfigError, TaskError, EngineError before anything is written
    """
    taskset = taskset_of(config.tasks, config.seed)
    run = _Run(config, taskset)
    stored = {**config_to_dict(config), "resolved": run.resolved(), "taskset": taskset.to_toml_dict()}
    folder = RunFolder.create(out, stored, describe_environment())
    with folder.lock():
        finished = run.train(folder, hooks or Hooks())
    return RunOutcome(folder, finished)


def resume_run(
    path: str | Path, hooks: Hooks | None = None, *, wanted: Callable[[RunConfig], RunConfig] | None = None
) -> RunOutcome:
    """Go on with a run from its last complete checkpoint, bit for bit; a finished run is left as it is.

    `wanted` gives the config asked for from the stored one; if they differ the run is not touched.
    Errors: ConfigError naming the keys that differ; RunFolderError if the folder cannot be read
    """
    folder = RunFolder.open(path)
    stored = folder.config()
    config = stored_config(stored, str(path))
    differing = differing_keys(config, wanted(config)) if wanted else []
    if differing:
        raise ConfigError(
            f"--resume: expected the configuration stored in {path}, got other values for {', '.join(differing)}; "
            "leave those options out, or start a new run"
        )
    if folder.status() == "finished":
        return RunOutcome(folder, finished=True, already_finished=True)
    with folder.lock():
        folder.clean()
        step = folder.latest_checkpoint()
        folder.drop_after(-1 if step is None else step)
        # engine and threads were decided when the run began, and are kept: the bits of a run depend on both
        decided = stored["resolved"]
        config = replace(
            config,
            scores=replace(config.scores, engine=decided["engine"]),
            training=replace(config.training, threads=decided["threads"]),
        )
        run = _Run(config, taskset_from_dict(stored["taskset"]))
        if step is not None:
            run.load(*folder.read_checkpoint(step))
        finished = run.train(folder, hooks or Hooks())
    return RunOutcome(folder, finished, resumed_from=step if step is not None else 0)


def stored_config(stored: Mapping[str, Any], origin: str) -> RunConfig:
    """Read the config back from the contents of a run.toml."""
    values = {key: value for key, value in stored.items() if key not in ("resolved", "taskset")}
    return config_from_dict(values, origin=origin)


def build_run(config: RunConfig, taskset: TaskSet) -> "_Run":
    """Build the rooms of a run without a folder: trainer, probe, engine."""
    return _Run(config, taskset)


def serve_probes(descriptor: int) -> None:
    """Build the run that a connection's other side describes, and probe for it until it ends.

    This is what a process beside training does; descriptor is the connection's file descriptor
    """
    # Ctrl-C is for the training process, which ends this one once its last step is saved
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(descriptor) as connection:
        _, setup = connection.recv()
        run = _Run(config_from_dict(setup["config"]), taskset_from_dict(setup["taskset"]))
        assert run.probe is not None
        # what was built stays, so that no later collection walks through it
        gc.collect()
        gc.freeze()
        serve(connection, run.probe, run.trainer.model)


class _Run:
    """All rooms of one run, built from its config."""

    def __init__(self, config: RunConfig, taskset: TaskSet) -> None:
        self.config, self.taskset = config, taskset
        self.device: Device = choose_device(config.device, config.training.threads)
        on = self.device.torch_device
        split = split_instructions(
            taskset, n_train=config.data.n_train_instructions, n_val=config.data.n_val_instructions, seed=config.seed
        )
        self.vocabulary = Vocabulary.of(taskset)
        position = config.probe.position
        train = build_instances(taskset, split.train, self.vocabulary, on, position=position)
        val = build_instances(taskset, split.val, self.vocabulary, on, position=position)
        weights = generator(config.seed, torch.device("cpu"))
        model = GPT2(config.model, len(self.vocabulary), train.tokens.shape[1], weights).to(on)
        self.trainer = Trainer(model, train, val, config.training, self.device, config.seed)
        self.cadence = Cadence(
            config.probe.every, config.training.steps, config.scores.key_frame_every, config.probe.full_every
        )
        self.probe: RunProbe | None = None
        self.beside, self.beside_reason = worker_policy(config.probe.worker, self.device)
        if config.scores.threads:
            native.use_threads(config.scores.threads)
        self.engine = choose_engine(config.scores.engine, on, config.scores.memory_mib)
        named = config.scores.engine != "auto"
        self.engine_reason = "asked for by name" if named else f"auto on {on.type}: the first engine that can run"
        if config.probe.every > 0:
            sets = {
                name: choose_probe_set(
                    instances,
                    n_points=config.probe.n_points,
                    map_points=config.probe.map_points,
                    seed=config.probe.seed,
                    split=name,
                )
                for name, instances in (("train", train), ("val", val))
            }
            self.probe = RunProbe(
                self.trainer.evaluator,
                sets,
                taskset.n_inputs,
                config.scores,
                self.engine,
                self.cadence,
                n_layers=config.model.n_layers,
                d_model=config.model.d_model,
                seed=config.probe.seed,
                train=train if config.probe.source == "batch" else None,
            )

    def resolved(self) -> Row:
        """Say what was decided, and why, once the rooms are built."""
        probe = self.probe.resolved() if self.probe else {}
        return {
            "device": str(self.device.torch_device),
            "device_reason": self.device.reason,
            "threads": self.device.threads,
            "compiled": self.trainer.compiled,
            "compile_reason": self.trainer.compile_reason,
            "engine": self.engine.name,
            "engine_reason": self.engine_reason,
            "probe_worker": self.beside,
            "probe_worker_reason": self.beside_reason,
            "cpu_kernels": native.status()[1],
            "n_parameters": sum(weight.numel() for weight in self.trainer.model.parameters()),
            "vocab_size": len(self.vocabulary),
            "n_train_instances": len(self.trainer.train),
            "n_val_instances": len(self.trainer.val),
            **probe,
        }

    def start_runner(self) -> ProbeRunner | None:
        """Start what runs the probes, from the probe's state at hand; None where nothing is probed."""
        if self.probe is None:
            return None
        if not self.beside:
            return InlineRunner(self.probe)
        threads = self.device.threads
        config = replace(
            self.config,
            training=replace(self.config.training, threads=threads),
            scores=replace(
                self.config.scores,
                engine=self.engine.name,
                threads=self.config.scores.threads or max(1, cpu_cores() - threads),
            ),
        )
        setup = {"config": config_to_dict(config), "taskset": self.taskset.to_toml_dict()}
        return WorkerRunner("fastcluster_lm.engine:serve_probes", setup, self.probe, self.trainer.model)

    def train(self, folder: RunFolder, hooks: Hooks) -> bool:
        """Take every step that is left; say whether the last one was reached."""
        rows, runner = RowQueue(folder), self.start_runner()
        try:
            finished = _Loop(self, folder, rows, runner, hooks).run()
        finally:
            if runner is not None:
                runner.close()
        if finished:
            folder.mark_finished(self._summary(folder))
        return finished

    def load(self, tensors: dict[str, dict[str, np.ndarray]], values: Row) -> None:
        """Take over a checkpoint."""
        as_tensors = {
            name: {key: torch.from_numpy(array) for key, array in arrays.items()} for name, arrays in tensors.items()
        }
        self.trainer.load_state(as_tensors["model"], as_tensors["optimizer"], values)
        if self.probe:
            self.probe.load_state(as_tensors["probe"])

    def _summary(self, folder: RunFolder) -> Row:
        rows = folder.steps()
        probe_seconds, waited, step_seconds = (
            sum(row[column] or 0.0 for row in rows) / 1e3 for column in ("probe_ms", "probe_wait_ms", "step_ms")
        )
        accuracies = [row["val_accuracy"] for row in rows if row["val_accuracy"] is not None]
        return {
            "steps": self.trainer.step,
            "early_stopping_step": self.trainer.mark.step,
            "val_accuracy": accuracies[-1],
            "probes": sum(row["probe_ms"] is not None for row in rows),
            "probe_seconds": probe_seconds,
            "probe_wait_seconds": waited,
            "step_seconds": step_seconds,
            "probe_share": waited / max(waited + step_seconds, 1e-9),
        }


class _Loop:
    """The steps of one call: each is taken, probed, written and saved as it is due."""

    def __init__(self, run: _Run, folder: RunFolder, rows: RowQueue, runner: ProbeRunner | None, hooks: Hooks) -> None:
        self._run, self._trainer, self._cadence = run, run.trainer, run.cadence
        self._folder, self._rows, self._runner, self._hooks = folder, rows, runner, hooks
        self._flushed_at = time.monotonic()

    def run(self) -> bool:
        """Go on to the last step, or to where the caller stops; say whether it was the last."""
        trainer, total = self._trainer, self._run.config.training.steps
        self._hooks.on_start(self._folder, trainer.step)
        if trainer.step == 0:
            self._finish_step({"step": 0})
        while trainer.step < total:
            if trainer.step > 0 and self._hooks.should_stop():
                if self._folder.latest_checkpoint() != trainer.step:
                    self._checkpoint()
                return False
            try:
                result = trainer.advance()
            except TrainingError:
                # the rows that wait say how it came to this
                self._collect(wait=True)
                self._rows.flush()
                raise
            row = {key: getattr(result, key) for key in ("step", "loss", "lr", "grad_norm", "step_ms", "tokens_per_s")}
            self._finish_step(row, result)
        return True

    def _finish_step(self, row: Row, result: StepResult | None = None) -> None:
        """Validate, probe, write and checkpoint, whatever of them is due after this step."""
        training, step = self._run.config.training, row["step"]
        last = step == training.steps
        if step % training.eval_every == 0 or last:
            row["val_accuracy"] = self._trainer.validate()
        started = time.perf_counter()
        probed = self._runner is not None and self._cadence.is_due(step)
        if self._runner is not None and result is not None:
            self._runner.observe(result.batch, result.states, step)
        if self._runner is not None and probed:
            self._runner.submit(step)
        self._rows.add_step(row, probed=probed)
        saved = step > 0 and (step % training.checkpoint_every == 0 or last)
        scores = self._collect(wait=saved)
        if self._runner is not None:
            row["probe_wait_ms"] = (time.perf_counter() - started) * 1e3
        if saved:
            self._checkpoint()
        elif self._is_due(step) or time.monotonic() - self._flushed_at > 2.0:
            self._flush()
        self._hooks.on_step(row, scores or None)

    def _is_due(self, step: int) -> bool:
        """Say whether rows are written at once; those of step probes can wait."""
        return step % self._run.config.training.eval_every == 0 or (
            self._cadence.is_due(step) and self._cadence.is_full(step)
        )

    def _collect(self, *, wait: bool) -> list[Row]:
        """Take the rows and maps of the probes that are done."""
        scores: list[Row] = []
        for step, result in self._runner.collect(wait=wait) if self._runner is not None else ():
            if result.maps:
                self._folder.write_map(step, result.maps, {"warm": str(result.warm).lower()})
            self._rows.add_probe(step, result.rows, result.seconds * 1e3)
            scores += result.rows
        return scores

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        self._rows.flush()

    def _checkpoint(self) -> None:
        """Save all that the next step depends on, behind the rows of all probes so far."""
        probe = self._runner.state() if self._runner is not None else {}
        self._collect(wait=True)
        self._flush()
        weights, moments, values = self._trainer.state()
        tensors = {"model": _arrays(weights), "optimizer": _arrays(moments), "probe": _arrays(probe)}
        self._folder.write_checkpoint(self._trainer.step, tensors, values)
        if self._run.config.training.keep_checkpoints:
            self._folder.keep_last(self._run.config.training.keep_checkpoints)


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensors[name].detach().cpu().contiguous().numpy() for name in sorted(tensors)}


def default_run_path(preset: str, now: time.struct_time | None = None) -> Path:
    """Name a dated folder under `runs/` that does not exist yet."""
    stem = f"{preset}-{time.strftime('%Y%m%d-%H%M%S', now or time.localtime())}"
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        path = Path("runs") / f"{stem}{suffix}"
        if not os.path.lexists(path):
            return path
    raise RunFolderError(f"runs/{stem}: expected a name that is free, found a hundred of them taken")
