"""What stands in for a compiler in tests, and looks after what it leaves."""

import logging
import os
import time
from pathlib import Path

import pytest

from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.compilation import compilers, library_folder
from fastcluster_lm.kernels.compilation.compilers import CompilationError

SOURCES = library_folder.sources(native.KERNELS)
NAMES = {f"{source.parent.name}-{source.stem}" for source in SOURCES}
try:
    COMPILER = compilers.find()
except CompilationError:
    COMPILER = ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems and becomes another user")
# what stands in for a compiler: TARGET is the file after -o, SOURCE what it is told to compile
SHELL = """#!/bin/bash
if [ "$1" = --version ]; then echo stand-in 1.0; exit 0; fi
TARGET="${@: -1}"; SOURCE="${@: -3:1}"
"""
# a library that is loaded is as good as any: none of its functions is called
EMPTY = "echo | {compiler} -x c++ -shared -o {path} -"


def put(library: Path, contents: bytes) -> None:
    """Write another file of this name: the old one may be mapped into this process, which would die with it."""
    library.unlink()
    library.write_bytes(contents)


def asked_of(compiler: Path) -> int:
    return len(Path(f"{compiler}.asked").read_text().splitlines())


def warned(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def processes_naming(text: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text in (folder / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def are_gone(text: str) -> bool:
    """Say whether no process of this name is left, once the system had a moment to end those that were killed."""
    deadline = time.monotonic() + 5
    while processes_naming(text) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not processes_naming(text)
