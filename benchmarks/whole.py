"""`fclm bench overhead --whole`: what commands take from launch to end, as processes in turns, by the clock."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from fastcluster_lm.benchmarks.harness import Line, Timing, judged
from fastcluster_lm.errors import DataError

# seconds that a first training step may be done behind `import torch`
STARTUP_TARGET = 1.5
# of a run with full probes every 50 steps, and with step probes after every one: time over that of the run without
FULL = ("--probe-every", "50")
STEP = ("--probe-every", "1", "--probe-source", "batch")
OFF = ("--probe-every", "0")


@dataclass(frozen=True)
class Target:
    """A command with probes, to be set beside the one without."""

    kind: str
    every: int
    options: tuple[str, ...]
    steps: int
    most: float


TARGETS = (
    Target("full probes, 600 steps", 50, FULL, 600, 1.3),
    Target("step probes of the batch source, 600 steps", 1, STEP, 600, 1.6),
    Target("full probes, 1500 steps", 50, FULL, 1500, 1.08),
)


@dataclass(frozen=True)
class Took:
    """What one process took: seconds by the clock, and of all cores, its children's included."""

    wall_s: float
    cpu_s: float


def bench_whole(preset: str, repeats: int, targets: tuple[Target, ...] = TARGETS) -> Iterator[Line]:
    """Time commands in turns: start-up beside `import torch`, then each number of steps with probes and without."""
    yield _startup(preset, repeats)
    for steps in dict.fromkeys(target.steps for target in targets):
        asked = [target for target in targets if target.steps == steps]
        commands = {"off": OFF, **{target.kind: target.options for target in asked}}
        things = {name: _whole(preset, steps, options) for name, options in commands.items()}
        taken = _in_turns(things, repeats)
        for target in asked:
            yield _compared(preset, target, taken["off"], taken[target.kind])


def _startup(preset: str, repeats: int) -> Line:
    """Time a command until it says that its first step is done, beside a Python that only imports torch."""
    things = {"import torch": _import_torch, "first step": lambda: _first_step(preset)}
    # once for nothing, so that all files are in memory
    taken = _in_turns(things, repeats + 1)
    torch_s, step_s = ([took.wall_s for took in taken[name]][1:] for name in things)
    behind = [step - alone for step, alone in zip(step_s, torch_s, strict=True)]
    line = {
        "bench": "overhead",
        "kind": "whole command, seconds to its first step beyond import torch",
        "preset": preset,
        "import_torch": Timing(tuple(torch_s)).as_dict(),
        "first_step": Timing(tuple(step_s)).as_dict(),
        "low": min(behind),
        "high": max(behind),
        "turns": len(behind),
    }
    return judged(line, STARTUP_TARGET, statistics.median(behind), at_least=False)


def _compared(preset: str, target: Target, off: list[Took], probed: list[Took]) -> Line:
    ratios = [one.wall_s / other.wall_s for one, other in zip(probed, off, strict=True)]
    line = {
        "bench": "overhead",
        "kind": f"whole command, {target.kind}",
        "preset": preset,
        "every": target.every,
        "steps": target.steps,
        "without": Timing(tuple(took.wall_s for took in off)).as_dict(),
        "with": Timing(tuple(took.wall_s for took in probed)).as_dict(),
        "without_cpu_s": statistics.median(took.cpu_s for took in off),
        "with_cpu_s": statistics.median(took.cpu_s for took in probed),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "turns": len(ratios),
    }
    return judged(line, target.most, statistics.median(ratios), at_least=False)


def _in_turns(things: Mapping[str, Callable[[], Took]], repeats: int) -> dict[str, list[Took]]:
    """Take what each thing says it took, in turns, every other round backwards."""
    taken: dict[str, list[Took]] = {name: [] for name in things}
    for turn in range(repeats):
        for name in list(things)[:: 1 if turn % 2 == 0 else -1]:
            taken[name].append(things[name]())
    return taken


def _whole(preset: str, steps: int, options: tuple[str, ...]) -> Callable[[], Took]:
    def run() -> Took:
        with tempfile.TemporaryDirectory() as folder:
            cpu, started = _children_cpu(), time.perf_counter()
            done = subprocess.run(_train(preset, steps, Path(folder), *options), capture_output=True, text=True)
            took = Took(time.perf_counter() - started, _children_cpu() - cpu)
        if done.returncode != 0:
            raise DataError(f"expected the command to end with status 0, got {done.returncode}: {done.stderr[-500:]}")
        return took

    return run


def _first_step(preset: str) -> Took:
    with tempfile.TemporaryDirectory() as folder:
        cpu, started = _children_cpu(), time.perf_counter()
        command = _train(preset, 1, Path(folder), *OFF)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = ""
            for said in process.stderr:
                if said.startswith("step 1/"):
                    break
            wall = time.perf_counter() - started
            # to its end, so that what comes next has the cores alone
            process.communicate()
    if not said.startswith("step 1/"):
        raise DataError(f"expected the command to say that step 1 is done, got {said!r}")
    return Took(wall, _children_cpu() - cpu)


def _import_torch() -> Took:
    cpu, started = _children_cpu(), time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return Took(time.perf_counter() - started, _children_cpu() - cpu)


def _train(preset: str, steps: int, folder: Path, *options: str) -> list[str]:
    run = ["--preset", preset, "-s", f"training.steps={steps}", "--out", str(folder / "run"), *options]
    return [sys.executable, "-m", "fastcluster_lm", "train", *run]


def _children_cpu() -> float:
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
