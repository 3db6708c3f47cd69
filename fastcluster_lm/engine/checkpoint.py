"""Which checkpoint of a run is used, and what is said where one cannot be read; nothing is written or removed."""

from fastcluster_lm.engine.rooms import Rooms
from fastcluster_lm.errors import NewerFormatError, RunFolderError, UsageError
from fastcluster_lm.store import RunFolder


def checkpoint_to_resume(folder: RunFolder, from_step: int | None) -> int:
    """Name the checkpoint to go on from: the newest, or the one asked for; 0 where there is none yet, or by wish.

    Errors: UsageError if there is none of that step; RunFolderError if the newest cannot be read
    """
    if from_step is None:
        try:
            return folder.latest_checkpoint() or 0
        except NewerFormatError:
            raise
        except RunFolderError as error:
            raise _unreadable(folder, error) from error
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
    try:
        saved = folder.read_checkpoint(step)
    except NewerFormatError:
        raise
    except RunFolderError as error:
        if chosen:
            raise
        raise _unreadable(folder, error) from error
    try:
        run.load(*saved)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise RunFolderError(
            f"{folder.path}: the checkpoint of step {step} does not fit the model, training and probe that run.toml "
            f"describes: {error}; nothing was changed"
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
