"""Run C++ compilers, several at once, each within a time limit and none left behind; it keeps no library."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import levels

# plain IEEE arithmetic but for errno and traps. Not -ffast-math: a library linked with it turns denormals off in the
# whole process, the caller's training included
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
OPENMP = "-fopenmp"
# seconds that one compiler may take: the slowest source takes 27 on a busy core
LIMIT_S = 300.0
# what a compiler may say before it is taken for one that never ends, and what of it is read
MOST_SAID = 2**24
_READ = 2**16
_PAUSE_S = 0.02


class CompilationError(Exception):
    """The kernels cannot be compiled here; the message says why."""


def find() -> str:
    """Give the path of the C++ compiler: CXX, or the first of c++, g++ and clang++.

    Errors: CompilationError if there is none, or this is no POSIX system
    """
    if os.name != "posix":
        raise CompilationError("kernels are compiled on POSIX systems only")
    named = os.environ.get("CXX", "")
    if named and (path := shutil.which(named)):
        return path
    beside = f", and CXX names no program: {named!r}" if named else ""
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    raise CompilationError(f"no C++ compiler was found{beside}; install g++ or clang++")


def version(compiler: str) -> str:
    """Give the first line that a compiler says of itself.

    Errors: CompilationError if it cannot be run, or does not end
    """
    try:
        done = subprocess.run(
            [compiler, "--version"], capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilationError(f"{compiler} --version failed: {error}") from error
    return next(iter(done.stdout.decode(errors="replace").splitlines()), "unknown compiler")


def cores() -> int:
    """Count the CPU cores that this process may use, and so the compilers that run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compile_all(compiler: str, targets: Mapping[Path, Path], level: str, include: Path) -> Generator[Path, None, None]:
    """Compile each source to its target, as many at once as there are cores; yields a source once it is done.

    Whatever ends this, Ctrl-C included, ends all compilers and what they started
    Errors: CompilationError at the first source that cannot be compiled, or takes longer than LIMIT_S
    """
    waiting = sorted(targets, key=_weight)  # the heaviest last, so that it is taken first
    without_openmp: set[Path] = set()
    running: list[_Running] = []
    # Ctrl-C is raised in the main thread alone: here it would come between a compiler's start and its place in the list
    starter = ThreadPoolExecutor(1)

    def start(source: Path) -> None:
        openmp = [] if source in without_openmp else [OPENMP]
        flags = [*FLAGS, f"-march={level}", *openmp, f"-I{include}"]
        running.append(_Running.start([compiler, *flags, str(source)], source, targets[source]))

    try:
        while waiting or running:
            while waiting and len(running) < cores():
                starter.submit(start, waiting.pop()).result()
            time.sleep(_PAUSE_S)
            for one in [one for one in running if one.ended()]:
                running.remove(one)
                if one.process.returncode == 0 and one.target.is_file():
                    yield one.source
                # only a compiler without OpenMP gets a second try; one that was stopped must not leave a slow kernel
                elif one.source not in without_openmp and one.lacks_openmp():
                    without_openmp.add(one.source)
                    waiting.append(one.source)
                else:
                    advice = f"; {levels.COMPILERS}" if one.refuses(level) else ""
                    raise CompilationError(f"{compiler} failed on {_name(one.source)}: {one.complaint()}{advice}")
    finally:
        starter.shutdown(cancel_futures=True)
        for one in running:
            one.kill()


@dataclass(frozen=True)
class _Running:
    """One compiler on its way, in a process group of its own, what it says in a file beside its target."""

    process: subprocess.Popen
    source: Path
    target: Path
    said: Path
    ends_at: float

    @classmethod
    def start(cls, command: Sequence[str], source: Path, target: Path) -> "_Running":
        said = target.with_suffix(".log")
        try:
            with said.open("wb") as log:
                process = subprocess.Popen(
                    [*command, "-o", str(target)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    # what a compiler that is killed leaves is gone with the folder
                    env={**os.environ, "TMPDIR": str(target.parent)},
                )
        except OSError as error:
            raise CompilationError(f"{command[0]} cannot be run: {error.strerror or error}") from error
        return cls(process, source, target, said, time.monotonic() + LIMIT_S)

    def ended(self) -> bool:
        """Say whether it is done.

        Errors: CompilationError for one that takes too long or says too much; it is ended
        """
        if self.process.poll() is not None:
            return True
        late, loud = time.monotonic() > self.ends_at, self.said.stat().st_size > MOST_SAID
        if late or loud:
            self.kill()
            why = "did not end in time" if late else f"said more than {MOST_SAID >> 20} MiB"
            raise CompilationError(f"the compiler {why} on {_name(self.source)}, and was stopped")
        return False

    def kill(self) -> None:
        """End it and all that it started."""
        # once it is waited for, its number may be another's
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def lacks_openmp(self) -> bool:
        said = self._said().lower()
        return any(sign in said for sign in ("openmp", "-lomp", "-lgomp"))

    def refuses(self, level: str) -> bool:
        """Say whether the level's name is what it does not know, as GCC and clang put it."""
        lines = [line for line in self._said().splitlines() if level in line and level in levels.NAMED]
        return any("-march" in line or "target CPU" in line for line in lines)

    def complaint(self) -> str:
        """Give the first line that names an error, or the first at all."""
        code = self.process.returncode
        lines = [line.strip() for line in self._said().splitlines() if line.strip()]
        named = [line for line in lines if "error" in line.lower()]
        return next(iter([*named, *lines]), f"exit status {code}" if code else "it wrote no library")[:300]

    def _said(self) -> str:
        with self.said.open("rb") as file:
            return file.read(_READ).decode(errors="replace")


def _name(source: Path) -> str:
    return f"{source.parent.name}/{source.name}"


def _weight(source: Path) -> int:
    # a source's own headers are templates that it unfolds
    return source.stat().st_size + sum(header.stat().st_size for header in source.parent.glob("*.h"))
