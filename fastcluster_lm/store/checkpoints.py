"""Checkpoints of a run: a folder each, whole by its digests, never removed unread; what is in them is the caller's."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastcluster_lm.errors import DataError, RunFolderError
from fastcluster_lm.store.arrays import Arrays, decode_arrays, decode_shapes, encode_arrays
from fastcluster_lm.store.files import (
    check_format,
    decode_object,
    encode_json,
    explaining,
    fitting,
    is_folder,
    publish_folder,
    remove_temporaries,
    temporary_sibling,
    write_new_file,
)
from fastcluster_lm.store.schemas import CheckpointRecord, check
from fastcluster_lm.untrusted import MOST_JSON, read_regular

# 1 had no digest of the state itself
FORMAT = 2
STATE_FILE = "state.json"
# the last line of the state's file: a digest of all bytes before it
SEALED = re.compile(rb'(?s)(?P<sealed>.*,\n) "sha256": "(?P<digest>[0-9a-f]{64})"\n\}\n')
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
    """List the steps that have an entry of the form step-000500 plus suffix in a folder, in order.

    Errors: RunFolderError if the disk refuses; a folder that is not there has none
    """
    with explaining("list", folder):
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
    steps = {step_of(name): name for name in names if STEP_NAME.fullmatch(name)}
    return sorted(step for step, name in steps.items() if f"{step_name(step)}{suffix}" in names)


def step_of(name: str) -> int:
    """Give the step of an entry of the form step-000500, with or without a suffix."""
    match = STEP_NAME.fullmatch(name)
    assert match is not None
    return int(match[1])


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, np.ndarray]], state: Mapping[str, object]
) -> None:
    """Write a step's checkpoint aside, force it to disk, and rename it into place.

    Errors: RunFolderError if the step has one already or the disk refuses; DataError if something cannot be stored
    """
    path = folder / step_name(step)
    if os.path.lexists(path):
        raise RunFolderError(f"{path} exists already; set the steps after {step - 1} aside first to write it anew")
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
    encoded[STATE_FILE] = _seal(encode_json(record, STATE_FILE))
    aside = temporary_sibling(path)
    with explaining("write", path):
        try:
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
    path = _existing(folder, step)
    files, state = _read_record(path)
    tensors: dict[str, Arrays] = {}
    for name, (size, digest) in files.items():
        data = _read_file(path / name, size, digest)
        try:
            tensors[name.removesuffix(".safetensors")] = decode_arrays(data)[0]
        except DataError as error:
            raise RunFolderError(f"{path / name} is damaged: {error}") from error
    return tensors, state


def read_group_shapes(folder: Path, step: int, group: str) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor of one group from its header, in a file that is what was written.

    Errors: RunFolderError if there is none, or it is missing or differs from what was written
    """
    path, name = _existing(folder, step), f"{group}.safetensors"
    files, _ = _read_record(path)
    if name not in files:
        raise RunFolderError(f"{path} has no {name}, found {', '.join(files) or 'nothing'}")
    # before its header, which would be told as another model's
    data = _read_file(path / name, *files[name])
    with fitting(path / name):
        return decode_shapes(data)


def checkpoint_steps(folder: Path) -> list[int]:
    """List the steps with a whole checkpoint, in order."""
    return [step for step in named_steps(folder) if is_whole(folder / step_name(step))]


def is_whole(path: Path) -> bool:
    """Say whether a checkpoint has its state and all files in their full size; their digests are checked on reading."""
    try:
        check_whole(path)
    except RunFolderError:
        return False
    return True


def check_whole(path: Path) -> None:
    """Look whether a checkpoint's state is what was written, and all its files are there in their full size.

    Errors: RunFolderError naming the file that is missing, damaged or cannot be read; NewerFormatError
    """
    for name, (size, _) in _read_record(path)[0].items():
        with explaining("read", path / name):
            found = (path / name).stat().st_size
        if found != size:
            raise RunFolderError(f"{path / name} is damaged: expected {size} bytes, found {found}")


def _existing(folder: Path, step: int) -> Path:
    path = folder / step_name(step)
    if not is_folder(path):
        known = ", ".join(map(str, checkpoint_steps(folder))) or "none"
        raise RunFolderError(f"{folder} has no checkpoint of step {step}; whole ones: {known}")
    return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_file(path: Path, size: int, digest: str) -> bytes:
    """Read a file whole.

    Errors: RunFolderError if it is missing or differs from what was written
    """
    with explaining("read", path):
        data = read_regular(path, most_bytes=size)
    if _digest(data) != digest:
        raise RunFolderError(f"{path} is damaged: it is not what was written")
    return data


def _read_record(path: Path) -> tuple[dict[str, tuple[int, str]], dict[str, object]]:
    record = _unsealed(path / STATE_FILE)
    if record["step"] != step_of(path.name):
        raise RunFolderError(
            f"{path / STATE_FILE} is damaged: expected step {step_of(path.name)}, found {record['step']}"
        )
    found: dict[str, tuple[int, str]] = {}
    for name, entry in record["files"].items():
        # a name with a slash would lead out of the folder
        if not PLAIN_NAME.fullmatch(name.removesuffix(".safetensors")):
            raise RunFolderError(f"{path / STATE_FILE} is damaged: files: {name!r} is no name of a file here")
        found[name] = (entry["bytes"], entry["sha256"])
    return found, record["state"]


def _seal(data: bytes) -> bytes:
    """Put a digest of all that stands before it at the end of a JSON object."""
    sealed = data.removesuffix(b"\n}\n") + b",\n"
    return sealed + f' "sha256": "{_digest(sealed)}"\n}}\n'.encode()


def _unsealed(path: Path) -> dict[str, Any]:
    """Read the state's file and check its digest; the oldest format has none.

    Errors: RunFolderError if it is missing or damaged; NewerFormatError
    """
    with explaining("read", path):
        data = read_regular(path, most_bytes=MOST_JSON)
    sealed = SEALED.fullmatch(data)
    if sealed and _digest(sealed["sealed"]) != sealed["digest"].decode():
        raise RunFolderError(f"{path} is damaged: it is not what was written")
    try:
        record: dict[str, Any] = decode_object(data)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: expected a JSON object, found {error}") from error
    check_format(path, record.get("format"), FORMAT)
    if record["format"] != 1 and not sealed:
        raise RunFolderError(f"{path} is damaged: expected its digest at the end")
    with fitting(path):
        check(record, CheckpointRecord)
    return record
