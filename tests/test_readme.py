"""The README's own loop with the probe attached runs as it stands, and shows what it says."""

import re
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.store import RunFolder

README = Path(__file__).parents[1] / "README.md"


def test_the_loop_with_the_probe_attached_runs_as_it_stands(tmp_path, monkeypatch):
    section = README.read_text().partition("## Attach it to your own loop\n")[2].partition("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    # the import and the three lines that a reader adds, and no more
    added = [line for line in code.splitlines() if "probe" in line.lower()]
    assert len(added) == 4 and [re.search(r"# (\d)", line).group(1) for line in added[1:]] == ["1", "2", "3"]
    (tmp_path / "loop.py").write_text(code)
    done = subprocess.run([sys.executable, "loop.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    run = RunFolder.open(tmp_path / "attached")
    assert run.status() == "finished"
    assert [row["step"] for row in run.steps()] == [0, 25, 50, 75, 100]
    monkeypatch.chdir(tmp_path)
    command = re.search(r"`fclm (scores attached [^`]*)`", section).group(1)
    shown = CliRunner().invoke(main, command.split())
    assert shown.exit_code == 0 and len(shown.output.splitlines()) == 2 + 5 * 4
    ari = {(row["step"], row["layer"]): row["ari"] for row in run.scores()
           if (row["space"], row["group"], row["labels"]) == ("hidden", "input_output", "task")}  # fmt: skip
    # the embedding of an input knows no task; the last block gathers it
    assert abs(ari[100, 0]) < 0.05 and ari[100, 3] > ari[0, 3] + 0.3
    for wanted in (["-o", "report.html"], ["--png", "figures"]):
        made = CliRunner().invoke(main, ["report", "attached", *wanted])
        assert made.exit_code == 0, made.output
    page = (tmp_path / "report.html").read_text()
    assert "input_output" in page and page.count("<script") > 0
    assert len(list((tmp_path / "figures").glob("*.png"))) > 0
