"""What a resume takes out of a run: moved to a place of its own, and let go once the run holds the same again."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store import checkpoints, lines
from fastcluster_lm.store.files import explaining, is_folder, read_json, remove_temporaries, replace_file, sync_folder

PLACE = "set-aside"
# scores first, so that no step lacks its own
TABLES = ("scores.jsonl", "steps.jsonl")
SUMMARY = "summary.json"
CONFIG = "run.toml"
# what the clock says of a step; all else comes out the same when the step is taken again
TIMES = ("step_ms", "probe_ms", "probe_wait_ms", "tokens_per_s")


@dataclass(frozen=True)
class SetAside:
    """What was moved, and where to."""

    path: Path
    checkpoints: int
    maps: int
    rows: int

    def __str__(self) -> str:
        counted = ((self.checkpoints, "checkpoint"), (self.maps, "map"), (self.rows, "row"))
        what = ", ".join(f"{n} {name}{'s' if n > 1 else ''}" for n, name in counted if n)
        return f"{what or 'the mark of the finished run'} set aside in {self.path}"


def set_aside_after(run: Path, step: int) -> SetAside | None:
    """Move all that is later than a step, and the mark of the finished run, out of a run; None if there is nothing.

    Copies of rows come first, so that a full disk or a damaged table leaves all as it was; then the newest checkpoint
    goes first and the rows last, so that after a crash no checkpoint is left whose maps or rows are gone
    Errors: RunFolderError if a table is damaged or the disk refuses; called again it finishes what it began
    """
    split = {name: lines.split_after(run / name, step) for name in TABLES}
    if step > 0 and split["steps.jsonl"].last != step:
        raise RunFolderError(
            f"{run / 'steps.jsonl'} has no row of step {step}, though its checkpoint came after that row; restore "
            "it, or go on from an earlier step"
        )
    late = {
        "checkpoints": [checkpoints.step_name(one) for one in checkpoints.named_steps(run / "checkpoints")],
        "maps": [
            f"{checkpoints.step_name(one)}.safetensors"
            for one in checkpoints.named_steps(run / "maps", suffix=".safetensors")
        ],
    }
    late = {folder: [name for name in names if checkpoints.step_of(name) > step] for folder, names in late.items()}
    with explaining("look at", run / SUMMARY):
        finished = (run / SUMMARY).exists()
    place = None
    if finished or any(late.values()) or any(one.later or one.damaged for one in split.values()):
        place = _new_place(run)
        with explaining("set aside the later steps of", run):
            for name, table in split.items():
                for kept, data in ((name, table.later), (f"{name}.damaged", table.damaged)):
                    if data:
                        replace_file(place / kept, data)
            # what it was made with
            replace_file(place / CONFIG, (run / CONFIG).read_bytes())
            if finished:
                os.replace(run / SUMMARY, place / SUMMARY)
                sync_folder(run)
            for folder, names in late.items():
                _move(names, run / folder, place / folder)
            sync_folder(place)
    for name, table in split.items():
        if table.later or table.damaged or table.torn:
            replace_file(run / name, table.kept)
    if place is None:
        return None
    n_rows = sum(table.later.count(b"\n") for table in split.values())
    return SetAside(place, len(late["checkpoints"]), len(late["maps"]), n_rows)


def let_go_of_repeated(run: Path, summary: Mapping[str, Any] | None = None) -> list[str]:
    """Remove of what was set aside all that the run holds again: files byte for byte, rows but for their times.

    What cannot be read is not the same: it stays, and is told in the sentences that are given back, so that no run
    depends on it. summary is what the run is about to be marked as finished with
    """
    said: list[str] = []
    if is_folder(run / PLACE):
        with _keeping(run / PLACE, said):
            for place in sorted((run / PLACE).iterdir()):
                with _keeping(place, said):
                    if place.is_dir() and not place.is_symlink():
                        _let_go_of_place(run, place, summary, said)
            _remove_if_empty(run / PLACE)
    return said


def _let_go_of_place(run: Path, place: Path, summary: Mapping[str, Any] | None, said: list[str]) -> None:
    remove_temporaries(place)
    for path in sorted((place / "maps").glob("*.safetensors")):
        with _keeping(path, said):
            if _same(path, run / "maps" / path.name):
                path.unlink()
    for folder in sorted((place / "checkpoints").glob("step-*")):
        with _keeping(folder, said):
            twin = run / "checkpoints" / folder.name
            if twin.is_dir() and all(_same(path, twin / path.name) for path in folder.iterdir()):
                shutil.rmtree(folder)
    for path in (place / name for name in TABLES):
        with _keeping(path, said):
            if path.exists() and _are_among(lines.read_lines(path), run / path.name):
                path.unlink()
    path = place / SUMMARY
    with _keeping(path, said):
        if path.exists() and _same_summary(read_json(path), summary):
            path.unlink()
    for folder in (place / "maps", place / "checkpoints"):
        _remove_if_empty(folder)
    if [path.name for path in place.iterdir()] == [CONFIG]:
        (place / CONFIG).unlink()
    _remove_if_empty(place)


def let_go_of_map(run: Path, path: Path) -> None:
    """Remove the copies of a map that were set aside and are the same byte for byte; what cannot be read is not."""
    for copy in (run / PLACE).glob(f"*/maps/{path.name}"):
        with suppress(OSError):
            if _same(copy, path):
                copy.unlink()


@contextmanager
def _keeping(path: Path, said: list[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, RunFolderError) as error:
        said.append(f"{path} stays, since it cannot be compared with the run: {error}")


def _new_place(run: Path) -> Path:
    stem = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    place, number = run / PLACE / stem, 1
    with explaining("create", place):
        (run / PLACE).mkdir(exist_ok=True)
        while os.path.lexists(place):
            number += 1
            place = run / PLACE / f"{stem}-{number}"
        place.mkdir()
        sync_folder(run / PLACE)
        sync_folder(run)
    return place


def _move(names: Iterable[str], source: Path, target: Path) -> None:
    """Move the entries, the last in order first, each by one rename."""
    names = sorted(names, key=checkpoints.step_of, reverse=True)
    if not names:
        return
    target.mkdir(exist_ok=True)
    for name in names:
        os.replace(source / name, target / name)
    sync_folder(target)
    sync_folder(source)


def _same(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return False
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def _are_among(rows: Iterable[Mapping[str, Any]], path: Path) -> bool:
    known = {_timeless(row) for row in lines.read_lines(path)}
    return all(_timeless(row) in known for row in rows)


def _timeless(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, repr(value)) for key, value in sorted(row.items()) if key not in TIMES)


def _same_summary(one: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    untimed = [
        {key: value for key, value in values.items() if not key.endswith(("_seconds", "_share"))}
        for values in (one, other or {})
    ]
    return untimed[0] == untimed[1]


def _remove_if_empty(folder: Path) -> None:
    with explaining("remove", folder):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
