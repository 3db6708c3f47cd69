"""Runs that are about to be killed, and what is asked of them afterwards; how they are killed is others' matter."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

from fastcluster_lm.config import RunConfig
from fastcluster_lm.engine import resume_run
from fastcluster_lm.store import list_runs
from tests.campaign.calls import READING, counted
from tests.campaign.children import End, fork
from tests.campaign.tiny import contents, difference, killed_after, read_all, resumed, tiny, trained

SOURCES = ("fresh", "batch")
# a run from its beginning, one that goes on with rows and maps later than its checkpoint, and one that goes on from an
# earlier checkpoint than its newest
WHERE = ("run", "resume", "earlier")
KILLED, EARLIER = 33, 14


def whole_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Give the contents of the runs that are left alone."""
    for source in SOURCES:
        ended_well(fork(partial(trained, tiny(source), folder / source)))
    return {source: contents(folder / source) for source in SOURCES}


def begun(where: str, config: RunConfig, path: Path) -> Callable[[], Any]:
    """Give what is to be killed; for a resume the folder is first brought to where it begins."""
    if where == "run":
        return partial(trained, config, path)
    end = fork(partial(killed_after, config, path, KILLED))
    assert end.signal == SIGKILL, end.told() + end.output
    return partial(resumed, path) if where == "resume" else partial(resume_run, path, from_step=EARLIER)


def life(where: str, source: str, folder: Path) -> float:
    """Measure how long it takes."""
    folder.mkdir()
    end = fork(begun(where, tiny(source), folder / "run"))
    ended_well(end)
    return end.seconds


def changing_calls(where: str, folder: Path) -> list[str]:
    """List the calls with which it changes the disk."""
    folder.mkdir()
    action = begun(where, tiny(), folder / "run")
    end = fork(partial(counted, folder, action))
    ended_well(end)
    return [name for name, _ in end.value if name not in READING]


def unreadable(folder: Path) -> str:
    """Say what cannot be read of the run in this folder, or nothing."""
    return fork(partial(_read_runs, folder)).error


def gone_on(config: RunConfig, path: Path, whole: dict[str, Any]) -> str:
    """Resume it, or begin again where nothing had begun; say what is wrong then, or nothing.

    Probes are brought back into training's own process, which changes no byte but what run.toml says of it
    """
    end = fork(partial(_resume_within, path) if path.exists() else partial(trained, config, path))
    if end.error or end.signal or end.timed_out:
        return f"the resume: {end.told()}"
    if config.probe.worker == "on":
        whole = whole | {"run.toml": (path / "run.toml").read_bytes()}
    if fault := difference(path, whole):
        return fault
    left = sorted(entry.name for entry in path.parent.iterdir() if entry != path)
    return f"{', '.join(left)} is left beside it" if left else ""


def ended_well(end: End) -> None:
    """Refuse a child that was to end well and did not: what is measured against it would mean nothing."""
    assert not end.error and not end.signal and not end.timed_out, end.told() + end.output


def _read_runs(folder: Path) -> None:
    for run_folder in list_runs(folder):
        read_all(run_folder.path)


def _resume_within(path: Path) -> None:
    resume_run(path, wanted=lambda config: replace(config, probe=replace(config.probe, worker="off")))
