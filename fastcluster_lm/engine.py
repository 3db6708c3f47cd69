"""Wire the rooms for one run: build it, train it, probe it, write it down; it prints nothing and parses nothing."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcluster_lm.config import RunConfig, config_from_dict, config_to_dict, differing_keys
from fastcluster_lm.data import Vocabulary, build_instances, split_instructions
from fastcluster_lm.device import Device, choose_device, describe_environment, generator
from fastcluster_lm.errors import ConfigError, RunFolderError, TrainingError
from fastcluster_lm.kernels import native
from fastcluster_lm.model import GPT2
from fastcluster_lm.probe import Cadence, RunProbe, choose_probe_set
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.store import RunFolder
from fastcluster_lm.tasks import TaskSet, taskset_from_dict, taskset_of
from fastcluster_lm.training import Trainer

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


class _Run:
    """All rooms of one run, built from its config."""

    def __init__(self, config: RunConfig, taskset: TaskSet) -> None:
        self.config = config
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
        # rows that wait for the next write
        self._pending_steps: list[Row] = []
        self._pending_scores: list[Row] = []
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
            "cpu_kernels": native.status()[1],
            "n_parameters": sum(weight.numel() for weight in self.trainer.model.parameters()),
            "vocab_size": len(self.vocabulary),
            "n_train_instances": len(self.trainer.train),
            "n_val_instances": len(self.trainer.val),
            **probe,
        }

    def train(self, folder: RunFolder, hooks: Hooks) -> bool:
        """Take every step that is left; say whether the last one was reached."""
        total = self.config.training.steps
        flushed_at = time.monotonic()
        hooks.on_start(folder, self.trainer.step)
        if self.trainer.step == 0:
            self._finish_step(folder, {"step": 0}, hooks)
        while self.trainer.step < total:
            if self.trainer.step > 0 and hooks.should_stop():
                self._flush(folder)
                if folder.latest_checkpoint() != self.trainer.step:
                    self._checkpoint(folder)
                return False
            try:
                result = self.trainer.advance()
            except TrainingError:
                # the rows that wait say how it came to this
                self._flush(folder)
                raise
            if self.probe:
                self.probe.observe(result.batch, result.states, result.step)
            row = {key: getattr(result, key) for key in ("step", "loss", "lr", "grad_norm", "step_ms", "tokens_per_s")}
            if self._is_due(result.step) or time.monotonic() - flushed_at > 2.0:
                flushed_at = time.monotonic()
                self._finish_step(folder, row, hooks)
            else:
                scores = self._probe(folder, row)
                self._pending_steps.append(row)
                hooks.on_step(row, scores)
        folder.mark_finished(self._summary(folder))
        return True

    def load(self, tensors: dict[str, dict[str, np.ndarray]], values: Row) -> None:
        """Take over a checkpoint."""
        as_tensors = {
            name: {key: torch.from_numpy(array) for key, array in arrays.items()} for name, arrays in tensors.items()
        }
        self.trainer.load_state(as_tensors["model"], as_tensors["optimizer"], values)
        if self.probe:
            self.probe.load_state(as_tensors["probe"])

    def _is_due(self, step: int) -> bool:
        """Say whether this step's row is written at once, with all that wait; step probes can wait."""
        training = self.config.training
        last = step == training.steps
        return (
            last
            or step % training.eval_every == 0
            or step % training.checkpoint_every == 0
            or (self.cadence.is_due(step) and self.cadence.is_full(step))
        )

    def _finish_step(self, folder: RunFolder, row: Row, hooks: Hooks) -> None:
        """Validate, probe, write and checkpoint, whatever of them is due after this step."""
        training, step = self.config.training, row["step"]
        if step % training.eval_every == 0 or step == training.steps:
            row["val_accuracy"] = self.trainer.validate()
        scores = self._probe(folder, row)
        self._pending_steps.append(row)
        self._flush(folder)
        if step > 0 and (step % training.checkpoint_every == 0 or step == training.steps):
            self._checkpoint(folder)
        hooks.on_step(row, scores)

    def _probe(self, folder: RunFolder, row: Row) -> list[Row] | None:
        """Probe if it is due, and note in the step's row what it took."""
        step = row["step"]
        if self.probe is None or not self.cadence.is_due(step):
            return None
        result = self.probe.score(step)
        row["probe_ms"] = result.seconds * 1e3
        if result.maps:
            folder.write_map(step, result.maps, {"warm": str(result.warm).lower()})
        self._pending_scores += result.rows
        return result.rows

    def _flush(self, folder: RunFolder) -> None:
        if self._pending_scores:
            folder.append_scores(self._pending_scores)
        if self._pending_steps:
            folder.append_steps(self._pending_steps)
        self._pending_scores, self._pending_steps = [], []

    def _checkpoint(self, folder: RunFolder) -> None:
        weights, moments, values = self.trainer.state()
        tensors = {
            "model": _arrays(weights),
            "optimizer": _arrays(moments),
            "probe": _arrays(self.probe.state() if self.probe else {}),
        }
        folder.write_checkpoint(self.trainer.step, tensors, values)
        if self.config.training.keep_checkpoints:
            folder.keep_last(self.config.training.keep_checkpoints)

    def _summary(self, folder: RunFolder) -> Row:
        rows = folder.steps()
        probe_seconds = sum(row["probe_ms"] or 0.0 for row in rows) / 1e3
        step_seconds = sum(row["step_ms"] or 0.0 for row in rows) / 1e3
        accuracies = [row["val_accuracy"] for row in rows if row["val_accuracy"] is not None]
        return {
            "steps": self.trainer.step,
            "early_stopping_step": self.trainer.mark.step,
            "val_accuracy": accuracies[-1],
            "probes": sum(row["probe_ms"] is not None for row in rows),
            "probe_seconds": probe_seconds,
            "step_seconds": step_seconds,
            "probe_share": probe_seconds / max(probe_seconds + step_seconds, 1e-9),
        }


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
