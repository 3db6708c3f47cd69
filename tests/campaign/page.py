"""The campaign's table as Markdown, in the one place of a page that is marked for it; it tries nothing."""

import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.campaign.schedule import Row

BEGIN, END = "<!-- campaign: written by the command, to the mark below -->", "<!-- campaign: end -->"
ROOT = Path(__file__).resolve().parents[2]


def write_page(path: Path, rows: Sequence[Row], *, command: str) -> None:
    """Put the table in place of the one between the marks.

    Errors: ValueError if the page has no marks
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: expected the lines {BEGIN!r} and {END!r}, between which the table goes")
    table = "\n".join([described(command), "", *_table(rows)])
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def described(command: str) -> str:
    """Say when, of what and on what the rows were made."""
    import torch

    commit = _told(["git", "describe", "--always", "--dirty", "--exclude", "*"]) or "no commit"
    return (
        f"Made on {datetime.now(UTC):%d %B %Y} by `{command}` of commit {commit}, "
        f"on {_processor()} ({torch.backends.cpu.get_cpu_capability()}, {_cores()} cores), "
        f"Python {platform.python_version()}, torch {torch.__version__}."
    )


def _table(rows: Sequence[Row]) -> list[str]:
    head = ["| promise | what was done | how often | held | figure | met |", "|---|---|---:|---:|---|---|"]
    return head + [
        f"| `{row.name}`: {_plain(row.promise)} | {_plain(row.outcome.done)} | {row.counted} | {row.outcome.held:,} "
        f"| {_plain(row.outcome.figure)} | {'yes' if row.outcome.met else '**no**'} |"
        for row in rows
    ]


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1].strip() if found else platform.machine()


def _cores() -> int:
    from fastcluster_lm.device import cpu_cores

    return cpu_cores()


def _told(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
