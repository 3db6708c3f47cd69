"""Where compiled kernels are kept, whose folders are trusted, and what happens where none can be written."""

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import start_run
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.compilation import levels, library_folder
from fastcluster_lm.kernels.compilation.building import build
from fastcluster_lm.kernels.compilation.compilers import CompilationError
from fastcluster_lm.kernels.compilation.packaging import build_packaged
from tests.kernels.compilation.stand_ins import SHELL, SOURCES, asked_of, needs_compiler, needs_root, put, warned
from tests.laws.conftest import SMALL


@pytest.fixture
def mounted(tmp_path):
    """Mount a file system in memory, with the options given."""
    place = tmp_path / "mounted"

    def mount(options: str) -> Path:
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("this system mounts nothing")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


@needs_root
@needs_compiler
@pytest.mark.parametrize(
    ("options", "message"),
    [("ro", "Read-only file system"), ("noexec,mode=700", "failed to map"), ("size=64k,mode=700", "No space left")],
)
def test_where_kernels_cannot_be_kept_a_run_goes_on_in_torch_code_with_one_warning(
    alone, quick, mounted, monkeypatch, caplog, tmp_path, options, message
):
    monkeypatch.setenv(native.CACHE, str(mounted(options) / "cache"))
    outcome = start_run(config_from_dict(SMALL), tmp_path / "run")
    (warning,) = [text for text in warned(caplog) if not text.startswith("compiling")]
    assert warning.startswith("compiled kernels are not in use") and message in warning
    assert outcome.finished and "there is no compiled code" in outcome.folder.config()["resolved"]["block_reason"]


def test_a_process_beside_training_does_not_try_again_what_failed(alone, stand_in, tmp_path):
    compiler = stand_in('echo "$SOURCE" >> "$0.asked"; exit 1\n')
    native.prepare()
    before = asked_of(compiler)
    config = config_from_dict(SMALL)
    config = replace(config, probe=replace(config.probe, worker="on"))
    outcome = start_run(config, tmp_path / "run")
    assert outcome.finished and outcome.folder.scores() and outcome.folder.config()["resolved"]["probe_worker"]
    assert asked_of(compiler) == before


@needs_root
def test_a_cache_that_this_user_cannot_read_is_one_warning(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    code = """
from pathlib import Path
from fastcluster_lm.kernels import native
native.PACKAGED = Path("/nowhere")
print(native.status())
"""
    environment = {**os.environ, native.CACHE: str(cache), "HOME": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["setpriv", "--reuid=12345", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "Permission denied" in done.stderr and "Traceback" not in done.stderr and done.returncode:
        pytest.skip("another user cannot run this Python")
    assert done.returncode == 0 and done.stdout.startswith("(False,"), done.stderr
    assert done.stderr.count("compiled kernels are not in use") == 1 and "Permission denied" in done.stderr


@needs_compiler
@pytest.mark.parametrize("whose", ["another user's folder", "another user's library", "written by others"])
def test_what_others_own_or_may_write_is_refused(alone, quick, whose, caplog):
    native.prepare(lambda line: None)
    library = sorted(alone.glob("*.so"))[0]
    if "another" in whose:
        if os.geteuid():
            pytest.skip("only root gives files away")
        os.chown(alone if "folder" in whose else library, 12345, -1)
    else:
        library.chmod(0o777)
    native.forget()
    lines = []
    native.prepare(lines.append)
    if whose.endswith("folder"):
        assert not native.compiled() and asked_of(quick) == len(SOURCES)
        assert "not run" in warned(caplog)[-1]
    else:
        # one library is made anew in its place, ours alone
        assert native.compiled() and asked_of(quick) == len(SOURCES) + 1 and "not run" in lines[0]
        assert library.stat().st_uid == os.geteuid() and not library.stat().st_mode & 0o022


@needs_compiler
@pytest.mark.parametrize("level_too", [False, True])
def test_a_folder_of_ours_that_others_could_write_is_closed_and_what_it_holds_is_made_anew(alone, quick, level_too):
    native.prepare(lambda line: None)
    library = sorted(alone.glob("*.so"))[0]
    alone.parent.chmod(0o775)
    alone.chmod(0o777 if level_too else 0o700)
    if os.geteuid() == 0:
        os.chown(library, 12345, -1)
    native.forget()
    lines = []
    native.prepare(lines.append)
    assert native.compiled() and asked_of(quick) == 2 * len(SOURCES) and "can be written by others" in lines[0]
    assert library.stat().st_uid == os.geteuid()
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o022 for path in (alone.parent, alone))


@needs_root
def test_a_link_that_another_user_made_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "ours").mkdir(mode=0o700)
    link = tmp_path / "cache"
    link.symlink_to("ours")
    with library_folder.room(link / "native"):
        pass
    os.chown(link, 12345, -1, follow_symlinks=False)
    with pytest.raises(library_folder.Unusable, match="belongs to another user"), library_folder.room(link / "native"):
        pass
    # nor is a lock that leads elsewhere
    (tmp_path / "ours" / "native" / ".lock").unlink()
    (tmp_path / "ours" / "native" / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), library_folder.room(tmp_path / "ours" / "native"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@needs_root
@needs_compiler
@pytest.mark.parametrize("theirs", ["", "folder", "link"])
def test_without_a_home_to_write_kernels_are_kept_in_a_private_temporary_folder(for_all, empty_library, theirs):
    temporary = for_all / "temporary"
    temporary.mkdir()
    temporary.chmod(0o1777)
    shutil.copy(empty_library, for_all / "empty.so")
    compiler = for_all / "compiler"
    compiler.write_text(f'{SHELL}cp {for_all / "empty.so"} "$TARGET"\n')
    for path in (compiler, for_all / "empty.so"):
        path.chmod(0o755)
    place = temporary / "fastcluster_lm-12345"
    # what another user has put there before
    if theirs == "folder":
        place.mkdir(mode=0o777)
        os.chown(place, 54321, -1)
    elif theirs == "link":
        (temporary / "ours").mkdir(mode=0o700)
        os.chown(temporary / "ours", 12345, -1)
        place.symlink_to("ours")
        os.chown(place, 54321, -1, follow_symlinks=False)
    code = """
from pathlib import Path
from fastcluster_lm.kernels import native
native.PACKAGED = Path("/nowhere")
print(native.cache_dir(), *native.status())
"""
    environment = {key: value for key, value in os.environ.items() if key not in (native.CACHE, "XDG_CACHE_HOME")}
    environment |= {"HOME": "/", "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1", levels.VARIABLE: "native",
                    "CXX": str(compiler)}  # fmt: skip
    command = ["setpriv", "--reuid=12345", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "Permission denied" in done.stderr and "Traceback" not in done.stderr and done.returncode:
        pytest.skip("another user cannot run this Python")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{place} {not theirs} "), done.stdout + done.stderr
    if theirs:
        # some systems follow no link of another user's in such a folder at all
        assert "belongs to another user" in done.stdout or "Permission denied" in done.stdout
        assert not list((temporary / "ours").glob("*"))
    else:
        assert place.stat().st_uid == 12345 and stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_home_whose_kernels_are_there_is_used_though_it_cannot_be_written(tmp_path, monkeypatch):
    for name in (native.CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    kept = tmp_path / ".cache" / "fastcluster_lm"
    assert native.cache_dir() == kept
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert native.cache_dir().name == f"fastcluster_lm-{os.geteuid()}"
    kept.mkdir(parents=True)
    assert native.cache_dir() == kept


@pytest.mark.parametrize("complaint", ["cc1plus: error: bad value ('$LEVEL') for '-march=' switch",
                                       "error: unknown target CPU '$LEVEL'"])  # fmt: skip
def test_a_compiler_that_is_too_old_for_a_level_is_told_what_to_do(tmp_path, stand_in, complaint):
    stand_in(f'for one; do case $one in -march=*) LEVEL=${{one#-march=}};; esac; done; echo "{complaint}" >&2; exit 1')
    advice = "set FCLM_MARCH=native, or use GCC 11 / clang 12 or newer"
    with pytest.raises(CompilationError, match=advice):
        build(SOURCES, "x86-64-v3", tmp_path / "cache" / "x86-64-v3")
    # one that refuses even that
    with pytest.raises(CompilationError) as caught:
        build(SOURCES, "native", tmp_path / "cache" / "native")
    assert "FCLM_MARCH" not in str(caught.value)
    if levels.named_here():
        said = build_packaged(native.KERNELS, tmp_path / "package", own=True, asked="x86-64-v2")
        assert advice in list(said)[-1]


def test_a_packaged_library_may_be_written_by_those_who_may_write_the_package(tmp_path):
    folder = tmp_path / "libraries" / "x86-64-v2"
    folder.mkdir(parents=True)
    library = folder / "a-cpu-0.so"
    library.write_bytes(b"")
    library.with_suffix(".json").write_text(
        json.dumps({"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "compiler": "one"})
    )
    for path in (folder.parent, folder, library):
        path.chmod(0o775)
    code = tmp_path / "native.py"
    code.write_text("")
    code.chmod(0o664)
    assert library_folder.find(folder, library.name, like=code.stat()) == "one"
    code.chmod(0o644)
    with pytest.raises(library_folder.Unusable, match="can be written by others"):
        library_folder.find(folder, library.name, like=code.stat())


@needs_compiler
def test_the_package_s_own_come_first_and_one_that_is_damaged_is_replaced(alone, quick, monkeypatch, tmp_path, caplog):
    build(SOURCES, "native", tmp_path / "packaged" / "native")
    monkeypatch.setattr(native, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setenv("CXX", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert native.compiled() and not alone.exists()
    assert native.outlook()[2] == f"{len(SOURCES)} came with the installation"
    library = sorted((tmp_path / "packaged" / "native").glob("*.so"))[0]
    put(library, library.read_bytes()[:100])
    native.forget()
    assert not native.compiled()
    assert "is damaged" in warned(caplog)[-1] and "no C++ compiler was found" in warned(caplog)[-1]
    monkeypatch.undo()
    monkeypatch.setattr(native, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setenv(native.CACHE, str(alone.parent))
    monkeypatch.setenv(levels.VARIABLE, "native")
    monkeypatch.setenv("CXX", str(quick))
    native.forget()
    lines = []
    native.prepare(lines.append)
    assert native.compiled() and lines[0].startswith("compiling 1 kernels") and "is damaged" in lines[0]
    native.forget()
    caplog.clear()
    assert native.compiled() and "is damaged" in warned(caplog)[0] and warned(caplog)[0].endswith("another is taken")
