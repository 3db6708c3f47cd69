"""Checkpoints of a run: a folder each, whole or absent, checked by its digests; what is in them is the caller's."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastcluster_lm.errors import DataError, RunFolderError
from fastcluster_lm.store.arrays import Arrays, decode_arrays, encode_arrays
from fastcluster_lm.store.files import (
    encode_json,
    explaining,
    publish_folder,
    read_json,
    remove_folder,
    remove_temporaries,
    temporary_sibling,
    write_new_file,
)

FORMAT = 1
STATE_FILE = "state.json"
PLAIN_NAME = re.compile(r"[a-z][a-z0-9_]*")
STEP_NAME = re.compile(r"step-(\d{6,})(?:\.safetensors)?")


def step_name(step: int) -> str:
    """Name the file or folder of a step, so that names sort as steps do up to a million.

    Errors: DataError if the step is no whole number of 0 or more
    """
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
        raise DataError(f"step is {step!r}; expected a whole number of 0 or more")
    return f"step-{step:06d}"


def named_steps(folder: Path, *, suffix: str = "") -> list[int]:
    """List the steps that have an entry of the form step-000500 plus suffix in a folder, in order."""
    if not folder.is_dir():
        return []
    found = ((entry.name, STEP_NAME.fullmatch(entry.name)) for entry in folder.iterdir())
    steps = (int(match[1]) for name, match in found if match)
    return sorted(step for step in steps if (folder / f"{step_name(step)}{suffix}").exists())


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, np.ndarray]], state: Mapping[str, object]
) -> None:
    """Write a step's checkpoint aside, force it to disk, and rename it into place.

    Errors: RunFolderError if the step has one already or the disk refuses; DataError if something cannot be stored
    """
    path = folder / step_name(step)
    if is_whole(path):
        raise RunFolderError(f"{path} exists already; drop the steps after {step - 1} first to write it anew")
    for group in tensors:
        if not PLAIN_NAME.fullmatch(group):
            raise DataError(f"the group of tensors {group!r} names a file; expected small letters, digits and _")
    encoded = {f"{group}.safetensors": encode_arrays(arrays) for group, arrays in tensors.items()}
    record = {
        "format": FORMAT,
        "step": int(step),
        "files": {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in encoded.items()},
        "state": dict(state),
    }
    encoded[STATE_FILE] = encode_json(record, STATE_FILE)
    aside = temporary_sibling(path)
    with explaining("write", path):
        try:
            if path.exists():
                remove_folder(path)
            remove_temporaries(folder, path.name)
            aside.mkdir(parents=True)
            for name, data in encoded.items():
                write_new_file(aside / name, data)
            publish_folder(aside, path)
        except OSError:
            remove_temporaries(folder, path.name)
            raise


def read_checkpoint(folder: Path, step: int) -> tuple[dict[str, Arrays], dict[str, object]]:
    """Read a step's tensors, by group and name, and its state.

    Errors: RunFolderError if there is none, or a file is missing or differs from what was written
    """
    path = folder / step_name(step)
    if not path.is_dir():
        known = ", ".join(map(str, checkpoint_steps(folder))) or "none"
        raise RunFolderError(f"{folder} has no checkpoint of step {step}; whole ones: {known}")
    files, state = _read_record(path)
    tensors: dict[str, Arrays] = {}
    for name, (_, digest) in files.items():
        with explaining("read", path / name):
            data = (path / name).read_bytes()
        if _digest(data) != digest:
            raise RunFolderError(f"{path / name} is damaged: it is not what was written; use an earlier checkpoint")
        try:
            tensors[name.removesuffix(".safetensors")] = decode_arrays(data)[0]
        except DataError as error:
            raise RunFolderError(f"{path / name} is damaged: {error}") from error
    return tensors, state


def checkpoint_steps(folder: Path) -> list[int]:
    """List the steps with a whole checkpoint, in order."""
    return [step for step in named_steps(folder) if is_whole(folder / step_name(step))]


def is_whole(path: Path) -> bool:
    """Say whether a checkpoint has all its files in their full size; their digests are checked on reading."""
    try:
        files, _ = _read_record(path)
    except RunFolderError:
        return False
    return all((path / name).is_file() and (path / name).stat().st_size == size for name, (size, _) in files.items())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_record(path: Path) -> tuple[dict[str, tuple[int, str]], dict[str, object]]:
    record = read_json(path / STATE_FILE)
    files, state = record.get("files"), record.get("state")
    damaged = RunFolderError(f"{path / STATE_FILE} is damaged: expected format {FORMAT} with its files and state")
    if record.get("format") != FORMAT or not isinstance(files, dict) or not isinstance(state, dict):
        raise damaged
    found: dict[str, tuple[int, str]] = {}
    for name, entry in files.items():
        size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        group = name.removesuffix(".safetensors")
        # a name with a slash would lead out of the folder
        if not PLAIN_NAME.fullmatch(group) or not isinstance(size, int) or not isinstance(digest, str):
            raise damaged
        found[name] = (size, digest)
    return found, state
