"""Folders without libraries, and compilers that compile nothing."""

import subprocess
import tempfile
from pathlib import Path

import pytest

from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.compilation import levels
from tests.kernels.compilation.stand_ins import COMPILER, EMPTY, SHELL


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Let this process find no library but those in an empty folder, at the level native; give that level's folder."""
    monkeypatch.setattr(native, "PACKAGED", tmp_path / "none")
    monkeypatch.setenv(native.CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv(levels.VARIABLE, "native")
    native.forget()
    yield tmp_path / "cache" / "native"
    native.forget()


@pytest.fixture(scope="session")
def empty_library(tmp_path_factory):
    """Compile a library of nothing, so that a stand-in compiles in no time."""
    path = tmp_path_factory.mktemp("library") / "empty.so"
    subprocess.run(EMPTY.format(compiler=COMPILER, path=path), shell=True, check=True)
    return path


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Let a shell script be the compiler."""

    def be(body: str) -> Path:
        script = tmp_path / "compiler"
        script.write_text(SHELL + body)
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return script

    return be


@pytest.fixture
def quick(stand_in, empty_library):
    """Let the compiler be one that writes a library of nothing, and notes what it was asked for."""
    return stand_in(f'cp {empty_library} "$TARGET"; echo "$SOURCE" >> "$0.asked"\n')


@pytest.fixture
def for_all():
    """Give a folder that other users can read; pytest's own are closed to them each time that a pytest starts."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)
