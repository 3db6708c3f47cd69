"""The errors a user may see, each with the exit status its command ends with; it catches and prints nothing."""

import difflib
from collections.abc import Iterable


class FclmError(Exception):
    """Something failed that the message explains: what was expected, what came, what to do."""

    exit_code = 1


class UsageError(FclmError):
    """The caller asked for something that cannot be: a wrong option, key, name or value."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration holds an unknown key, a wrong type or a value out of range."""


class TaskError(UsageError):
    """A task set is not well formed; the message names the key in its file."""


class EngineError(UsageError):
    """A scoring engine was named that cannot run here, or cannot honour a parameter."""


class RunExistsError(UsageError):
    """The run folder to be written exists already."""


class ShapeError(FclmError, ValueError):
    """Arrays whose shapes do not fit each other."""


class DataError(FclmError, ValueError):
    """Values that cannot be scored: NaN, infinity, too few points."""


class RunFolderError(FclmError):
    """A run folder cannot be read or written."""


class HeldError(RunFolderError):
    """Another process is writing there."""


class NewerFormatError(RunFolderError):
    """A file of a run was written by a newer version, in a format that this one does not know."""


class ProbeError(FclmError):
    """A probe cannot be run: its process ended, say."""


class TrainingError(FclmError):
    """Training cannot go on: the loss is not finite, say."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Say which known name is meant, as the end of an error message; empty if none is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
