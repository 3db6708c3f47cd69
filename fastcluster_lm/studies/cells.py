"""The cells of studies: which runs are needed, once each, and the folders that keep them; it judges nothing."""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from fastcluster_lm.config import RunConfig, apply_settings, config_to_dict, load_preset
from fastcluster_lm.errors import RunFolderError, UsageError, nearest_name
from fastcluster_lm.kernels.native import threads_kept
from fastcluster_lm.store.files import (
    encode_json,
    explaining,
    publish_folder,
    read_json,
    remove_temporaries,
    temporary_sibling,
    write_new_file,
)
from fastcluster_lm.store.lock import locked
from fastcluster_lm.studies.code import code_digest
from fastcluster_lm.studies.stored import CellRecord
from fastcluster_lm.studies.study import Arm, Study

# the studies' own names for whole runs
PRESETS = {"nano": "nano", "paper": "paper-32"}
# a plain run of each preset on one CPU core, None where none was timed; measured, presets/README.md
SECONDS: dict[str, float | None] = {"nano": 12.0, "paper": None}
MOST_CELLS = 400


@dataclass(frozen=True)
class Cell:
    """One run of one seed."""

    arm: Arm
    config: RunConfig

    @property
    def name(self) -> str:
        """Name its folder by what it does: equal runs of two studies are one cell."""
        what = [work_name(self.arm.work), config_to_dict(self.config), sorted(self.arm.options)]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.arm.work.__name__}-{self.config.name}-{self.config.seed}-{digest}"


def work_name(work: Callable[..., None]) -> str:
    """Name a cell's work as every version did: a finished cell is found again wherever its study's module lies."""
    return f"{work.__module__.replace('.studies.experiments.', '.studies.')}.{work.__qualname__}"


def preset_config(preset: str, seed: int, settings: Iterable[str] = ()) -> RunConfig:
    """Give the config of a study's run.

    Errors: UsageError for an unknown preset; ConfigError for a setting
    """
    if preset not in PRESETS:
        raise UsageError(
            f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}{nearest_name(preset, PRESETS)}"
        )
    settings = list(settings)
    base = load_preset(PRESETS[preset])
    config = apply_settings(base, [text for text in settings if not text.startswith("probe.")])
    # a larger task set is probed at as many points for each distribution and input
    points = [
        f"probe.{name}={getattr(base.probe, name) * _n_cells(config) // _n_cells(base)}"
        for name in ("n_points", "map_points")
    ]
    return apply_settings(base, [*points, *settings, f"seed={seed}"])


def _n_cells(config: RunConfig) -> int:
    return config.tasks.n_tasks * config.tasks.n_distributions * config.tasks.n_inputs


def cells_of(study: Study, preset: str, seed: int) -> dict[str, Cell]:
    """List the cells of one study at one seed, by the names of its arms."""
    return {
        name: Cell(arm, preset_config(preset, seed if arm.seed is None else arm.seed, arm.settings))
        for name, arm in study.arms(preset).items()
    }


def needed_cells(studies: Iterable[Study], preset: str, seeds: Iterable[int]) -> dict[str, Cell]:
    """List the cells of some studies and seeds, each once, by their names."""
    studies = list(studies)
    return {cell.name: cell for seed in seeds for study in studies for cell in cells_of(study, preset, seed).values()}


class CellStore:
    """The folder of all cells; a finished one is there whole, and nothing else is.

    Notes: any number of processes may fill it; each cell has a lock in `.locks/`, which the kernel frees if its holder
           dies, and is made in a folder of its holder's own
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, cell: Cell) -> Path:
        """Say where a cell is, or will be."""
        return self.root / cell.name

    def has(self, cell: Cell) -> bool:
        """Say whether a cell is finished: all that its maker left is there."""
        return _missing(self.path(cell)) is None

    def fill(self, cell: Cell, say: Callable[[str], None] = lambda text: None) -> float:
        """Do a cell's work, unless it is finished; give the seconds it took.

        A folder of its name that is not whole is moved aside, which is said.
        Errors: HeldError if another process is making it; RunFolderError if the disk refuses or what the work left is
                not whole, and whatever the work raises; the cell is then not there
        """
        path = self.path(cell)
        if self.has(cell):
            return self.seconds(cell) or 0.0
        locks = self.root / ".locks"
        with explaining("make", locks):
            locks.mkdir(parents=True, exist_ok=True)
        with locked(locks / cell.name, what=path):
            # whoever held the lock before may have finished it
            return (self.seconds(cell) or 0.0) if self.has(cell) else self._make(cell, say)

    def _make(self, cell: Cell, say: Callable[[str], None]) -> float:
        path = self.path(cell)
        self._clear(path, say)
        aside = temporary_sibling(path)
        with explaining("make", aside):
            aside.mkdir()
        started = time.monotonic()
        with threads_kept():
            cell.arm.work(cell.config, aside, dict(cell.arm.options))
        seconds = time.monotonic() - started
        unfinished = _unfinished(aside)
        if unfinished is not None:
            raise RunFolderError(f"{path} cannot be finished: {unfinished}; what there is stands in {aside}")
        with explaining("finish", path):
            made = {"seconds": seconds, "cost": float(cell.arm.cost), "code": code_digest(), "files": _sizes(aside)}
            write_new_file(aside / "cell.json", encode_json(made, "cell"))
            publish_folder(aside, path)
        return seconds

    def _clear(self, path: Path, say: Callable[[str], None]) -> None:
        """Make room for a cell, for the holder of its lock: leftovers of the dead go, a broken cell is moved aside."""
        with explaining("clean", path):
            remove_temporaries(self.root, path.name)
            # as an older version named it
            shutil.rmtree(path.with_name(f".{path.name}.part"), ignore_errors=True)
            if not os.path.lexists(path):
                return
            broken = next(
                place for n in count(1) if not os.path.lexists(place := path.with_name(f"{path.name}.broken-{n}"))
            )
            say(f"{path} is not whole ({_missing(path)}): moved to {broken.name}, and made again")
            os.replace(path, broken)

    def seconds(self, cell: Cell) -> float | None:
        """Say how long a finished cell took; None if it is not finished."""
        if not self.has(cell):
            return None
        return float(read_json(self.path(cell) / "cell.json", CellRecord)["seconds"])

    def count_by_code(self, studies: Iterable[Study], preset: str, seeds: Iterable[int]) -> dict[str, int]:
        """Count the finished cells of some studies by the code that made them, "unknown" where none is named."""
        cells = needed_cells(studies, preset, seeds)
        done = [self.path(cell) / "cell.json" for cell in cells.values() if self.has(cell)]
        return dict(Counter(read_json(path, CellRecord).get("code", "unknown") for path in done))


@dataclass(frozen=True)
class Plan:
    """All cells of some studies and seeds, each once, and what they will take."""

    preset: str
    cells: Mapping[str, Cell]
    finished: int
    seconds_left: float | None

    @classmethod
    def of(cls, studies: Iterable[Study], preset: str, seeds: Iterable[int], store: CellStore) -> "Plan":
        """List what is needed, and estimate what is left from cells that are finished, or from the preset's time.

        Errors: UsageError for more than MOST_CELLS cells
        """
        cells = needed_cells(studies, preset, seeds)
        if len(cells) > MOST_CELLS:
            raise UsageError(f"expected a plan of at most {MOST_CELLS} runs, got {len(cells)}; ask for fewer seeds")
        done = [cell for cell in cells.values() if store.has(cell)]
        left = sum(cell.arm.cost for name, cell in cells.items() if not store.has(cell))
        costs = sum(cell.arm.cost for cell in done)
        known = sum(store.seconds(cell) or 0.0 for cell in done) / costs if done else SECONDS[preset]
        return cls(preset, cells, len(done), None if known is None else left * known)


def _missing(path: Path) -> str | None:
    """Say what keeps a folder from being a finished cell; None if it is one.

    Notes: cells of an older version list no files, and are held against the runs in them alone
    """
    if not (path / "cell.json").is_file():
        return "no cell.json"
    try:
        files = read_json(path / "cell.json", CellRecord).get("files")
    except RunFolderError as error:
        return str(error)
    if files is None:
        return _unfinished(path)
    for name, size in files.items():
        try:
            found = (path / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != size:
            return f"{name}: expected {size} bytes, found {found}"
    return None


def _unfinished(path: Path) -> str | None:
    """Say what the work on a cell left undone; None if it is all done."""
    files = _sizes(path)
    if not files.keys() - {"cell.json"}:
        return "its work left no file"
    for name in files:
        run = Path(name).parent
        if Path(name).name == "run.toml" and (run / "summary.json").as_posix() not in files:
            return f"run {run} has no summary.json, so it is not finished"
    return None


def _sizes(path: Path) -> dict[str, int]:
    """List the files below a folder with their sizes, by their names from there."""
    found = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return {entry.relative_to(path).as_posix(): entry.stat().st_size for entry in found}
