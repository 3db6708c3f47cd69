"""The run folder: the one place that knows which file of a run holds what; it trains, scores and draws nothing."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import tomli_w

from fastcluster_lm.config import RUN_FORMAT
from fastcluster_lm.errors import DataError, RunFolderError, nearest_name
from fastcluster_lm.store import checkpoints, lines, lock, set_aside
from fastcluster_lm.store.arrays import Arrays, encode_arrays, read_arrays
from fastcluster_lm.store.files import (
    check_format,
    encode_json,
    explaining,
    fitting,
    is_file,
    is_folder,
    new_folder,
    read_json,
    remove_folder,
    remove_temporaries,
    replace_file,
    total_size,
    write_new_file,
)
from fastcluster_lm.store.rows import SCORE_COLUMNS, STEP_COLUMNS, score_row, step_row
from fastcluster_lm.store.schemas import ScoreRow, StepRow, Summary, check_run
from fastcluster_lm.store.set_aside import SetAside
from fastcluster_lm.store.tail import LineTail
from fastcluster_lm.untrusted import read_toml

# a map that names none is of the first
MAP_FORMAT = 1
# numbers of validation instances begin here in a stored map, beyond all that training could have
FIRST_VAL_ID = 2**40
TABLES = ("steps.jsonl", "scores.jsonl")
# all else that is written into the folder itself
BESIDE = ("run.toml", "environment.json", "summary.json", "lock")
Status = Literal["finished", "running", "stopped"]
StoredRow = dict[str, Any]


class RunFolder:
    """One run on disk: `RunFolder.create` makes it, `RunFolder.open` finds it; any number of readers, one writer."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, object], environment: Mapping[str, object]) -> Self:
        """Make a run folder with its run.toml and environment.json; it appears whole, by one rename.

        Errors: RunExistsError if the path exists; DataError if something cannot be stored; RunFolderError if the
                disk refuses
        """
        path = Path(path)
        run_toml, environment_json = (
            _encode_toml({"format": RUN_FORMAT, **config}),
            encode_json(dict(environment), "environment"),
        )
        with new_folder(path, "create", "choose another name, resume that run, or remove it") as aside:
            write_new_file(aside / "run.toml", run_toml)
            write_new_file(aside / "environment.json", environment_json)
            for name in ("maps", "checkpoints"):
                (aside / name).mkdir()
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Find a run folder; nothing is written, and no file is read yet.

        Errors: RunFolderError if there is no such folder or it has no run.toml, naming the run that may be meant
        """
        path = Path(path)
        with explaining("open", path):
            if not path.is_dir():
                raise RunFolderError(f"there is no run folder {path}{_nearest_run(path)}")
        if not os.path.lexists(path / "run.toml"):
            raise RunFolderError(f"{path} has no run.toml, so it is not a run folder{_nearest_run(path)}")
        return cls(path)

    def config(self) -> dict[str, Any]:
        """Read run.toml, the resolved configuration.

        Errors: RunFolderError naming the file, if it is missing, damaged, or does not describe a run;
                NewerFormatError if a newer fclm wrote it
        """
        path = self.path / "run.toml"
        with explaining("read", path), fitting(path):
            config = read_toml(path)
            # before the schema, which a newer format need not fit
            check_format(path, config.pop("format", RUN_FORMAT), RUN_FORMAT)
            check_run(config)
        return config

    def rewrite_config(self, config: Mapping[str, object]) -> None:
        """Write run.toml anew, whole or not at all; only for the holder of the lock.

        Errors: DataError if something cannot be stored; RunFolderError if the disk refuses
        """
        replace_file(self.path / "run.toml", _encode_toml({"format": RUN_FORMAT, **config}))

    def environment(self) -> dict[str, object]:
        """Read environment.json: versions, device, engine, as the run found them.

        Errors: RunFolderError naming the file, if it is missing or damaged
        """
        return read_json(self.path / "environment.json")

    def append_steps(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows to steps.jsonl, in one write forced to disk.

        Errors: DataError as for step_row, or without a step; RunFolderError if the disk refuses, with no row added
        """
        lines.append_lines(self.path / "steps.jsonl", [step_row(row) for row in rows])

    def append_scores(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows to scores.jsonl, in one write forced to disk.

        Errors: DataError as for score_row, or without a step; RunFolderError if the disk refuses, with no row added
        """
        lines.append_lines(self.path / "scores.jsonl", [score_row(row) for row in rows])

    def steps(self) -> list[StoredRow]:
        """Read steps.jsonl in the order written; a column that an older version did not write is None.

        Errors: RunFolderError naming file and line, if a line before the last is damaged; warns of a torn last line
        """
        return [dict.fromkeys(STEP_COLUMNS) | row for row in lines.read_lines(self.path / "steps.jsonl", StepRow)]

    def scores(self) -> list[StoredRow]:
        """Read scores.jsonl in the order written; a column that an older version did not write is None.

        Errors: RunFolderError naming file and line, if a line before the last is damaged; warns of a torn last line
        """
        return [dict.fromkeys(SCORE_COLUMNS) | row for row in lines.read_lines(self.path / "scores.jsonl", ScoreRow)]

    def follow(self, table: Literal["steps", "scores"]) -> LineTail:
        """Read a table as it grows; a column that an older version did not write is None."""
        schema, columns = (StepRow, STEP_COLUMNS) if table == "steps" else (ScoreRow, SCORE_COLUMNS)
        return LineTail(self.path / f"{table}.jsonl", schema, columns)

    def set_aside_after(self, step: int) -> SetAside | None:
        """Move all that is later than a step, and the mark of the finished run, to a place of its own; -1: every step.

        Nothing is changed before all of it was read; what was moved, or None where nothing was
        Errors: RunFolderError if a table is damaged or the disk refuses; called again it finishes what it began
        """
        return set_aside.set_aside_after(self.path, step)

    def let_go_of_repeated(self, summary: Mapping[str, Any] | None = None) -> list[str]:
        """Remove of what was set aside all that the run holds again, byte for byte but for the times of its steps.

        summary is what the run is about to be marked as finished with; sentences say what stays, since it cannot be
        read
        """
        return set_aside.let_go_of_repeated(self.path, summary)

    def write_map(self, step: int, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Write the arrays of a step's maps, and text beside them, in place of any the step has.

        Errors: DataError if something cannot be stored; RunFolderError if the disk refuses
        """
        data = encode_arrays(arrays, {"format": str(MAP_FORMAT), **metadata})
        with explaining("write", self._maps):
            self._maps.mkdir(exist_ok=True)
        replace_file(self._map_path(step), data)

    def map_steps(self) -> list[int]:
        """List the steps that have maps, in order."""
        return checkpoints.named_steps(self._maps, suffix=".safetensors")

    def read_map(self, step: int) -> tuple[Arrays, dict[str, str]]:
        """Read the arrays of a step's maps and the text beside them.

        Errors: RunFolderError if there are none, or the file is damaged; NewerFormatError if a newer fclm wrote it
        """
        path = self._map_path(step)
        if not is_file(path):
            known = ", ".join(map(str, self.map_steps())) or "none"
            raise RunFolderError(f"{self.path} has no maps of step {step}; steps that have some: {known}")
        with explaining("read", path), fitting(path):
            arrays, metadata = read_arrays(path)
        stored = metadata.pop("format", str(MAP_FORMAT))
        check_format(path, int(stored) if re.fullmatch(r"[0-9]{1,9}", stored) else stored, MAP_FORMAT)
        return arrays, metadata

    def write_checkpoint(
        self, step: int, tensors: Mapping[str, Mapping[str, np.ndarray]], state: Mapping[str, object]
    ) -> None:
        """Write a step's checkpoint: a safetensors file for each group of tensors, and the state as JSON.

        Errors: RunFolderError if the step has one already or the disk refuses; DataError if something cannot be stored
        """
        checkpoints.write_checkpoint(self._checkpoints, step, tensors, state)

    def checkpoint_steps(self) -> list[int]:
        """List the steps with a whole checkpoint, in order."""
        return checkpoints.checkpoint_steps(self._checkpoints)

    def latest_checkpoint(self) -> int | None:
        """Name the latest step with a checkpoint; None if there is none yet.

        Errors: RunFolderError if that one cannot be read, whatever earlier ones there are; NewerFormatError
        """
        steps = checkpoints.named_steps(self._checkpoints)
        if steps:
            checkpoints.check_whole(self._checkpoints / checkpoints.step_name(steps[-1]))
            return steps[-1]
        if not is_folder(self._checkpoints):
            raise RunFolderError(f"{self._checkpoints} is not there, though every run is made with it: restore it")
        return None

    def readable_before_newest(self) -> int | None:
        """Name the latest step before the newest checkpoint's whose own can be read to its last byte; None if none is.

        Errors: RunFolderError if the checkpoints cannot be listed
        """
        for step in reversed(checkpoints.named_steps(self._checkpoints)[:-1]):
            try:
                self.read_checkpoint(step)
            except RunFolderError:
                continue
            return step
        return None

    def unreadable_checkpoints(self) -> dict[int, str]:
        """Say of each checkpoint that is not whole what is wrong with it."""
        found = {}
        for step in checkpoints.named_steps(self._checkpoints):
            try:
                checkpoints.check_whole(self._checkpoints / checkpoints.step_name(step))
            except RunFolderError as error:
                found[step] = str(error)
        return found

    def read_checkpoint(self, step: int) -> tuple[dict[str, Arrays], dict[str, object]]:
        """Read a step's tensors, by group and name, and its state.

        Errors: RunFolderError if there is none, or a file is missing or differs from what was written
        """
        return checkpoints.read_checkpoint(self._checkpoints, step)

    def checkpoint_shapes(self, step: int, group: str) -> dict[str, tuple[int, ...]]:
        """Read the shape of every tensor of one group of a step's checkpoint, and nothing else of it.

        Errors: RunFolderError if there is none, or it is damaged
        """
        return checkpoints.read_group_shapes(self._checkpoints, step, group)

    def keep_last(self, n: int) -> None:
        """Remove all whole checkpoints but the last n.

        Errors: DataError if n < 1; RunFolderError if the disk refuses
        """
        if n < 1:
            raise DataError(f"keep_last has n={n}; expected 1 or more, since a run without a checkpoint cannot go on")
        for step in self.checkpoint_steps()[:-n]:
            self.drop_checkpoint(step)

    def drop_checkpoint(self, step: int) -> None:
        """Remove a checkpoint; it may be gone already.

        Errors: RunFolderError if the disk refuses
        """
        with explaining("remove a checkpoint of", self.path), suppress(FileNotFoundError):
            remove_folder(self._checkpoints / checkpoints.step_name(step))

    def drop_map(self, step: int) -> None:
        """Remove a step's maps, and any copy of them, byte for byte, that was set aside; they may be gone already.

        Errors: RunFolderError if the disk refuses
        """
        with explaining("remove a map of", self.path):
            set_aside.let_go_of_map(self.path, self._map_path(step))
            self._map_path(step).unlink(missing_ok=True)

    def map_size(self, step: int) -> int:
        """Give the bytes of a step's maps; 0 if there are none.

        Errors: RunFolderError if the disk refuses
        """
        with explaining("measure", self._map_path(step)):
            return total_size(self._map_path(step))

    def checkpoint_sizes(self) -> dict[int, int]:
        """Give the bytes of each whole checkpoint.

        Errors: RunFolderError if the disk refuses
        """
        with explaining("measure", self._checkpoints):
            return {
                step: total_size(self._checkpoints / checkpoints.step_name(step)) for step in self.checkpoint_steps()
            }

    def sizes(self) -> dict[str, int]:
        """Give the bytes of the rows, and of what the run writes beside rows, maps and checkpoints.

        What others put into the folder counts nowhere, nor does what was set aside
        Errors: RunFolderError if the disk refuses
        """
        with explaining("measure", self.path):
            return {
                kind: sum(total_size(self.path / name) for name in names)
                for kind, names in (("rows", TABLES), ("beside", BESIDE))
            }

    def set_aside_size(self) -> int:
        """Give the bytes of what was set aside.

        Errors: RunFolderError if the disk refuses
        """
        with explaining("measure", self.path / set_aside.PLACE):
            return total_size(self.path / set_aside.PLACE)

    def clean(self) -> None:
        """Remove what crashed writers left, written to no end and under no name; only for the holder of the lock.

        Errors: RunFolderError if the disk refuses
        """
        with explaining("clean", self.path):
            for folder in (self.path, self._maps, self._checkpoints):
                remove_temporaries(folder)
            # of those who began to create this very run
            remove_temporaries(self.path.parent, self.path.name)

    def lock(self) -> AbstractContextManager[None]:
        """Be the one writer for the length of a `with` block; the lock ends with the process, however it ends.

        Errors: RunFolderError naming process and host, if another holds it
        """
        return lock.locked(self.path / "lock")

    def mark_finished(self, summary: Mapping[str, object]) -> None:
        """Write summary.json, which makes the run a finished one.

        Errors: DataError if something cannot be stored; RunFolderError if the disk refuses
        """
        replace_file(self.path / "summary.json", encode_json(dict(summary), "summary"))

    def summary(self) -> dict[str, object] | None:
        """Read summary.json; None if the run is not finished.

        Errors: RunFolderError naming the file, if it is damaged
        """
        path = self.path / "summary.json"
        return read_json(path, Summary) if os.path.lexists(path) else None

    def status(self) -> Status:
        """Say whether the run is finished, or some process is writing it, or it stopped on its way."""
        if os.path.lexists(self.path / "summary.json"):
            return "finished"
        return "running" if lock.is_locked(self.path / "lock") else "stopped"

    @property
    def _maps(self) -> Path:
        return self.path / "maps"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _map_path(self, step: int) -> Path:
        return self._maps / f"{checkpoints.step_name(step)}.safetensors"


def list_runs(root: str | Path) -> list[RunFolder]:
    """List the run folders directly below a folder, by name; what is no run folder is passed over.

    Errors: RunFolderError if there is no such folder
    """
    root = Path(root)
    if not is_folder(root):
        raise RunFolderError(f"there is no folder {root} to look for runs in")
    with explaining("read", root):
        found = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    # one whose run.toml is damaged, or a pipe or a broken link by now, is a run all the same
    return [RunFolder(entry) for entry in found if os.path.lexists(entry / "run.toml")]


def _encode_toml(config: Mapping[str, object]) -> bytes:
    try:
        return tomli_w.dumps(config).encode()
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the configuration cannot be stored as TOML, which has no place for None: {error}") from error


def _nearest_run(path: Path) -> str:
    if not is_folder(path.parent):
        return ""
    return nearest_name(path.name, [run.path.name for run in list_runs(path.parent)])
