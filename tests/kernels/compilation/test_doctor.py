"""`fclm doctor` compiles what is missing, counts it, and says why it cannot."""

import pytest
from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.errors import UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.compilation import levels
from fastcluster_lm.kernels.compilation.building import build
from tests.kernels.compilation.stand_ins import SOURCES, asked_of, needs_compiler


def doctor(*arguments):
    return CliRunner().invoke(main, ["doctor", *arguments])


@needs_compiler
def test_doctor_compiles_what_is_missing_for_the_level_in_use_and_native(alone, quick, monkeypatch):
    monkeypatch.delenv(levels.VARIABLE)
    native.forget()
    in_use = dict.fromkeys([native.level(), "native"])
    done = doctor("--compile")
    assert done.exit_code == 0 and not done.stdout, done.output
    for level in in_use:
        folder = alone.parent / level
        assert f"compiling {len(SOURCES)} kernels for {level} into {folder}, once" in done.stderr
        assert f"{level}: 0 kernels came with the installation, {len(SOURCES)} are in {folder}" in done.stderr
        assert len(list(folder.glob("*.so"))) == len(SOURCES)
    # what is there is not compiled again, and a lack is made good
    sorted(alone.glob("*.so"))[0].unlink()
    done = doctor("--compile")
    assert (
        done.exit_code == 0 and done.stderr.count("compiling") == 1 and "compiling 1 kernels for native" in done.stderr
    )
    assert asked_of(quick) == len(in_use) * len(SOURCES) + 1
    # a level that is named is the only one
    monkeypatch.setenv(levels.VARIABLE, "native")
    assert doctor("--compile").stderr.splitlines() == [
        f"native: 0 kernels came with the installation, {len(SOURCES)} are in {alone}"
    ]


@needs_compiler
def test_doctor_counts_what_an_installation_made(alone, quick, monkeypatch, tmp_path):
    build(SOURCES[1:], "native", tmp_path / "packaged" / "native")
    monkeypatch.setattr(native, "PACKAGED", tmp_path / "packaged")
    done = doctor("--compile")
    assert done.exit_code == 0 and "compiling 1 kernels for native" in done.stderr
    assert f"{len(SOURCES) - 1} kernels came with the installation, 1 are in {alone}" in done.stderr


def test_doctor_says_in_one_line_why_it_cannot_compile(alone, stand_in, monkeypatch):
    stand_in("echo no such flag >&2; exit 1")
    done = doctor("--compile")
    said = [line for line in done.stderr.splitlines() if not line.startswith("compiling")]
    assert done.exit_code == 1 and len(said) == 1 and "kernels could not be compiled" in said[0], done.output
    assert "no such flag" in said[0] and not list(alone.glob("*.so"))
    monkeypatch.setenv(levels.VARIABLE, "x86-64-v9")
    native.forget()
    done = doctor("--compile")
    assert done.exit_code == 2 and "expected one of" in done.stderr
    assert doctor("--compile", "--self-test").exit_code == doctor("--compile", "-o", "x.json").exit_code == 2


def test_a_wrong_level_is_an_error_before_anything_is_compiled(alone, stand_in, monkeypatch):
    monkeypatch.setenv(levels.VARIABLE, "x86-64-v9")
    for ask in (native.prepare, native.status, native.outlook, lambda: native.library(SOURCES[0])):
        with pytest.raises(UsageError, match="FCLM_MARCH: expected one of .*native, got 'x86-64-v9'"):
            ask()
