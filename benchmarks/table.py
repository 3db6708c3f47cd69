"""Write the table of benchmarks/README.md from the lines in results/: python -m fastcluster_lm.benchmarks.table"""

from pathlib import Path
from typing import Literal, Required, TypedDict

from fastcluster_lm.benchmarks.harness import Line
from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store.files import decode_object, explaining
from fastcluster_lm.store.schemas import Finite, check
from fastcluster_lm.untrusted import opened_regular, read_lines

RESULTS = Path(__file__).parent / "results"


class ResultLine(TypedDict, total=False):
    """What the table needs of a line; those that are not judged have no `found`."""

    bench: Required[str]
    kind: str
    found: Finite
    target: Finite
    target_is: Literal["at least", "at most"]
    steps: int


def table(lines: list[Line]) -> str:
    """Lay out every judged line, lost ones included, as Markdown."""
    rows = [
        "| what | data | 7 layers of (n, d, classes) | found | target | |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        if "found" not in line:
            continue
        shape = ", ".join(str(line[key]) for key in ("n", "d", "classes") if key in line) if "n" in line else ""
        if "every" in line:
            shape = f"{line.get('preset', '')}, every {line['every']}"
        elif line["bench"] == "maps":
            shape = f"{line['steps']} steps"
        sign = "≥" if line["target_is"] == "at least" else "≤"
        outcome = "pass" if line["pass"] else "**short**"
        what = f"{line['bench']}: {line['kind']}"
        data = line.get("data") or line.get("preset") or ""
        rows.append(f"| {what} | {data} | {shape} | {line['found']:.3g} | {sign} {line['target']:.4g} | {outcome} |")
    return "\n".join(rows)


def read_results(folder: Path = RESULTS) -> list[Line]:
    """Read all lines of all result files, in the order of their names.

    Errors: RunFolderError naming file and line, if one is damaged
    """
    return [line for path in sorted(folder.glob("*.jsonl")) for line in _read_lines(path)]


def _read_lines(path: Path) -> list[Line]:
    with explaining("read", path), opened_regular(path) as descriptor:
        texts = read_lines(descriptor).splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = decode_object(text)
            check(line, ResultLine)
            _check_judged(line)
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{path}, line {number} is damaged: {error}") from error
        lines.append(line)
    return lines


def _check_judged(line: Line) -> None:
    """Refuse a figure without what it was judged by."""
    needed = ["kind", "target", "target_is", "pass", *(["steps"] if line["bench"] == "maps" else [])]
    if "found" in line and (gone := [name for name in needed if name not in line]):
        raise ValueError(f"expected {gone[0]} beside found")


if __name__ == "__main__":
    print(table(read_results()))
