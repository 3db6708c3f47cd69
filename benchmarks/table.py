"""Write the table of benchmarks/README.md from the lines in results/: python -m fastcluster_lm.benchmarks.table"""

import json
from pathlib import Path

from fastcluster_lm.benchmarks.harness import Line

RESULTS = Path(__file__).parent / "results"


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
    """Read all lines of all result files, in the order of their names."""
    return [json.loads(text) for path in sorted(folder.glob("*.jsonl")) for text in path.read_text().splitlines()]


if __name__ == "__main__":
    print(table(read_results()))
