"""Load the CPU kernels' libraries by ctypes, all or none, once they are compiled; it computes nothing."""

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fastcluster_lm.device import cpu_cores
from fastcluster_lm.errors import DataError, UsageError
from fastcluster_lm.kernels.compilation import compilers, levels, library_folder
from fastcluster_lm.kernels.compilation.building import build
from fastcluster_lm.kernels.compilation.compilers import CompilationError
from fastcluster_lm.kernels.deferred import check

log = logging.getLogger(__name__)

OFF = "FCLM_NATIVE"
CACHE = "FCLM_CACHE_DIR"
KERNELS = Path(__file__).parent
# what an installation compiled: all named levels in a wheel, the machine's own in a checkout
PACKAGED = KERNELS / "libraries"
_threads: int | Callable[[], int] = 0


class NativeError(Exception):
    """The kernels cannot be compiled or loaded here; the message says why."""


@dataclass(frozen=True)
class _Kernels:
    """What this process computes with: every source's library, or none of them and the reason."""

    level: str
    reason: str
    libraries: dict[Path, ctypes.CDLL] = field(default_factory=dict)


_kernels: _Kernels | None = None
_preparing = threading.Lock()


def prepare(say: Callable[[str], None] = log.warning) -> None:
    """Load all kernels, and compile those that are missing before, in parallel, with one line to `say`.

    To be called before anything is timed; the first use of a kernel does it too. Where kernels cannot be had, torch
    code stands in for all of them, with one warning. FCLM_NATIVE=0 turns them off, FCLM_MARCH names their level,
    FCLM_CACHE_DIR another folder for them
    Errors: UsageError for a level that is not offered here
    """
    global _kernels
    if _kernels is not None:
        return
    with _preparing:
        if _kernels is None:
            _kernels = _prepare(level(), say)


def library(source: Path) -> ctypes.CDLL | None:
    """Give a source's library; None where torch code stands in for all kernels.

    Errors: UsageError for a level that is not offered here
    """
    prepare()
    assert _kernels is not None
    return _kernels.libraries.get(source)


def status() -> tuple[bool, str]:
    """Say whether compiled kernels are in use here, and by which compiler for which level, or why not."""
    prepare()
    assert _kernels is not None
    return bool(_kernels.libraries), _kernels.reason


def compiled() -> bool:
    """Say whether compiled kernels are in use here; training's bits and scores depend on it."""
    return status()[0]


def level() -> str:
    """Name the level of instructions that kernels are compiled for here: FCLM_MARCH, or the highest that is offered.

    x86-64-v2, x86-64-v3, x86-64-v4 or native, which is all that this processor offers
    Errors: UsageError if FCLM_MARCH names none of these, or one beyond this processor's
    """
    if _kernels is not None:
        return _kernels.level
    try:
        return levels.choose(os.environ.get(levels.VARIABLE, ""))
    except ValueError as error:
        raise UsageError(str(error)) from None


def outlook() -> tuple[bool, str, str]:
    """Say what status() would, and where kernels come from, without compiling any.

    Errors: UsageError for a level that is not offered here
    """
    if _kernels is not None and not _kernels.libraries:
        return False, _kernels.reason, ""
    at, found = level(), _Found()
    try:
        _check_not_off()
        for source in library_folder.sources(KERNELS):
            found.look(source, at)
        if found.missing:
            found.makers.add(compilers.version(compilers.find()))
    except (NativeError, CompilationError) as error:
        return False, "; ".join([str(error), *found.notes]), ""
    return True, found.reason(at), found.whereabouts()


def compile_missing(at: str, say: Callable[[str], None]) -> tuple[int, int]:
    """Compile for a level what is not there yet; gives how many libraries an installation made, and how many are kept.

    Errors: NativeError where that cannot be
    """
    found = _Found()
    for source in library_folder.sources(KERNELS):
        found.look(source, at)
    _compile(found, at, say)
    return len(found.packaged), len(found.cached)


def turn_off(reason: str) -> None:
    """Let torch code stand in for all kernels of this process from now on, whatever could be compiled."""
    global _kernels
    _kernels = _Kernels(level(), reason)


def forget() -> None:
    """Forget what was loaded and what failed, so that the next call looks for libraries and a compiler anew."""
    global _kernels
    _kernels = None


def use_threads(of_kernels: int | Callable[[], int] | None, of_torch: int = 0) -> None:
    """Set how many threads compiled kernels take, and torch; all who set them do it here.

    of_kernels: None: as it is; 0: OMP_NUM_THREADS, or all cores this process may use. Results do not depend on it, so
                it need not be that of torch; a function is asked at each call of a kernel
    of_torch:   training's bits depend on it; 0: as it is
    """
    global _threads
    _threads = _threads if of_kernels is None else of_kernels
    if of_torch not in (0, torch.get_num_threads()):
        torch.set_num_threads(of_torch)


def share_cores(training_waits: Callable[[], bool], of_kernels: int, of_torch: int) -> None:
    """Have kernels take the cores that training leaves, and all of them while it waits; or `of_kernels`, if not 0."""
    alone, beside = of_kernels or cpu_cores(), of_kernels or max(1, cpu_cores() - of_torch)
    use_threads(lambda: alone if training_waits() else beside, of_torch)


@contextmanager
def threads_kept() -> Iterator[None]:
    """Put back how many threads kernels and torch take, whatever is set within; also as a decorator."""
    before = _threads, torch.get_num_threads()
    try:
        yield
    finally:
        use_threads(*before)


def thread_count() -> int:
    """Give the number of threads that compiled kernels take."""
    if _threads:
        return _threads() if callable(_threads) else _threads
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
    """Name the folder of compiled kernels; those of a level are in one of its name within."""
    if named := os.environ.get(CACHE):
        return Path(named).absolute()
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named).absolute() / "fastcluster_lm"
    return library_folder.of_user()


class _Found:
    """The libraries that are there for a level, those of the package first, and what is missing."""

    def __init__(self) -> None:
        self.packaged: dict[Path, Path] = {}
        self.cached: dict[Path, Path] = {}
        self.missing: list[Path] = []
        self.makers: set[str] = set()
        # why a library that is there is not taken
        self.notes: list[str] = []

    def look(self, source: Path, at: str, *, packaged: bool = True) -> Path | None:
        """Find a source's library, or note it as missing."""
        name = library_folder.library_name(source, at)
        folders = [(PACKAGED / at, self.packaged, Path(__file__).stat())] if packaged else []
        for folder, kept, like in [*folders, (cache_dir() / at, self.cached, None)]:
            try:
                by = library_folder.find(folder, name, like=like)
            except (library_folder.Unusable, OSError) as error:
                if str(error) not in self.notes:
                    self.notes.append(str(error))
                continue
            if by is not None:
                self.makers.add(by)
                kept[source] = folder / name
                return folder / name
        self.missing.append(source)
        return None

    def reason(self, at: str) -> str:
        return f"{' and '.join(sorted(self.makers))} for {at}"

    def whereabouts(self) -> str:
        parts = [f"{len(self.packaged)} came with the installation"] if self.packaged else []
        parts += [f"{len(self.cached)} are kept in {cache_dir()}"] if self.cached else []
        parts += [f"{len(self.missing)} will be compiled at the first use"] if self.missing else []
        return ", ".join([*parts, *self.notes])


def _prepare(at: str, say: Callable[[str], None]) -> _Kernels:
    loaded: dict[Path, ctypes.CDLL] = {}
    try:
        _check_not_off()
        found = _Found()
        for source in library_folder.sources(KERNELS):
            path = found.look(source, at)
            if path is not None and path.is_relative_to(PACKAGED):
                try:
                    loaded[source] = ctypes.CDLL(str(path))
                except OSError as error:
                    # one made for another system's libraries, say: compiled here it may do
                    found.notes.append(f"cannot load {path}: {error}")
                    del found.packaged[source]
                    found.look(source, at, packaged=False)
        _compile(found, at, say)
        for note in found.notes:
            log.warning("%s; another is taken", note)
        for source, path in found.cached.items():
            loaded[source] = _load(path)
    except NativeError as error:
        log.warning("compiled kernels are not in use, slower torch code runs in their place: %s", error)
        return _Kernels(at, str(error))
    return _Kernels(at, found.reason(at), loaded)


def _compile(found: _Found, at: str, say: Callable[[str], None]) -> None:
    """Compile what is missing into the cache, and find it there.

    Errors: NativeError
    """
    if not found.missing:
        return
    missing, folder = found.missing, cache_dir() / at
    why = "".join(f"; {note}" for note in found.notes)
    try:
        compilers.find()
        say(f"compiling {len(missing)} kernels for {at} into {folder}, once{why}")
        build(missing, at, folder)
    except CompilationError as error:
        raise NativeError(f"{error}{why}") from error
    found.missing, found.notes = [], []
    for source in missing:
        if found.look(source, at, packaged=False) is None:
            raise NativeError(f"{folder} does not hold what was compiled into it{''.join(found.notes)}")


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"cannot load {path}: {error}; remove it, and it is compiled again") from error


def _check_not_off() -> None:
    if os.environ.get(OFF) == "0":
        raise NativeError(f"{OFF}=0 turns it off")
