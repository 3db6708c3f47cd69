"""Wire the rooms for one run: build it, train it, probe it, write it down; it prints nothing and parses nothing."""

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fastcluster_lm.config import (
    NO_CONFIG,
    RECORD_CHANGES,
    TRAINING_CHANGES,
    RunConfig,
    config_from_dict,
    config_to_dict,
    differing_keys,
    value_of,
)
from fastcluster_lm.device import cpu_cores, describe_environment
from fastcluster_lm.engine.changes import values_at, with_change
from fastcluster_lm.engine.checkpoint import check_model, checkpoint_to_resume, load_checkpoint
from fastcluster_lm.engine.loop import Hooks, Loop, Row, train
from fastcluster_lm.engine.machine import check_unmoved, describe_moved, moved_facts, nearest_facts, unknown_facts
from fastcluster_lm.engine.rooms import WORKER, Rooms
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.kernels import native
from fastcluster_lm.probe import RunProbe, Waiting, WorkerProcess, copied, serve
from fastcluster_lm.store import RunFolder, default_run_path
from fastcluster_lm.store.disk_plan import check_budget
from fastcluster_lm.store.files import explaining
from fastcluster_lm.tasks import taskset_from_dict, taskset_of

__all__ = [
    "Hooks",
    "Loop",
    "Rooms",
    "Row",
    "RunFolder",
    "RunOutcome",
    "default_run_path",
    "resume_run",
    "serve_probes",
    "start_run",
    "stored_config",
    "worker_ahead",
]


@dataclass(frozen=True)
class RunOutcome:
    """How a call ended: the folder, and whether the last step was reached."""

    folder: RunFolder
    finished: bool
    already_finished: bool = False
    resumed_from: int | None = None


@native.threads_kept()
def start_run(
    run: RunConfig | Rooms, out: str | Path, hooks: Hooks | None = None, *, ahead: WorkerProcess | None = None
) -> RunOutcome:
    """Train and probe a new run in a new folder.

    Instead of a config come the rooms of one with other tasks, or with another model, weights or loss; with these the
    run cannot be resumed from its folder alone. ahead is a process from `worker_ahead`.
    Errors: RunExistsError if the folder exists; ConfigError, TaskError, EngineError before anything is written;
            TrainingError, ProbeError, DataError on the way, with all written that was complete
    """
    if isinstance(run, RunConfig):
        run = Rooms(run, taskset_of(run.tasks, run.seed))
    stored = {**config_to_dict(run.config), "resolved": run.resolved(), "taskset": run.taskset.to_toml_dict()}
    limited, hooks = check_budget(run.plan, run.config.store.max_mib), hooks or Hooks()
    folder = RunFolder.create(out, stored, describe_environment())
    hooks.note("; ".join(filter(None, (f"takes {run.plan}", limited, _scarcity(run.plan.total, folder.path)))))
    with folder.lock():
        finished = train(run, folder, hooks, ahead)
    return RunOutcome(folder, finished)


@native.threads_kept()
def resume_run(
    path: str | Path,
    hooks: Hooks | None = None,
    *,
    wanted: Callable[[RunConfig], RunConfig] | None = None,
    from_step: int | None = None,
    on_this_machine: bool = False,
    ahead: WorkerProcess | None = None,
) -> RunOutcome:
    """Go on with a run from its newest checkpoint, bit for bit; a finished run is left as it is.

    `wanted` gives the config asked for from the stored one; a few keys may be changed (TRAINING_CHANGES and
    RECORD_CHANGES), if others differ the run is not touched. from_step names an earlier checkpoint, or 0 for the
    beginning, and takes up a finished run too. on_this_machine goes on where a fact of the machine would change the
    bits of the steps to come. run.toml says what changed, and from which step on. Nothing in the folder changes
    before the checkpoint is loaded whole; what is later is then set aside, not removed.
    Errors: ConfigError naming the keys that differ; UsageError naming the facts that do; RunFolderError if the folder,
            or the checkpoint, cannot be read
    """
    folder, hooks = RunFolder.open(path), hooks or Hooks()
    stored = folder.config()
    config = stored_config(stored, str(path))
    asked = wanted(config) if wanted else config
    # where probes run changes no byte, and is for the machine at hand to say
    here_alone = replace(config.probe, worker=asked.probe.worker, worker_timeout_s=asked.probe.worker_timeout_s)
    config = replace(config, probe=here_alone)
    changeable = (*TRAINING_CHANGES, *RECORD_CHANGES)
    if differing := [key for key in differing_keys(config, asked) if key not in changeable]:
        raise ConfigError(
            f"--resume: expected the configuration stored in {path}, got other values for {', '.join(differing)}; "
            f"leave those options out, or start a new run; only {', '.join(changeable)} may change"
        )
    if folder.status() == "finished" and from_step is None:
        return RunOutcome(folder, finished=True, already_finished=True)
    with folder.lock():
        step = checkpoint_to_resume(folder, from_step)
        # device, threads and engine were decided when the run began, and are kept: its bits depend on them
        begun = values_at(stored, step)
        here = nearest_facts(begun["resolved"])
        moved, unknown = moved_facts(begun["resolved"], here), unknown_facts(begun["resolved"], here)
        if step and not on_this_machine:
            check_unmoved(str(path), begun["resolved"], moved)
        config = replace(
            asked,
            device=here["device"].partition(":")[0],
            scores=replace(asked.scores, engine=here["engine"]),
            training=replace(asked.training, threads=here["threads"]),
        )
        taskset = taskset_from_dict(stored["taskset"])
        if step:
            check_model(folder, step, config, taskset, chosen=from_step is not None)
        run = Rooms(config, taskset)
        limited = check_budget(run.plan, config.store.max_mib)
        if step:
            load_checkpoint(run, folder, step, chosen=from_step is not None)
        folder.clean()
        for said in folder.let_go_of_repeated():
            hooks.note(said)
        # before the first step even the rows of step 0 are to come again
        gone = folder.set_aside_after(step or -1)
        if gone is not None:
            hooks.note(f"{gone}, later than step {step}")
        for said in _record_changes(folder, stored, begun, step, asked, {**moved, **unknown}):
            hooks.note(said)
        if limited:
            hooks.note(limited)
        finished = train(run, folder, hooks, ahead)
    return RunOutcome(folder, finished, resumed_from=step)


def _record_changes(
    folder: RunFolder,
    stored: Mapping[str, Any],
    begun: Mapping[str, Any],
    step: int,
    asked: RunConfig,
    facts: Mapping[str, Any],
) -> list[str]:
    """Write into run.toml what is other from this step on than when the run began; say it in sentences.

    stored is run.toml as it is, begun as it was at that step; facts are those of the machine that are new or unknown
    """
    resolved, before = begun["resolved"], stored_config(begun, str(folder.path))
    settings = {
        key: value_of(asked, key)
        for key in differing_keys(before, asked)
        if key in (*TRAINING_CHANGES, *RECORD_CHANGES)
    }
    told = []
    if known := {key: value for key, value in facts.items() if key in resolved}:
        told.append(f"on this machine from step {step} on: {describe_moved(resolved, known)}")
    if unknown := [key for key in facts if key not in resolved]:
        told.append(
            f"run.toml, of an earlier version, does not say {', '.join(unknown)}: not compared, and written there now"
        )
    if settings:
        said = (f"{key} {value_of(before, key)} -> {value}" for key, value in settings.items())
        told.append(f"from step {step} on: {', '.join(said)}")
    now = with_change(begun, step, {**{f"resolved.{key}": value for key, value in facts.items()}, **settings})
    if now != stored:
        folder.rewrite_config(now)
    return told


def _scarcity(size: int, path: Path) -> str:
    """Say that a disk has less free than a run will take; empty where it has enough."""
    with explaining("measure the disk of", path):
        free = shutil.disk_usage(path).free
    return f"only {free / 2**20:.3g} MiB are free there" if free < size else ""


def stored_config(stored: Mapping[str, Any], origin: str) -> RunConfig:
    """Read the config back from the contents of a run.toml.

    Errors: ConfigError for a run that was not trained here, since its run.toml says nothing of its training
    """
    if "attached" in stored:
        raise ConfigError(
            f"{origin}: expected a run that `fclm train` made, got one of a probe attached to another loop, or of "
            "`fclm probe`; what trained that model is what can repeat it or go on with it"
        )
    values = {key: value for key, value in stored.items() if key not in NO_CONFIG}
    return config_from_dict(values, origin=origin)


@contextmanager
def worker_ahead(config: RunConfig) -> Iterator[WorkerProcess | None]:
    """Have a process wait beside this one, for a run's probes; it ends with the body, or with a run that has no use.

    A copy of this process is ready at once, where a fresh one takes 2 s to load torch; None where nothing is probed
    beside training, or no copy can be made. Only for a process in which torch has computed nothing yet
    """
    beside = config.probe.worker == "on" or (config.probe.worker == "auto" and cpu_cores() > 1)
    if config.probe.every == 0 or config.device == "cuda" or not beside:
        yield None
        return
    # what is loaded stays, so that collections on either side leave its memory shared
    gc.freeze()
    ahead = copied(WORKER)
    try:
        yield ahead
    finally:
        if ahead is not None:
            ahead.close()


def serve_probes(descriptor: int, waiting_descriptor: int) -> None:
    """Build the run that a connection's other side describes, and probe for it until it ends.

    This is what a process beside training does, with the two file descriptors that a WorkerProcess hands over
    """
    waiting = Waiting(waiting_descriptor)

    def build(setup: Mapping[str, Any]) -> tuple[RunProbe, torch.nn.Module]:
        if not setup["compiled"]:
            # what could not be compiled there is not tried again here
            native.turn_off("the run that is probed has none")
        run = Rooms(config_from_dict(setup["config"]), taskset_from_dict(setup["taskset"]))
        assert run.probe is not None
        native.share_cores(waiting.__bool__, run.config.scores.threads, run.device.threads)
        # what was built stays, so that no later collection walks through it
        gc.collect()
        gc.freeze()
        return run.probe, run.trainer.model

    with Connection(descriptor) as connection:
        serve(connection, build)
