"""Which checkpoint of a run is used, and what is said where one cannot be read; nothing is written or removed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fastcluster_lm.config import RunConfig
from fastcluster_lm.data import Vocabulary
from fastcluster_lm.engine.fit import MODEL, check_like, check_saved, check_weights
from fastcluster_lm.engine.rooms import Rooms
from fastcluster_lm.errors import NewerFormatError, RunFolderError, UsageError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.tasks import TaskSet


def checkpoint_to_resume(folder: RunFolder, from_step: int | None) -> int:
    """Name the checkpoint to go on from: the newest, or the one asked for; 0 where there is none yet, or by wish.

    Errors: UsageError if there is none of that step; RunFolderError if the newest cannot be read
    """
    if from_step is None:
        with _advising(folder, chosen=False):
            return folder.latest_checkpoint() or 0
    known = folder.checkpoint_steps()
    if from_step and from_step not in known:
        named = ", ".join(map(str, [0, *known]))
        why = folder.unreadable_checkpoints().get(from_step, "there is none")
        raise UsageError(
            f"--from-step: expected 0, the beginning, or the step of a checkpoint that can be read ({named}), "
            f"got {from_step}: {why}"
        )
    return from_step


def load_checkpoint(run: Rooms, folder: RunFolder, step: int, *, chosen: bool) -> None:
    """Load a checkpoint whole.

    Errors: RunFolderError if it cannot be read, or is not of this run
    """
    with _advising(folder, chosen=chosen):
        saved = folder.read_checkpoint(step)
    with _fitting(folder, step):
        check_saved(run, *saved, step)
    # what fails here is no fault of the checkpoint: too little memory, say
    run.load(*saved)


def check_model(folder: RunFolder, step: int, config: RunConfig, taskset: TaskSet, *, chosen: bool = True) -> None:
    """Look whether a checkpoint's weights are of the model that run.toml describes, before one is built by it.

    chosen: asked for by its step, so that no other is advised
    Errors: RunFolderError if they are not, or cannot be read
    """
    with _advising(folder, chosen=chosen):
        shapes = folder.checkpoint_shapes(step, MODEL)
    with _fitting(folder, step):
        check_weights(config.model, len(Vocabulary.of(taskset)), shapes)


def read_weights(
    folder: RunFolder, step: int, like: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint alone, which fit those of a model, if one is given.

    Errors: RunFolderError if they cannot be read, or do not fit
    """
    tensors = folder.read_checkpoint(step)[0]
    with _fitting(folder, step):
        if MODEL not in tensors:
            raise ValueError(f"expected weights, found {', '.join(tensors) or 'nothing'}")
        if like is not None:
            check_like(like, tensors[MODEL])
    return {name: torch.from_numpy(array) for name, array in tensors[MODEL].items()}


@contextmanager
def _advising(folder: RunFolder, *, chosen: bool) -> Iterator[None]:
    """Say of the newest checkpoint that cannot be read how to go on without it; one that was chosen is only named."""
    try:
        yield
    except NewerFormatError:
        raise
    except RunFolderError as error:
        if chosen:
            raise
        raise _unreadable(folder, error) from error


@contextmanager
def _fitting(folder: RunFolder, step: int) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        told = " ".join(f"{error}".split())
        raise RunFolderError(
            f"{folder.path}: the checkpoint of step {step} does not fit the model, training and probe that run.toml "
            f"describes: {told}; nothing was changed"
        ) from error


def newest_checkpoint(folder: RunFolder, purpose: str) -> int:
    """Name the newest checkpoint, for one who only reads the run.

    Errors: RunFolderError if there is none yet, or that one cannot be read, naming an earlier one that can
    """
    try:
        step = folder.latest_checkpoint()
    except NewerFormatError:
        raise
    except RunFolderError as error:
        earlier = folder.readable_before_newest()
        advice = "no earlier one can be read" if earlier is None else f"an earlier one can be read: --step {earlier}"
        raise RunFolderError(f"{error}. It is of the newest checkpoint; {advice}") from error
    if step is None:
        raise RunFolderError(f"{folder.path} has no checkpoint yet, so there are no weights to {purpose}")
    return step


def _unreadable(folder: RunFolder, error: RunFolderError) -> RunFolderError:
    """Say that the newest checkpoint cannot be read, and how to go on without it."""
    step = folder.readable_before_newest() or 0
    place = f"step {step}, the newest that can be read" if step else "the beginning: no earlier one can be read"
    return RunFolderError(
        f"{error}. It is of the newest checkpoint, and nothing was changed. Try again or restore it, or go on from "
        f"{place}: fclm train --resume {folder.path} --from-step {step}"
    )
