"""Signals in every phase of `fclm train`: which status it ends with, and what a resume makes of what it leaves."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from fastcluster_lm.config import config_to_dict
from tests.campaign.children import End, fork
from tests.campaign.driver import APART_S, send
from tests.campaign.outcome import Outcome
from tests.campaign.tiny import contents, difference, read_all, tiny

PROMISE = "A signal in any phase of training ends it with that signal's status, and a resume gives the bytes of no stop"
TIMES = (10, 30)

STEPS = 24
# which signals come, and the status of the end
SENT = {
    "SIGTERM": 143,
    "SIGINT": 130,
    "SIGHUP": 129,
    "SIGTERM,SIGTERM": 143,
    "SIGUSR1": 0,
}
PHASES = ("step", "probe", "checkpoint", "closing", "import", "compile")
# these need a new interpreter each, and the last one compiles every kernel
SLOW = ("import", "compile")
# of what is at hand when a second signal comes nothing takes as long, in a process that others share a core with
LIMIT_S = 120.0
# seconds that a compiler is held back, in which its signal must have ended the training
HELD_S = 20


class Case(NamedTuple):
    """Signals at the n-th time that a phase is entered."""

    sent: str
    phase: str
    at: int


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Try each signal in each phase, the quick phases first."""
    toml = folder / "run.toml"
    toml.write_bytes(tomli_w.dumps(config_to_dict(tiny(steps=STEPS))).encode())
    end = fork(partial(_train, ["-c", str(toml), "--out", str(folder / "whole")]))
    assert end.value == 0, end.told() + end.output
    whole = contents(folder / "whole")
    broken, slowest = [], 0.0
    cases = _cases(times, random.Random(seed))
    for number, case in enumerate(cases):
        at = folder / f"{number}"
        at.mkdir()
        end = _tried(case, ["-c", str(toml), "--out", str(at / "run")], at)
        slowest = max(slowest, end.seconds if case.phase not in SLOW else 0.0)
        if fault := _fault(case, end, at / "run", whole, toml):
            broken.append(f"{case} (seed {seed}): {fault}")
    return Outcome(
        "signals, each then resumed", len(cases), len(cases) - len(broken), f"longest run {slowest:.1f} s", broken
    )


def _cases(times: int, draw: random.Random) -> list[Case]:
    """Give so many cases: those of a new interpreter last, and one of each of them among the first ten."""
    quick = [(sent, phase) for phase in PHASES if phase not in SLOW for sent in SENT]
    slow = [(sent, phase) for sent in SENT for phase in SLOW]
    draw.shuffle(quick)
    # the first eight quick ones hold every signal and every phase at least once, whatever the shuffle
    head = [(sent, phase) for sent, phase in zip(SENT, ("step", "probe", "checkpoint", "closing", "step"), strict=True)]
    head += [("SIGTERM,SIGTERM", "checkpoint"), ("SIGUSR1", "checkpoint"), ("SIGTERM", "closing")]
    order = [*head, *slow[:2], *(one for one in quick if one not in head), *slow[2:]]
    chosen = [order[number % len(order)] for number in range(times)]
    return [Case(sent, phase, _when(phase, draw)) for sent, phase in chosen]


def _when(phase: str, draw: random.Random) -> int:
    # a run of 24 steps has three probes and four checkpoints; steps that have one anyway would hide one asked for
    every = tiny(steps=STEPS).training.checkpoint_every
    steps = [step for step in range(1, STEPS) if step % every]
    chosen = {"step": draw.choice(steps), "probe": draw.randrange(1, 3), "checkpoint": draw.randrange(1, 4)}
    return chosen.get(phase, 1)


def _tried(case: Case, arguments: list[str], folder: Path) -> End:
    if case.phase == "import":
        return _new_process(case.sent, arguments, {})
    if case.phase == "compile":
        # those of an installation would be found first, and nothing compiled
        packaged = folder / "packaged"
        packaged.mkdir()
        return _new_process("", arguments, _compiler(case.sent, folder), packaged=str(packaged))
    return fork(partial(_train, arguments, case), limit_s=LIMIT_S)


def _train(arguments: list[str], case: Case | None = None) -> int:
    """Be `fclm train`, with signals on the way; give its status."""
    from fastcluster_lm.cli import main

    _as_in_a_terminal()
    if case is not None:
        _arm(case)
    try:
        main(["train", *arguments], prog_name="fclm")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _arm(case: Case) -> None:
    """Let signals come within a phase, the n-th time that it is entered."""
    from fastcluster_lm import views
    from fastcluster_lm.probe import RunProbe
    from fastcluster_lm.store import RunFolder
    from fastcluster_lm.training import Trainer

    within: dict[str, tuple[Any, str]] = {
        "step": (Trainer, "advance"),
        "probe": (RunProbe, "score"),
        "checkpoint": (RunFolder, "write_checkpoint"),
        "closing": (views, "print_closing"),
    }
    owner, name = within[case.phase]
    original: Callable[..., Any] = getattr(owner, name)
    entered = [0]

    def entering(*given: Any, **named: Any) -> Any:
        entered[0] += 1
        if entered[0] != case.at:
            return original(*given, **named)
        if case.phase != "checkpoint":
            send(case.sent.split(","))
            return original(*given, **named)
        # in the middle of it, where some of its files are written and others are not
        fsync, synced = os.fsync, [0]

        def fsync_and_send(descriptor: int) -> None:
            fsync(descriptor)
            synced[0] += 1
            if synced[0] == 2:
                send(case.sent.split(","))

        os.fsync = fsync_and_send
        try:
            return original(*given, **named)
        finally:
            os.fsync = fsync

    setattr(owner, name, entering)


def _as_in_a_terminal() -> None:
    """Ignore no signal, whatever this process was started from: nohup, or a script that put it in its background."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _new_process(sent: str, arguments: list[str], env: dict[str, str], packaged: str = "") -> End:
    started = time.monotonic()
    command = [sys.executable, str(Path(__file__).with_name("driver.py")), sent, packaged, "train", *arguments]
    with subprocess.Popen(
        command,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_as_in_a_terminal,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=3 * LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return End(timed_out=True, seconds=time.monotonic() - started)
    code = process.returncode
    told = output.decode(errors="replace")
    if code < 0:
        return End(signal=-code, output=told, seconds=time.monotonic() - started)
    return End(value=code, output=told, seconds=time.monotonic() - started)


def _compiler(sent: str, folder: Path) -> dict[str, str]:
    """Give a compiler that, the first time, signals who started it and then waits a while; no kernel is there yet."""
    script, first = folder / "c++", folder / "first"
    signals = f"\nsleep {APART_S}\n".join(f"kill -{name[3:]} $PPID" for name in sent.split(","))
    wait = "" if sent == "SIGUSR1" else f"sleep {HELD_S}\n"
    script.write_text(f'#!/bin/sh\nif mkdir "{first}" 2>/dev/null; then\n{signals}\n{wait}fi\nexec c++ "$@"\n')
    script.chmod(0o755)
    return {"CXX": str(script), "FCLM_CACHE_DIR": str(folder / "kernels")}


def _fault(case: Case, end: End, path: Path, whole: dict[str, Any], toml: Path) -> str:
    """Say in a line what did not hold; "" if all did."""
    status = 128 + end.signal if end.signal else end.value
    if end.error.startswith("exit status "):
        status = int(end.error.rpartition(" ")[2])
    if status != SENT[case.sent]:
        return f"expected status {SENT[case.sent]}, it {end.told()}; {' / '.join(end.output.splitlines()[-3:])}"
    if "Traceback" in end.output:
        return f"a traceback: {end.output.splitlines()[-1]}"
    if case.phase == "compile" and not (path.parent / "first").is_dir():
        return "nothing was compiled, so that no signal came"
    if any(entry.name.startswith(".run") for entry in path.parent.iterdir()):
        return "a folder under a temporary name is left"
    if not path.exists():
        if case.phase not in SLOW:
            return "there is no run folder"
        again = fork(partial(_train, ["-c", str(toml), "--out", str(path)]))
    else:
        saved = set(read_all(path))
        # a step that is begun is finished and saved, but for a second signal
        if case.phase == "step" and "," not in case.sent and case.at not in saved:
            return f"step {case.at} is not saved, only {sorted(saved)}"
        again = fork(partial(_train, ["--resume", str(path)]))
    if again.value != 0:
        return f"the resume {again.told()}: {' / '.join(again.output.splitlines()[-3:])}"
    return difference(path, whole, extra_checkpoints=True)
