"""Folders of compiled kernels: what is kept there is whole, ours and known by its digest; it compiles nothing."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import levels
from .compilers import FLAGS

log = logging.getLogger(__name__)

# held by all builds in a folder
LOCK = ".lock"
_ROOM = ".building-"
# of a digest's file: more is none of ours
_MOST_BYTES = 4096


class Unusable(Exception):
    """A folder or library that must not be used; the message says why, and what to do."""


def of_user() -> Path:
    """Name the folder in this user's home; a private temporary one where there is none and none can be made.

    The latter is named after the user; its owner is looked at before anything in it is run, as that of any folder is
    """
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    try:
        folder = Path.home() / ".cache" / "fastcluster_lm"
    except RuntimeError:
        # a container's user without a home
        folder = None
    if folder and (os.path.isdir(folder) or _can_be_made(folder)):
        return folder
    try:
        return Path(tempfile.gettempdir()) / f"fastcluster_lm-{user}"
    except OSError:
        # nothing can be written anywhere
        return folder or Path("/tmp") / f"fastcluster_lm-{user}"


def sources(kernels: Path) -> list[Path]:
    """List the C++ files that become a library each."""
    return sorted(kernels.glob("*/*.cpp"))


def library_name(source: Path, level: str) -> str:
    """Name a source's library after all that its code depends on, but for the compiler.

    So a newer compiler changes no run that is on its way, and where there is none, what another machine has compiled
    is found
    """
    headers = sorted([*source.parent.parent.glob("*.h"), *source.parent.glob("*.h")])
    # native code of one processor may not run on another that shares a home folder
    made_for = [level, levels.processor() if level == levels.NATIVE else ""]
    recipe = [*made_for, *FLAGS, *(path.read_text(encoding="utf-8") for path in (source, *headers))]
    digest = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:16]
    return f"{source.parent.name}-{source.stem}-{digest}.so"


def find(folder: Path, name: str, *, like: os.stat_result | None = None) -> str | None:
    """Say which compiler made the library of this name; None if it is not there.

    like: a file of the package, where the folder is one of it: its owner and root may own the library too, and who may
    write the one may write the other
    Errors: Unusable if it is damaged, or others could have written it
    """
    library, digest = folder / name, _beside(folder / name)
    if not library.exists():
        return None
    _refuse_others(folder.parent, like, holds_folders=True)
    for path in (folder, library):
        _refuse_others(path, like)
    if not library.is_file():
        raise Unusable(f"{library} is no file")
    try:
        if digest.stat().st_size > _MOST_BYTES or not digest.is_file():
            raise ValueError
        known = json.loads(digest.read_bytes())
        whole = known["sha256"] == hashlib.sha256(library.read_bytes()).hexdigest()
        compiler = str(known["compiler"])
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise Unusable(f"{library} is damaged: its digest is another")
    return compiler


@contextlib.contextmanager
def room(folder: Path) -> Iterator[Path]:
    """Make the folder, and in it one to build in, which is gone afterwards; those of builds that were killed go too.

    Folders of ours that others may write, as a umask of 002 makes them, are closed to them
    Errors: Unusable if a folder is another's; OSError if it cannot be written
    """
    for made in (folder.parent, folder):
        # parents=True leaves the mode of the parents to the umask
        made.mkdir(parents=True, exist_ok=True, mode=0o700)
        _close(made, holds_folders=made != folder)
        _refuse_others(made, holds_folders=made != folder)
    with _shared_lock(folder):
        building = Path(tempfile.mkdtemp(prefix=_ROOM, dir=folder))
        try:
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)


def keep(built: Path, target: Path, compiler: str) -> None:
    """Put a library into its place, whole and on the disk, its digest before it: without one it is never loaded."""
    known = {"sha256": hashlib.sha256(built.read_bytes()).hexdigest(), "compiler": compiler}
    digest = _beside(built)
    digest.write_text(json.dumps(known) + "\n", encoding="utf-8")
    for path, place, mode in ((digest, _beside(target), 0o644), (built, target, 0o755)):
        path.chmod(mode)
        _sync(path)
        # renamed into place, so that two processes may compile at once
        os.replace(path, place)
    _sync(target.parent)


def _beside(library: Path) -> Path:
    return library.with_suffix(".json")


def _can_be_made(folder: Path) -> bool:
    """Say whether the first folder above it that is there can be written."""
    above = next((path for path in folder.parents if os.path.isdir(path)), None)
    return above is not None and os.access(above, os.W_OK | os.X_OK)


def _close(path: Path, *, holds_folders: bool) -> None:
    """Let nobody else write a folder of ours; what others have put into it is theirs, and refused as such."""
    found = path.stat()
    if not hasattr(os, "geteuid") or found.st_uid != os.geteuid() or (holds_folders and found.st_mode & stat.S_ISVTX):
        return
    if found.st_mode & 0o022:
        # a file system without modes: what it says of the folder is judged next
        with contextlib.suppress(OSError):
            path.chmod(stat.S_IMODE(found.st_mode) & ~0o022)


def _refuse_others(path: Path, like: os.stat_result | None = None, *, holds_folders: bool = False) -> None:
    if not hasattr(os, "geteuid"):
        return
    found = path.stat()
    # the owner of a link says where it leads
    for owner in (path.lstat().st_uid, found.st_uid):
        # root may do anything anyway
        if owner not in {os.geteuid(), 0, like.st_uid if like else 0}:
            raise Unusable(f"{path} belongs to another user (number {owner}), and what is in it is not run")
    # in a folder such as /tmp nobody can replace the folders of others
    if holds_folders and found.st_mode & stat.S_ISVTX:
        return
    if found.st_mode & 0o022 & ~(like.st_mode if like else 0):
        raise Unusable(f"{path} can be written by others, and what is in it is not run; chmod go-w it")


@contextlib.contextmanager
def _shared_lock(folder: Path) -> Iterator[None]:
    """Hold what all builds in a folder share; whoever is alone with it removes what killed builds left."""
    import fcntl  # absent on Windows, where nothing is built

    # a link would have it made elsewhere
    with open(folder / LOCK, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o600)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.glob(_ROOM + "*"):
                shutil.rmtree(left, ignore_errors=True)
            fcntl.flock(file, fcntl.LOCK_SH)
        except BlockingIOError:
            # another build is under way
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            # some file systems have no locks: there, what is left stays
            log.debug("no lock in %s: %s", folder, error)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
