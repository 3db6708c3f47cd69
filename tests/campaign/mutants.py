"""Damaged files of every kind, put before every command that reads them: a result or one clear line, soon and small."""

import json
import random
import resource
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.campaign import damage
from tests.campaign.children import End, fork
from tests.campaign.outcome import Outcome
from tests.campaign.tiny import stopped_at, tiny, trained

PROMISE = (
    "Whatever has become of a file, every command that reads it gives its result or one clear line, in less than two "
    "seconds of work and 512 MiB more memory."
)
TIMES = (150, 5000)
STEPS = 18
# a stopped run has a checkpoint, rows and maps behind that, as one that was killed
STOPPED = 14
# the seconds are beyond what the command takes with the file as it was
MOST_SECONDS, MOST_MIB = 2.0, 512.0
# by the clock, for what waits and does not work
HANGS_S = 30.0
# gross requests for memory fail at once, and do not end the machine
ROOM = 3 * 2**30

TASKS = """\
inputs = ["A", "B"]
outputs = ["x", "y"]
lengths = [3]
[[tasks]]
name = "one"
expressions = ["[ab]{3}", "[cd]{3}"]
table = { A = "x", B = "y" }
[[tasks]]
name = "two"
expressions = ["[ef]{3}", "[gh]{2}i"]
table = { A = "y", B = "x" }
"""


@dataclass(frozen=True)
class Kind:
    """A kind of file: where one is, and the commands that read it, the quick ones and those that take a second."""

    path: str
    quick: tuple[str, ...]
    slow: tuple[str, ...] = ()


RUN = (
    Kind("whole/run.toml", ("scores", "runs", "sources", "hf", "parquet"), ("report", "png", "probe", "compare")),
    Kind("whole/environment.json", ("environment",)),
    Kind("whole/summary.json", ("runs", "sources"), ("report", "resume whole")),
    Kind("whole/steps.jsonl", ("runs", "sources", "parquet", "live"), ("report", "png", "compare")),
    Kind("whole/scores.jsonl", ("scores", "sparklines", "runs", "sources", "parquet", "live"), ("report", "png")),
    Kind("whole/maps/step-000015.safetensors", ("sources", "live"), ("report", "png")),
    Kind("whole/maps/step-000000.safetensors", ("sources", "live"), ("report", "png")),
    Kind("whole/checkpoints/step-000018/state.json", ("hf",), ("probe",)),
    Kind("whole/checkpoints/step-000018/model.safetensors", ("hf",), ("probe",)),
    Kind("stopped/run.toml", ("runs",), ("resume", "resume")),
    Kind("stopped/steps.jsonl", ("runs",), ("resume",)),
    Kind("stopped/scores.jsonl", ("runs",), ("resume",)),
    Kind("stopped/lock", ("runs",), ("resume",)),
    Kind("stopped/maps/step-000000.safetensors", ("runs",), ("resume",)),
    Kind("stopped/checkpoints/step-000014/state.json", (), ("resume", "probe stopped")),
    Kind("stopped/checkpoints/step-000014/model.safetensors", (), ("resume",)),
    Kind("stopped/checkpoints/step-000014/optimizer.safetensors", (), ("resume",)),
    Kind("stopped/checkpoints/step-000014/probe.safetensors", (), ("resume",)),
    Kind("probed/run.toml", ("runs", "sources probed", "scores probed"), ("report probed", "png probed")),
    Kind("probed/scores.jsonl", ("runs", "sources probed"), ("report probed",)),
    Kind("probed/maps/step-000018.safetensors", ("sources probed",), ("report probed",)),
    Kind("tasks.toml", ("data",)),
    Kind("questions.toml", ("questions",)),
    Kind("config.toml", ("config",)),
    Kind("studies/made/nano-seed-0.json", ("measured",)),
    Kind("studies/cells/one/cell.json", ("cell",)),
    Kind("results/one.jsonl", ("bench",)),
)


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Try as many mutants, each kind of file equally often."""
    base = folder / "base"
    base.mkdir()
    made = fork(partial(make_base, base))
    assert not made.error and not made.signal and not made.timed_out, f"{made.told()}\n{made.output}"
    plain: dict[str, float] = {}
    broken, most_s, most_mib, errors = [], 0.0, 0.0, 0
    for number in range(times):
        what, end = try_one(base, folder / "mutant", seed, number)
        seconds, mib, error = end.value or (end.seconds, 0.0, "")
        command = what.rpartition(": ")[2]
        if seconds > MOST_SECONDS:
            # a report takes a second or two of a busy processor with nothing damaged
            plain[command] = plain.get(command) or _plain(base, folder, command)
            seconds -= plain[command]
        fault = end.told() if end.error or end.signal or end.timed_out else error if error.startswith("!") else ""
        if not fault and seconds > MOST_SECONDS:
            fault = f"took {seconds:.1f} s more than with the file as it was"
        if not fault and mib > MOST_MIB:
            fault = f"took {mib:.0f} MiB"
        if fault:
            broken.append(f"seed {seed}, mutant {number}, {what}: {fault.lstrip('!')}")
        else:
            errors += bool(error)
            most_s, most_mib = max(most_s, seconds), max(most_mib, mib)
    figure = (
        f"{errors} ended with an error, {times - errors - len(broken)} with a result; at most {most_s:.1f} s more work "
        f"and {most_mib:.0f} MiB"
    )
    return Outcome(f"mutants of {len(RUN)} kinds of files", times, times - len(broken), figure, broken)


def try_one(base: Path, folder: Path, seed: int, number: int) -> tuple[str, End]:
    """Make a mutant and put it before one command; say what it is and how that ended."""
    draw = random.Random(f"{seed} {number}")
    kind = RUN[number % len(RUN)]
    slow = kind.slow and (not kind.quick or draw.random() < 0.25)
    command = draw.choice(kind.slow if slow else kind.quick)
    shutil.copytree(base, folder, symlinks=True)
    try:
        others = sorted(path for path in base.rglob("*") if path.is_file())
        alike = [path for path in others if path.name == Path(kind.path).name] or others
        path = folder / kind.path
        what = damage.damaged(path, draw.choice((alike, others)), draw)
        checkpoint = path.parent
        if checkpoint.name.startswith("step-") and path.name != "state.json" and draw.random() < 0.7:
            damage.resealed(checkpoint)
            what += ", resealed"
        return f"{kind.path} {what}: {command}", fork(partial(_measured, folder, command), limit_s=HANGS_S)
    finally:
        shutil.rmtree(folder)


def _plain(base: Path, folder: Path, command: str) -> float:
    """Say how long a command takes with every file as it was."""
    at = folder / "plain"
    shutil.copytree(base, at)
    end = fork(partial(_measured, at, command))
    shutil.rmtree(at)
    assert end.value is not None and not end.value[2].startswith("!"), f"{command}: {end.told()}\n{end.output}"
    return end.value[0]


def _measured(folder: Path, command: str) -> tuple[float, float, str]:
    """Run a command; give the seconds of work, the MiB it took, and its error, with ! where that explains nothing."""
    from fastcluster_lm.benchmarks.harness import peak_mib, resident_mib

    warnings.simplefilter("ignore")
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + ROOM, virtual + ROOM))
    before, started = resident_mib(), time.process_time()
    error = _called(folder, command)
    return time.process_time() - started, peak_mib() - before, error


def _called(folder: Path, command: str) -> str:
    from fastcluster_lm.errors import FclmError

    name, _, run = command.partition(" ")
    path = folder / (run or ("stopped" if name == "resume" else "whole"))
    out = str(folder / "out")
    calls: dict[str, list[str]] = {
        "scores": ["scores", str(path), "--json"],
        "sparklines": ["scores", str(path), "--sparklines"],
        "runs": ["runs", str(folder)],
        "hf": ["export", str(path), out, "--to", "hf"],
        "parquet": ["export", str(path), out, "--to", "parquet"],
        "report": ["report", str(path), "-o", f"{out}.html"],
        "compare": ["report", str(path), str(folder / "stopped"), "-o", f"{out}.html"],
        "png": ["report", str(path), "--png", out],
        "probe": ["probe", str(path), "--space", "hidden", "--out", out],
        "resume": ["train", "--resume", str(path), "-s", "probe.worker=off"],
        "data": ["data", "--tasks", str(folder / "tasks.toml")],
        "config": ["data", "-c", str(folder / "config.toml")],
    }
    if name in calls:
        return _through_cli(calls[name])
    direct: dict[str, Callable[[Path], Any]] = {
        "environment": _environment,
        "sources": _sources,
        "live": _live_page,
        "questions": _questions,
        "measured": _study,
        "cell": _cell,
        "bench": _bench,
    }
    try:
        direct[name](path if name in ("environment", "sources", "live") else folder)
    except FclmError as error:
        return ("!" if "\n" in str(error) else "") + f"{type(error).__name__}: {error}"
    return ""


def _through_cli(args: list[str]) -> str:
    import traceback

    from click.testing import CliRunner

    from fastcluster_lm.cli import main

    done = CliRunner().invoke(main, args)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        places = traceback.extract_tb(done.exception.__traceback__)
        at = next((place for place in reversed(places) if "fastcluster_lm" in place.filename), places[-1])
        return f"!{type(done.exception).__name__}: {done.exception} ({Path(at.filename).name}:{at.lineno})"[:400]
    if done.exit_code == 0:
        return ""
    told = [line for line in done.stderr.splitlines() if line.startswith("fclm: ")]
    last = done.stderr.splitlines()[-1] if done.stderr else ""
    if done.exit_code not in (1, 2) or len(told) != 1 or last != told[0]:
        return f"!exit {done.exit_code} with {done.stderr[-300:]!r}"
    return told[0]


def make_base(folder: Path) -> None:
    """Make one file of every kind, as the program writes it."""
    from fastcluster_lm.config import apply_settings, config_to_dict
    from fastcluster_lm.engine.probe_work import ProbeOptions
    from fastcluster_lm.engine.probing import probe_run
    from fastcluster_lm.studies.study import Measured
    from tests.tiny_questions import QUESTIONS

    # maps and checkpoints of two tokens have all that those of one have
    config = apply_settings(tiny(steps=STEPS), ['probe.positions=["instruction", "input"]'])
    trained(config, folder / "whole")
    assert not stopped_at(config, folder / "stopped", STOPPED)
    (folder / "stopped" / "lock").touch()
    probe_run(folder / "whole", options=ProbeOptions(out=folder / "probed"))
    (folder / "tasks.toml").write_text(TASKS)
    (folder / "questions.toml").write_text(QUESTIONS)
    import tomli_w

    (folder / "config.toml").write_text(tomli_w.dumps(config_to_dict(config)))
    study, _, cells = _made_study(folder)
    cells.fill(_made_cell(study))
    found = Measured(0.5, 0.25, [{"arm": "a", "x": 1, "y": 2.0}], {"twice": 1.0}, "a note")
    from fastcluster_lm.studies import StudyFolder

    StudyFolder(folder / "studies").keep(study, "nano", 0, found)
    (folder / "studies" / "cells" / _made_cell(study).name).rename(folder / "studies" / "cells" / "one")
    (folder / "results").mkdir()
    line = {"bench": "probe", "kind": "speed", "found": 2.0, "target": 1.0, "target_is": "at least", "pass": True}
    (folder / "results" / "one.jsonl").write_text(json.dumps(line | {"n": 9, "d": 2, "classes": 3}) + "\n")
    assert asdict(found)


def _touch(config: Any, folder: Path, options: Any) -> None:
    (folder / "number").write_text("1")


def _made_study(folder: Path) -> tuple[Any, Any, Any]:
    from fastcluster_lm.studies import Study, StudyFolder
    from fastcluster_lm.studies.study import Arm, Lines

    words = dict.fromkeys(("question", "claim", "statistic", "control"), "one?")
    arms = {"only": Arm(work=_touch)}
    study = Study(
        name="made",
        **words,
        margin=0.0,
        arms=lambda preset: arms,
        measure=lambda cells: None,
        figure=Lines("x", "y", "a"),
    )
    place = StudyFolder(folder / "studies")
    return study, place, place.cells


def _made_cell(study: Any) -> Any:
    from fastcluster_lm.studies.cells import cells_of

    return cells_of(study, "nano", 0)["only"]


def _environment(path: Path) -> None:
    from fastcluster_lm.store import RunFolder

    RunFolder.open(path).environment()


def _sources(path: Path) -> None:
    from fastcluster_lm.engine.reading import clusters_by_task, instruction_texts
    from fastcluster_lm.store import RunFolder
    from fastcluster_lm.views.report.history import read_history
    from fastcluster_lm.views.report.sources import RunSources

    folder = RunFolder.open(path)
    sources = RunSources(read_history(folder), texts=instruction_texts(folder), tabulate=clusters_by_task)
    sources.fill(packed=True)
    sources.names()


def _live_page(path: Path) -> None:
    from fastcluster_lm.engine.reading import clusters_by_task, instruction_texts
    from fastcluster_lm.store import RunFolder
    from fastcluster_lm.views.report.history import Follower
    from fastcluster_lm.views.report.sources import RunSources

    folder = RunFolder.open(path)
    follower = Follower(folder)
    follower.refresh()
    RunSources(follower.history, texts=instruction_texts(folder), tabulate=clusters_by_task).fill(packed=False)
    follower.refresh()


def _questions(folder: Path) -> None:
    from fastcluster_lm.tasks import load_questions

    load_questions(folder / "questions.toml").prompts(100, 0)


def _study(folder: Path) -> None:
    from fastcluster_lm.studies import judge

    study, place, _ = _made_study(folder)
    if (found := place.measured(study, "nano", 0)) is not None:
        judge(study, {0: found, 1: found}).to_dict()


def _cell(folder: Path) -> None:
    study, _, cells = _made_study(folder)
    cell = _made_cell(study)
    (folder / "studies" / "cells" / "one").rename(folder / "studies" / "cells" / cell.name)
    cells.has(cell)
    cells.seconds(cell)
    cells.count_by_code([study], "nano", [0])


def _bench(folder: Path) -> None:
    from fastcluster_lm.benchmarks.table import read_results, table

    table(read_results(folder / "results"))
