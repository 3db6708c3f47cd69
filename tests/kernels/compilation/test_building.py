"""Kernels' compilation: in parallel, checked before it is loaded, stopped with all that was started."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.compilation import compilers, levels, library_folder
from fastcluster_lm.kernels.compilation.building import build
from fastcluster_lm.kernels.compilation.compilers import CompilationError
from tests.kernels.compilation.stand_ins import (
    COMPILER,
    NAMES,
    SOURCES,
    are_gone,
    asked_of,
    needs_compiler,
    processes_naming,
    put,
    warned,
)


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


def test_ctrl_c_while_a_compiler_starts_ends_that_one_too(alone, stand_in, monkeypatch):
    span = f"4323.{os.getpid()}"
    stand_in(f"sleep {span} & sleep {span}")
    starts = subprocess.Popen

    def start_and_interrupt(*args, **kwargs):
        process = starts(*args, **kwargs)
        if "-march=native" in args[0]:
            while not processes_naming(f"sleep\x00{span}"):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_interrupt)
    # where tests run in the background of a shell, this process ignores it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            native.prepare()
    finally:
        signal.signal(signal.SIGINT, before)
    assert are_gone(f"sleep\x00{span}")
    assert os.listdir(alone) == [".lock"]


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


@pytest.mark.skipif(not shutil.which("clang++"), reason="no clang++")
@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v4"])
def test_clang_takes_all_sources(level):
    if not levels.named_here():
        pytest.skip("these levels are x86-64's")
    command = ["clang++", *compilers.FLAGS, "-fsyntax-only", f"-march={level}", f"-I{native.KERNELS}"]
    done = subprocess.run([*command, *map(str, SOURCES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
