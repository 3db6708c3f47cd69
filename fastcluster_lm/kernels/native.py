"""Compile the CPU kernels' C++ once, keep the libraries between runs, load them by ctypes; it computes nothing."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fastcluster_lm.device import cpu_cores
from fastcluster_lm.errors import DataError, UsageError
from fastcluster_lm.kernels.compilation import levels
from fastcluster_lm.kernels.deferred import check

log = logging.getLogger(__name__)

# plain IEEE arithmetic but for errno and traps. Not -ffast-math: a library linked with it turns denormals off in the
# whole process, the caller's training included
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
OFF = "FCLM_NATIVE"
CACHE = "FCLM_CACHE_DIR"
_threads = 0
# why kernels could not be compiled in this process
_failures: list[str] = []


class NativeError(Exception):
    """The kernels cannot be compiled or loaded here; the message says why."""


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """Give the compiled source, from the cache if it was compiled before; None where that cannot be, with one warning.

    FCLM_NATIVE=0 turns compiled kernels off; FCLM_CACHE_DIR names another folder for them
    """
    try:
        return _load(source)
    except NativeError as error:
        _failures.append(str(error))
        log.warning("%s is not compiled, slower torch code runs in its place: %s", source.parent.name, error)
        return None


def status() -> tuple[bool, str]:
    """Say whether C++ kernels can be compiled here, and by what or why not."""
    if _failures:
        return False, _failures[0]
    try:
        _check_not_off()
        compiler = _compiler()
    except NativeError as error:
        return False, str(error)
    return True, _version(compiler)


def compiled() -> bool:
    """Say whether compiled kernels are in use here; training's bits and scores depend on it."""
    return status()[0]


def level() -> str:
    """Name the level of instructions that kernels are compiled for here: FCLM_MARCH, or the highest that is offered.

    x86-64-v2, x86-64-v3, x86-64-v4 or native, which is all that this processor offers
    Errors: UsageError if FCLM_MARCH names none of these, or one beyond this processor's
    """
    try:
        return levels.choose(os.environ.get(levels.VARIABLE, ""))
    except ValueError as error:
        raise UsageError(str(error)) from None


def forget() -> None:
    """Forget what was loaded and what failed, so that the next call looks for a compiler and compiles anew."""
    library.cache_clear()
    _compiler.cache_clear()
    _failures.clear()


def use_threads(count: int) -> None:
    """Set how many threads compiled kernels take; 0: OMP_NUM_THREADS, or all cores this process may use.

    Their results do not depend on it, so it need not be that of torch, on which training's bits depend
    """
    global _threads
    _threads = count


def thread_count() -> int:
    """Give the number of threads that compiled kernels take."""
    if _threads:
        return _threads
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdigit() and int(named):
        return int(named)
    return cpu_cores()


def address(tensor: Tensor, dtype: torch.dtype) -> ctypes.c_void_p:
    """Give the address of a contiguous CPU tensor of this dtype; anything else would be read as what it is not."""
    return ctypes.c_void_p(place(tensor, dtype))


def place(tensor: Tensor, dtype: torch.dtype) -> int:
    """Give the same as a number, for arrays of addresses."""
    if not tensor.is_cpu or tensor.dtype != dtype or not tensor.is_contiguous():
        found = f"{tensor.dtype} with strides {tensor.stride()} on {tensor.device}"
        raise ValueError(f"expected a contiguous {dtype} CPU tensor, got {found}")
    return tensor.data_ptr()


def check_codes(values: Tensor, limit: int, name: str) -> None:
    """Refuse codes or indices that compiled code would take to a place outside its arrays.

    Errors: DataError for a value below 0 or from limit on
    """
    if values.numel() == 0:
        return

    def judge(extremes: Tensor) -> DataError | None:
        low, high = extremes.tolist()
        fits = low >= 0 and high < limit
        return None if fits else DataError(f"{name} run from {low} to {high}; expected 0 to {limit - 1}")

    low, high = values.aminmax()
    if values.is_cpu and int(low) >= 0 and int(high) < limit:
        return
    check(torch.stack([low, high]), judge)


def cache_dir() -> Path:
    """Name the folder of compiled kernels."""
    if named := os.environ.get(CACHE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcluster_lm"


def _load(source: Path) -> ctypes.CDLL:
    _check_not_off()
    compiler = _compiler()
    headers = sorted([*source.parent.parent.glob("*.h"), *source.parent.glob("*.h")])
    # native code of one processor may not run on another that shares a home folder
    made_for = [level(), levels.processor() if level() == levels.NATIVE else ""]
    recipe = [_version(compiler), *made_for, *FLAGS, *(path.read_text() for path in (source, *headers))]
    name = f"{source.parent.name}-{hashlib.sha256(chr(0).join(recipe).encode()).hexdigest()[:16]}.so"
    target = cache_dir() / name
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, source, target)
        except OSError as error:
            raise NativeError(f"cannot write {target.parent}: {error.strerror or error}") from error
    try:
        # read by the OpenMP runtime when it is loaded: spinning threads stall 5 to 30 times on a shared machine
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise NativeError(f"cannot load {target.name}: {error}; remove it, and it is compiled again") from error


def _compile(compiler: str, source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        for openmp in (["-fopenmp"], []):
            command = [
                compiler,
                *FLAGS,
                f"-march={level()}",
                *openmp,
                f"-I{source.parent.parent}",
                str(source),
                "-o",
                str(built),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                # renamed into place, so that two processes may compile at once
                os.replace(built, target)
                return
            # only a compiler without OpenMP gets a second try; one that was stopped must not leave a slow kernel behind
            if "openmp" not in done.stderr.lower():
                break
            log.warning("%s knows no OpenMP, so %s runs on one thread", compiler, source.parent.name)
    raise NativeError(f"{compiler} failed on {source.name}: {done.stderr.strip().splitlines()[:1]}")


def _check_not_off() -> None:
    if os.environ.get(OFF) == "0":
        raise NativeError(f"{OFF}=0 turns it off")


@cache
def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise NativeError("no C++ compiler was found; install g++ or clang++")


@cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout or "unknown compiler").splitlines()[0]
