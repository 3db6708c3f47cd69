"""Kernels' compilation: kept whole, checked before they are loaded, in parallel, stopped with all that was started."""

import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import start_run
from fastcluster_lm.errors import UsageError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.compilation import compilers, levels, library_folder
from fastcluster_lm.kernels.compilation.building import build
from fastcluster_lm.kernels.compilation.compilers import CompilationError
from fastcluster_lm.kernels.compilation.packaging import build_packaged
from tests.laws.conftest import SMALL

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


@pytest.fixture
def for_all():
    """Give a folder that other users can read; pytest's own are closed to them each time that a pytest starts."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@needs_compiler
def test_what_is_missing_is_compiled_once_with_one_line_and_found_again(alone, quick, caplog):
    lines = []
    native.prepare(lines.append)
    assert native.compiled() and native.level() == "native" and native.status()[1] == "stand-in 1.0 for native"
    (line,) = lines
    assert line.startswith(f"compiling {len(SOURCES)} kernels for native into {alone}, once")
    assert {name.rsplit("-", 1)[0] for name in os.listdir(alone) if name.endswith(".so")} == NAMES
    native.forget()
    native.prepare(lines.append)
    assert native.compiled() and len(lines) == 1 and asked_of(quick) == len(SOURCES)
    assert native.outlook()[2] == f"{len(SOURCES)} are kept in {alone.parent}" and not warned(caplog)


@needs_compiler
def test_a_real_compiler_makes_what_can_be_loaded(alone, tmp_path):
    source = native.KERNELS / "point_frames" / "cpu.cpp"
    build([source], "native", alone)
    name = library_folder.library_name(source, "native")
    assert library_folder.find(alone, name) == compilers.version(COMPILER)
    assert native._load(alone / name).point_frames


@needs_compiler
def test_compilers_run_at_once_and_the_folder_is_ours_alone(alone, stand_in, empty_library, monkeypatch):
    monkeypatch.setattr(compilers, "cores", lambda: 4)
    # each waits until four have begun, so that no load makes fewer of it; 30 s stand for those that never come
    stand_in(
        'echo + >> "$0.log"; for _ in {1..300}; do [ "$(grep -c + "$0.log")" -ge 4 ] && break; sleep 0.1; done\n'
        f'echo - >> "$0.log"; cp {empty_library} "$TARGET"\n'
    )
    before = os.umask(0)
    try:
        native.prepare()
    finally:
        os.umask(before)
    running = most = 0
    for sign in Path(os.environ["CXX"] + ".log").read_text().split():
        running += 1 if sign == "+" else -1
        most = max(most, running)
    assert native.compiled() and most == 4
    assert [stat.S_IMODE(path.stat().st_mode) for path in (alone, alone.parent)] == [0o700, 0o700]
    assert all(not stat.S_IMODE(path.stat().st_mode) & 0o022 for path in alone.glob("*.so"))


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "garbage", "no digest", "cut digest", "huge digest"])
def test_a_damaged_library_is_made_anew_and_never_loaded(alone, quick, damage, monkeypatch):
    native.prepare()
    library = sorted(alone.glob("*.so"))[3]
    digest = library.with_suffix(".json")
    whole = library.read_bytes()
    {
        "cut": lambda: put(library, whole[: len(whole) // 2]),
        "flipped": lambda: put(library, whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:]),
        "empty": lambda: put(library, b""),
        "garbage": lambda: put(library, b"no library"),
        "no digest": digest.unlink,
        "cut digest": lambda: digest.write_text(digest.read_text()[:30]),
        "huge digest": lambda: os.truncate(digest, 2**40),
    }[damage]()
    native.forget()
    loaded = []
    load = native.ctypes.CDLL
    monkeypatch.setattr(
        native.ctypes, "CDLL", lambda path: loaded.append(Path(path).read_bytes() == whole) or load(path)
    )
    lines = []
    native.prepare(lines.append)
    (line,) = lines
    assert line.startswith("compiling 1 kernels") and f"{library} is damaged" in line
    assert native.compiled() and asked_of(quick) == len(SOURCES) + 1 and loaded == [True] * len(SOURCES)


@needs_compiler
def test_a_library_is_on_the_disk_before_it_is_in_its_place_and_its_digest_before_it(
    tmp_path, empty_library, monkeypatch
):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.readlink(f"/proc/self/fd/{number}")) or sync(number))
    monkeypatch.setattr(os, "replace", lambda one, other: done.append(str(other)) or replace(one, other))
    built, target = tmp_path / "room" / "a.so", tmp_path / "a.so"
    built.parent.mkdir()
    built.write_bytes(empty_library.read_bytes())
    library_folder.keep(built, target, "one")
    digest = target.with_suffix(".json")
    assert done == [str(built.with_suffix(".json")), str(digest), str(built), str(target), str(tmp_path)]
    assert library_folder.find(tmp_path, "a.so") == "one"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo no such flag >&2; exit 1", "no such flag"),
        ("head -c 100000 /dev/urandom >&2; echo >&2; echo 'an error: bytes' >&2; exit 1", "failed on"),
        ("printf '\\xff\\xfe error \\x80' >&2; exit 1", "error"),
        ("exit 0", "it wrote no library"),
        ("kill -9 $$", "exit status -9"),
        ("echo 'error: cannot write: No space left on device' >&2; exit 1", "No space left on device"),
    ],
)
def test_a_failing_compiler_is_one_warning_and_torch_code(alone, stand_in, body, message, caplog):
    stand_in(body)
    assert not native.compiled() and native.library(SOURCES[0]) is None
    (warning,) = [text for text in warned(caplog) if not text.startswith("compiling")]
    assert "compiled kernels are not in use, slower torch code runs in their place" in warning and message in warning
    assert native.status() == (False, native.outlook()[1]) and not list(alone.glob("*.so"))


@needs_compiler
def test_what_a_compiler_writes_that_cannot_be_loaded_is_one_warning(alone, stand_in, caplog):
    stand_in('echo no library > "$TARGET"')
    assert not native.compiled()
    (warning,) = [text for text in warned(caplog) if not text.startswith("compiling")]
    assert "cannot load" in warning and "remove it, and it is compiled again" in warning


def test_a_compiler_without_openmp_is_asked_again_without_it(alone, stand_in, tmp_path):
    stand_in('case "$*" in *-fopenmp*) echo "clang: error: unsupported option -fopenmp" >&2; exit 1;; esac\n'
             'echo once >> "$0.asked"; exit 3')  # fmt: skip
    assert not native.compiled()
    assert asked_of(tmp_path / "compiler") >= 1


@pytest.mark.parametrize("named", ["a folder", "nowhere"])
def test_a_compiler_that_is_none_gives_way_to_those_of_the_system(alone, monkeypatch, tmp_path, named):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setenv("CXX", str(folder) if named == "a folder" else "/nowhere/c++")
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(CompilationError, match="no C\\+\\+ compiler was found, and CXX names no program"):
        compilers.find()
    assert not native.compiled()
    (folder / "g++").write_text("#!/bin/sh\n")
    (folder / "g++").chmod(0o755)
    assert compilers.find() == str(folder / "g++")


def test_a_compiler_that_hangs_is_stopped_with_all_that_it_started(alone, stand_in, monkeypatch, caplog):
    # no other test's: the number is looked for among all processes
    span = f"4321.{os.getpid()}"
    stand_in(f"sleep {span} & sleep {span}")
    monkeypatch.setattr(compilers, "LIMIT_S", 0.5)
    started = time.monotonic()
    assert not native.compiled() and time.monotonic() - started < 20
    assert "did not end in time" in warned(caplog)[-1]
    assert are_gone(f"sleep\x00{span}") and not [path for path in alone.iterdir() if path.name != ".lock"]


def test_a_compiler_that_never_stops_talking_is_stopped(alone, stand_in, monkeypatch):
    stand_in("yes a very long complaint")
    monkeypatch.setattr(compilers, "MOST_SAID", 2**16)
    assert not native.compiled() and "and was stopped" in native.status()[1]


def test_ctrl_c_ends_a_compilation_at_once_and_leaves_nothing(tmp_path, stand_in):
    span = f"4322.{os.getpid()}"
    stand_in(f"sleep {span} & sleep {span}")
    environment = {
        **os.environ, native.CACHE: str(tmp_path / "cache"), levels.VARIABLE: "native",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-m", "fastcluster_lm", "train", "--preset", "tiny", "--out", str(tmp_path / "run")]
    code = f"""
import runpy, sys
from pathlib import Path
from fastcluster_lm.kernels import native
native.PACKAGED = Path({str(tmp_path / "none")!r})
sys.argv = {command[2:]!r}
runpy.run_module("fastcluster_lm", run_name="__main__")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not processes_naming(f"sleep\x00{span}") and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130, said
    assert time.monotonic() - started < 5 and "compiling" in said and "Traceback" not in said
    assert are_gone(f"sleep\x00{span}") and not (tmp_path / "run").exists()
    assert os.listdir(tmp_path / "cache" / "native") == [".lock"]


@needs_compiler
def test_what_a_killed_compilation_leaves_is_gone_with_the_next_one(alone, quick):
    alone.mkdir(parents=True, mode=0o700)
    alone.parent.chmod(0o700)
    left = alone / ".building-of-the-dead"
    left.mkdir()
    (left / "half.so").write_bytes(b"half")
    with library_folder.room(alone) as other:
        assert not left.exists()
        # one that is under way is left alone
        native.prepare()
        assert other.exists() and native.compiled()
    assert not list(alone.glob(".building-*"))


@needs_compiler
def test_two_processes_without_torch_may_compile_at_once(alone, stand_in, empty_library):
    stand_in(f'sleep 0.1; cp {empty_library} "$TARGET"\n')
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(native.KERNELS)!r})
from compilation import library_folder
from compilation.building import build
build(library_folder.sources(Path({str(native.KERNELS)!r})), "native", Path({str(alone)!r}))
assert "torch" not in sys.modules
"""
    ours = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for one in ours:
        said = one.communicate(timeout=60)[1]
        assert one.returncode == 0, said
    names = [library_folder.library_name(source, "native") for source in SOURCES]
    assert all(library_folder.find(alone, name) == "stand-in 1.0" for name in names)
    assert not list(alone.glob(".building-*"))


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


@pytest.mark.skipif(not shutil.which("clang++"), reason="no clang++")
@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v4"])
def test_clang_takes_all_sources(level):
    if not levels.named_here():
        pytest.skip("these levels are x86-64's")
    command = ["clang++", *compilers.FLAGS, "-fsyntax-only", f"-march={level}", f"-I{native.KERNELS}"]
    done = subprocess.run([*command, *map(str, SOURCES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
