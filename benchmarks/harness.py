"""Fair timing: interleaved repeats, medians and spread, and one line of JSON for each measurement."""

import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fastcluster_lm.device import package_versions
from fastcluster_lm.kernels import native

PACKAGES = ("fastcluster-lm", "torch", "numpy", "scikit-learn", "openTSNE", "faiss-cpu", "torchdr", "transformers")
Line = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing measured several times."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_dict(self) -> Line:
        """Give the median, both ends and the count."""
        return {
            "median_s": self.median,
            "low_s": min(self.seconds),
            "high_s": max(self.seconds),
            "repeats": len(self.seconds),
        }


def time_side_by_side(
    things: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: bool = True
) -> dict[str, Timing]:
    """Run each thing in turn, again and again, so that a slow minute of the machine falls on all of them.

    Every other round goes backwards, so that none always follows the same other, whose threads sleep and whose numbers
    fill the cache
    Units:  seconds of wall clock; the first round is left out if warm_up, with what it compiles and allocates
    """
    taken: dict[str, list[float]] = {name: [] for name in things}
    order = list(things.items())
    for turn in range(repeats + warm_up):
        for name, thing in order if turn % 2 == 0 else order[::-1]:
            started = time.perf_counter()
            thing()
            if turn >= warm_up:
                taken[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def judged(line: Line, target: float, found: float, *, at_least: bool) -> Line:
    """Add the target and whether it was met."""
    met = found >= target if at_least else found <= target
    return {**line, "target": target, "target_is": "at least" if at_least else "at most", "found": found, "pass": met}


def surroundings() -> Line:
    """Describe what a figure depends on: versions, processor, threads, commit, date."""
    compiled, compiler = native.status()
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernel_threads": native.thread_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "compiler": compiler if compiled else None,
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
    }


def peak_mib(process: int | str = "self") -> float:
    """Give the largest memory that a process held, in MiB; this one's since the last `resident_mib` if Linux can tell.

    Another process's is 0 where it cannot be read
    """
    if process != "self":
        return _status_mib("VmHWM", process)
    return _status_mib("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    """Give the memory that this process holds now, in MiB, and let the peak begin anew from here."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS") or peak_mib()


def _status_mib(key: str, process: int | str = "self") -> float:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:")), 0.0)


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Write one line of JSON for each measurement."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
