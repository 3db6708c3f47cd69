"""All rooms of one run, built from its config; nothing here takes a step or writes a file."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastcluster_lm.config import ModelConfig, RunConfig, config_to_dict
from fastcluster_lm.data import Vocabulary, build_instances, split_instructions
from fastcluster_lm.device import Device, choose_device, generator, worker_policy
from fastcluster_lm.engine.machine import machine_facts
from fastcluster_lm.kernels import native
from fastcluster_lm.model import GPT2, TrainableModel
from fastcluster_lm.probe import (
    Cadence,
    CudaRunner,
    InlineRunner,
    ProbeRunner,
    RingSource,
    RunProbe,
    WorkerProcess,
    WorkerRunner,
    choose_sources,
    started,
)
from fastcluster_lm.probe.positions import Scorers
from fastcluster_lm.scores.engines import choose_engine, decide_engine
from fastcluster_lm.store.disk_plan import plan_disk
from fastcluster_lm.tasks import TaskSet
from fastcluster_lm.training import Trainer

# config, vocabulary size, longest sequence and a generator for its weights, as GPT2 takes them
BuildModel = Callable[[ModelConfig, int, int, torch.Generator], TrainableModel]
# what a process beside training calls
WORKER = "fastcluster_lm.engine:serve_probes"


def device_of(config: RunConfig) -> Device:
    """Choose where a run computes, and set the threads that it takes there, of kernels and of torch."""
    native.use_threads(config.scores.threads or None, config.training.threads)
    return choose_device(config.device)


class Rooms:
    """All rooms of one run, built from its config."""

    def __init__(self, config: RunConfig, taskset: TaskSet, build_model: BuildModel = GPT2) -> None:
        self.config, self.taskset = config, taskset
        # before the first step, so that no probe waits for a compiler
        native.prepare()
        self.device: Device = device_of(config)
        on = self.device.torch_device
        split = split_instructions(
            taskset, n_train=config.data.n_train_instructions, n_val=config.data.n_val_instructions, seed=config.seed
        )
        self.vocabulary = Vocabulary.of(taskset)
        positions = config.probe.all_positions
        train = build_instances(taskset, split.train, self.vocabulary, on, positions=positions)
        val = build_instances(taskset, split.val, self.vocabulary, on, positions=positions)
        weights = generator(config.seed, torch.device("cpu"))
        model = build_model(config.model, len(self.vocabulary), train.tokens.shape[1], weights).to(on)
        self.trainer = Trainer(model, train, val, config.training, self.device, config.seed)
        self.cadence = Cadence(
            config.probe.every, config.training.steps, config.scores.key_frame_every, config.probe.full_period
        )
        shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        self.plan = plan_disk(config, taskset, shapes)
        self.probe: RunProbe | None = None
        self.beside, self.beside_reason = worker_policy(config.probe.worker, self.device, self.cadence.count())
        decided, self.engine_reason = decide_engine(config.scores.engine, on)
        self.engine = choose_engine(decided, on, config.scores.memory_mib)
        if config.probe.every > 0:
            # all layers of one position after those of another: (P * layers, d)
            shape = len(positions) * (config.model.n_layers + 1), config.model.d_model
            n_inputs = taskset.n_inputs
            splits = {"train": train, "val": val}
            sources = choose_sources(splits, self.trainer.evaluator, config.probe, n_inputs=n_inputs, shape=shape)
            ring = None
            if config.probe.source == "batch":
                chosen = sources["train"].points
                ring = RingSource(train, n_inputs, shape, len(chosen), len(chosen.shown()))
            scorer = Scorers(positions, config.scores, self.engine, on, config.probe.seed)
            self.probe = RunProbe(sources, ring, scorer, self.cadence)

    def resolved(self) -> dict[str, Any]:
        """Say what was decided, and why, once the rooms are built."""
        probe = self.probe.resolved() if self.probe else {}
        return {
            **machine_facts(self.device.torch_device, self.device.threads, self.engine.name),
            "device_reason": self.device.reason,
            "compiled": self.trainer.compiled,
            "compile_reason": self.trainer.compile_reason,
            "graphed": self.trainer.graphed,
            "graph_reason": self.trainer.graph_reason,
            "precision": str(self.trainer.precision).removeprefix("torch."),
            "precision_reason": self.trainer.precision_reason,
            "block": "fused" if self.trainer.fused_block else "plain",
            "block_reason": self.trainer.block_reason,
            "head": "fused" if self.trainer.fused_head else "plain",
            "head_reason": self.trainer.head_reason,
            "engine_reason": self.engine_reason,
            "engine_notes": list(self.engine.notes),
            "probe_worker": self.beside,
            "probe_worker_reason": self.beside_reason,
            "cpu_kernels": native.status()[1],
            "n_parameters": sum(weight.numel() for weight in self.trainer.model.parameters()),
            "vocab_size": len(self.vocabulary),
            "n_train_instances": len(self.trainer.train),
            "n_val_instances": len(self.trainer.val),
            **probe,
        }

    def start_runner(self, ahead: WorkerProcess | None = None) -> ProbeRunner | None:
        """Start what runs the probes, from the probe's state at hand; None where nothing is probed.

        ahead is a process that waits for this work, and is ended where there is none for it
        """
        if ahead is not None and not self.beside:
            ahead.close()
        if self.probe is None:
            return None
        if self.device.torch_device.type == "cuda" and self.config.probe.worker != "off":
            return CudaRunner(self.probe, self.device.torch_device)
        if not self.beside:
            return InlineRunner(self.probe)
        config = replace(
            self.config,
            training=replace(self.config.training, threads=self.device.threads),
            scores=replace(self.config.scores, engine=self.engine.name),
        )
        setup = {
            "config": config_to_dict(config),
            "taskset": self.taskset.to_toml_dict(),
            "compiled": native.compiled(),
        }
        return WorkerRunner(
            ahead or started(WORKER),
            setup,
            self.probe,
            self.trainer.model,
            timeout_s=self.config.probe.worker_timeout_s,
        )

    def load(self, tensors: dict[str, dict[str, np.ndarray]], values: dict[str, Any]) -> None:
        """Take over a checkpoint."""
        as_tensors = {
            name: {key: torch.from_numpy(array) for key, array in arrays.items()} for name, arrays in tensors.items()
        }
        self.trainer.load_state(as_tensors["model"], as_tensors["optimizer"], values)
        if self.probe:
            self.probe.load_state(as_tensors["probe"])
