"""Writes files and folders so that a crash leaves the old or the new one, never a half; it knows nothing of runs."""

import errno
import glob
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from fastcluster_lm.errors import DataError, NewerFormatError, RunExistsError, RunFolderError
from fastcluster_lm.store.schemas import check
from fastcluster_lm.untrusted import MOST_JSON, read_regular

# leftovers of a crash are recognised by this piece of their name
TEMPORARY = ".tmp-"


@contextmanager
def explaining(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the body into a RunFolderError that says what was done to which path and what to do.

    Errors: RunFolderError for every OSError; all else passes
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "the disk is full; free some space, or keep fewer checkpoints; what was written before is whole"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = f"{error.strerror}; check the rights on this folder, or choose another"
        else:
            advice = error.strerror or str(error)
            if error.filename and str(error.filename) != str(path):
                advice += f" ({error.filename})"
        raise RunFolderError(f"cannot {action} {path}: {advice}") from error


def is_folder(path: Path) -> bool:
    """Say whether a folder is there.

    Errors: RunFolderError if the disk does not say
    """
    with explaining("look at", path):
        return path.is_dir()


def is_file(path: Path) -> bool:
    """Say whether a plain file is there.

    Errors: RunFolderError if the disk does not say
    """
    with explaining("look at", path):
        return path.is_file()


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file aside, force it to disk, and rename it into place.

    Errors: RunFolderError if the disk refuses; the old file is then untouched
    """
    aside = temporary_sibling(path)
    with explaining("write", path):
        try:
            write_new_file(aside, data)
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_new_file(path: Path, data: bytes) -> None:
    """Write a file and force it to disk; only for a place that nobody reads yet.

    Errors: OSError as the system gives it
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: one call, and more only where the system took a part (2 GiB, a nearly full disk)."""
    rest = memoryview(data)
    while len(rest):
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(path: Path) -> None:
    """Force a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_folder(aside: Path, path: Path) -> None:
    """Give a fully written folder its name, in one rename; an empty folder of that name gives way.

    Errors: OSError as the system gives it, ENOTEMPTY if the name is taken
    """
    sync_folder(aside)
    os.replace(aside, path)
    sync_folder(path.parent)


def check_free(path: Path, advice: str = "choose another name, or remove it") -> None:
    """Refuse a name that is taken, be it by a broken link.

    Errors: RunExistsError with the advice
    """
    if os.path.lexists(path):
        raise RunExistsError(f"{path} exists already; {advice}")


@contextmanager
def new_folder(path: Path, action: str, advice: str = "choose another name, or remove it") -> Iterator[Path]:
    """Give an empty folder aside, which gets this name once the body has filled it: it appears whole, or not at all.

    Errors: RunExistsError with the advice if the name is taken, before or meanwhile; RunFolderError if the disk refuses
            the action
    """
    check_free(path, advice)
    aside = temporary_sibling(path)
    with explaining(action, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            yield aside
            publish_folder(aside, path)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            # another process may have been quicker
            check_free(path, advice)
            raise
        except BaseException:
            # a signal, say, or what the body could not do
            shutil.rmtree(aside, ignore_errors=True)
            raise


def remove_folder(path: Path) -> None:
    """Remove a folder so that no crash leaves a half of it under its name: renamed first, then emptied.

    Errors: OSError as the system gives it
    """
    aside = temporary_sibling(path)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    sync_folder(path.parent)
    shutil.rmtree(aside)


def total_size(path: Path) -> int:
    """Give the bytes of a file, or of all files below a folder; what is not there, or goes meanwhile, counts nothing.

    Errors: OSError as the system gives it
    """
    try:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            return found.st_size
        return sum(total_size(path / name) for name in os.listdir(path))
    except FileNotFoundError:
        return 0


def remove_temporaries(folder: Path, name: str = "*") -> None:
    """Remove what crashed writers left in a folder, of every name or of one.

    Errors: OSError as the system gives it
    """
    pattern = f".{name if name == '*' else glob.escape(name)}{TEMPORARY}*"
    for entry in folder.glob(pattern) if folder.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def temporary_sibling(path: Path) -> Path:
    """Name the place beside a path where its new content is written."""
    return path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")


def check_format(path: Path, found: object, newest: int) -> None:
    """Refuse a file whose format is no whole number up to the newest that is known here.

    Errors: NewerFormatError saying to update; RunFolderError for what is no format at all
    """
    if type(found) is not int or found < 1:
        raise RunFolderError(f"{path} is damaged: expected a format from 1 to {newest}, found {found!r}")
    if found > newest:
        raise NewerFormatError(
            f"{path} has format {found}, and this version of fclm knows formats up to {newest}: a newer one wrote it; "
            "update fclm to go on"
        )


def encode_json(value: object, what: str) -> bytes:
    """Write a value as JSON that reads back as the same value.

    Errors: DataError naming the first key whose value would not come back: tuples, number keys, NaN, arrays
    """
    _check_json(value, what)
    return (json.dumps(value, allow_nan=False, indent=1) + "\n").encode()


def read_json(path: Path, schema: Any = dict) -> dict[str, Any]:
    """Read a JSON object that fits a schema from a file.

    Errors: RunFolderError naming the file, if it is missing, damaged, or does not fit
    """
    with explaining("read", path):
        data = read_regular(path, most_bytes=MOST_JSON)
    try:
        found = decode_object(data)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: expected a JSON object, found {error}") from error
    with fitting(path):
        check(found, schema)
    return found


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn a ValueError of the body, which says what of a file's contents is wrong, into one that names the file.

    Errors: RunFolderError
    """
    try:
        yield
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error


def decode_object(data: bytes) -> dict[str, object]:
    """Read one JSON object strictly: UTF-8, finite numbers, no key twice.

    Errors: ValueError, or RecursionError where brackets nest too deep
    """
    value = json.loads(
        data.decode(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates
    )
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text}")
    return value


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _check_json(value: object, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise DataError(f"{where} has the key {key!r}; expected text, since JSON has no other keys")
            _check_json(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where} is {value}; expected a finite number")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise DataError(f"{where} is a {type(value).__name__}; expected dict, list, text, number, truth value or None")
