"""Run folders that earlier versions wrote: every command that reads a run opens them, and the stopped one goes on."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.campaign.children import fork
from tests.campaign.outcome import Outcome
from tests.campaign.tiny import read_all

PROMISE = "A run folder of an earlier version can be read, reported, probed, exported and gone on with."
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
# each case once, whatever is asked for
TIMES = (19, 19)
# steps of the runs in the fixture
STOPPED, END = 4, 7


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Try every command on a copy of each folder."""
    broken = []
    cases = _cases()[:times]
    for number, (name, case) in enumerate(cases):
        at = folder / f"{number}"
        shutil.copytree(FIXTURES / "run-format-1", at)
        before = _files(at)
        end = fork(partial(case, at))
        if end.error or end.signal or end.timed_out:
            broken.append(f"{name}: {end.told()}: {end.output[-2000:]}")
        elif "resume of the stopped" not in name and (changed := before.items() - _files(at).items()):
            broken.append(f"{name}: it changed {sorted(path for path, _ in changed)}")
    return Outcome("commands on run folders of format 1", len(cases), len(cases) - len(broken), "", broken)


def _cases() -> list[tuple[str, Callable[[Path], None]]]:
    both: dict[str, Callable[[str, Path], None]] = {
        "reading": lambda name, at: _check_read(at / name),
        "scores": _check_scores,
        "sparklines": lambda name, at: _fclm("scores", at / name, "--sparklines"),
        "report": _check_report,
        "figures": lambda name, at: _fclm("report", at / name, "--png", at / "figures"),
        "probe": _check_probe,
        "export to parquet": lambda name, at: _fclm("export", at / name, at / "tables", "--to", "parquet"),
        "export to hf": lambda name, at: _fclm("export", at / name, at / "model", "--to", "hf"),
    }
    cases = [(f"{what} of the {name}", partial(check, name)) for what, check in both.items() for name in NAMES]
    return [*cases, ("list of runs", _check_list), *((f"resume of the {name}", RESUMES[name]) for name in NAMES)]


NAMES = ("finished", "stopped")


def _fclm(*arguments: object) -> str:
    """Run a command in this process; give what it printed."""
    from click.testing import CliRunner

    from fastcluster_lm.cli import main

    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def _check_read(path: Path) -> None:
    from fastcluster_lm.store import RunFolder

    found = RunFolder.open(path)
    assert read_all(path) == [2 if path.name == "finished" else STOPPED]
    assert found.status() == path.name
    assert [row["step"] for row in found.steps()] == list(range(3 if path.name == "finished" else STOPPED + 1))
    assert found.map_steps() == ([0, 2] if path.name == "finished" else [0, 3])
    assert len(found.scores()) == len((path / "scores.jsonl").read_bytes().splitlines()) > 50


def _check_scores(name: str, at: Path) -> None:
    rows = json.loads(_fclm("scores", at / name, "--json"))
    stored = [json.loads(line) for line in (at / name / "scores.jsonl").read_bytes().splitlines()]
    assert len(rows) == len(stored)
    for row, one in zip(rows, stored, strict=True):
        # a later version may have more columns, and never another number
        assert row.items() >= one.items()


def _check_report(name: str, at: Path) -> None:
    _fclm("report", at / name, "-o", at / "report.html")
    assert (at / "report.html").stat().st_size > 10_000


def _check_probe(name: str, at: Path) -> None:
    rows = json.loads(_fclm("probe", at / name, "--json"))
    assert {row["step"] for row in rows} == {2 if name == "finished" else STOPPED} and len(rows) > 25


def _check_list(at: Path) -> None:
    rows = json.loads(_fclm("runs", at, "--json"))
    assert [row["status"] for row in rows] == ["finished", "stopped"], rows


def _check_resume_of_finished(at: Path) -> None:
    _fclm("train", "--resume", at / "finished")


def _check_resume_of_stopped(at: Path) -> None:
    from fastcluster_lm.store import RunFolder

    path = at / "stopped"
    before = {table: (path / table).read_bytes() for table in ("steps.jsonl", "scores.jsonl")}
    _fclm("train", "--resume", path)
    found = RunFolder.open(path)
    assert found.status() == "finished" and [row["step"] for row in found.steps()] == list(range(END + 1))
    for table, data in before.items():
        assert (path / table).read_bytes().startswith(data), f"rows of {table} before the stop changed"


RESUMES: dict[str, Callable[[Path], None]] = {
    "finished": _check_resume_of_finished,
    "stopped": _check_resume_of_stopped,
}


def _files(folder: Path) -> dict[str, bytes]:
    # the lock's holder writes its name there
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
