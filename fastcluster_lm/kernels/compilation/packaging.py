"""Compile what an installation carries along, and say what came of it; a failure here fails no installation."""

import contextlib
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from . import compilers, levels
from .building import build
from .compilers import CompilationError
from .library_folder import LOCK, sources


def build_packaged(kernels: Path, libraries: Path, *, own: bool, asked: str = "") -> Iterator[str]:
    """Compile all kernels for every named level, or for this machine's own alone; yields lines about it.

    own: for a checkout that is used where it lies; asked: the level named for that one, empty: this processor's
    """
    if own:
        try:
            chosen = [levels.choose(asked)]
        except ValueError as error:
            yield f"no kernels are compiled: {error}"
            return
    else:
        chosen = portable_levels()
    # another level's, and those of sources that have changed since an earlier build
    shutil.rmtree(libraries, ignore_errors=True)
    found = sources(kernels)
    for level in chosen:
        yield f"compiling {len(found)} kernels for {level}"
        try:
            build(found, level, libraries / level)
        except CompilationError as error:
            yield f"no kernels are compiled for {level}: {error}; slower torch code runs until there is a compiler"
            return
        finally:
            _open_to_all(libraries, level)


def _open_to_all(libraries: Path, level: str) -> None:
    """Let others read what whoever installs has made, as they read the code beside it; no lock is carried along."""
    for folder in (libraries, libraries / level):
        # one that is not there, or another owner's: that is as open as that one made it
        with contextlib.suppress(OSError):
            folder.chmod(0o755)
    with contextlib.suppress(OSError):
        (libraries / level / LOCK).unlink()


def portable_levels() -> list[str]:
    """Give the levels whose code runs on more machines than this one: the named ones, on Linux on x86-64."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return list(levels.NAMED) if sys.platform == "linux" and x86 else []


def can_compile() -> bool:
    """Say whether a wheel made here can hold compiled kernels, and so is for this platform alone."""
    try:
        compilers.find()
    except CompilationError:
        return False
    return bool(portable_levels())
