"""The README's own loop and commands run as they stand, and show what it says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import start_run
from fastcluster_lm.store import RunFolder
from tests.laws.conftest import SMALL
from tests.probe.test_attached_resume import assert_same_run
from tests.tiny_language_model import N_BLOCKS, write_model

README = Path(__file__).parents[1] / "README.md"


def attached_section():
    """Give the section about attached loops, and the loop in it."""
    section = README.read_text().partition("## Attach it to your own loop\n")[2].partition("\n## ")[0]
    return section, re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)


def test_the_loop_with_the_probe_attached_runs_as_it_stands(tmp_path, monkeypatch):
    section, code = attached_section()
    # the import and the three lines that a reader adds, and no more
    added = [line for line in code.splitlines() if "probe" in line.lower()]
    assert len(added) == 4 and [re.search(r"# (\d)", line).group(1) for line in added[1:]] == ["1", "2", "3"]
    (tmp_path / "loop.py").write_text(code)
    done = subprocess.run([sys.executable, "loop.py"], cwd=tmp_path, capture_output=True, text=True)
    # what a probe takes is told where it is more than a twentieth, and that is the machine's
    told = r"the probe of step 0 took .* under 5%"
    said = [line for line in done.stderr.splitlines() if not re.fullmatch(told, line)]
    assert done.returncode == 0 and not said and done.stderr.count("\n") <= 1, done.stderr
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
    # killed at its 61st step and run again, it gives the same curves
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "killed.py").write_text(
        code.replace("    loss = ", "    import os; step == 60 and os._exit(9)\n    loss = ")
    )
    (cut / "loop.py").write_text(code)
    codes = [subprocess.run([sys.executable, name], cwd=cut, env={**os.environ, "PYTHONWARNINGS": "ignore"}).returncode
             for name in ("killed.py", "loop.py")]  # fmt: skip
    assert codes == [9, 0]
    assert_same_run(tmp_path / "attached", cut / "attached")


def test_the_alignment_after_that_loop_runs_as_it_stands(tmp_path):
    section = README.read_text().partition("## Make one task act as another\n")[2].partition("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    (tmp_path / "loop.py").write_text(attached_section()[1] + code)
    done = subprocess.run([sys.executable, "loop.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(.+): (.* of task 0, .*)$", done.stdout, re.MULTILINE))
    shares = {name: [float(share) for share in re.findall(r"\d\.\d\d", said)] for name, said in found.items()}
    assert list(shares) == ["as trained", "gate", "edit", "undone"] and found["undone"] == found["as trained"]
    # one of six inputs has the same answer in both tasks
    assert shares["as trained"][0] < 0.3 and min(min(shares[name]) for name in ("gate", "edit")) > 0.9


def test_models_that_exist_are_scored_by_the_commands_as_they_stand(tmp_path, monkeypatch):
    section = README.read_text().partition("## Score a model that exists\n")[2].partition("\n## ")[0]
    commands = re.search(r"```bash\n(.*?)```", section, re.DOTALL).group(1).splitlines()
    start_run(config_from_dict({**SMALL, "probe": {**SMALL["probe"], "every": 0}}), tmp_path / "RUN")
    write_model(tmp_path / "MODEL")
    (tmp_path / "asked.toml").write_text(re.search(r"```toml\n(.*?)```", section, re.DOTALL).group(1))
    monkeypatch.chdir(tmp_path)
    done = {line: CliRunner().invoke(main, shlex.split(line)[1:]) for line in commands}
    assert len(done) == 3 and all(one.exit_code == 0 for one in done.values()), done
    of_run, of_facts, of_mine = (one.stdout for one in done.values())
    assert {row["step"] for row in json.loads(of_run)} == {5, 10, 12}
    kept = RunFolder.open(tmp_path / "probed")
    assert kept.map_steps() == [0] and {row["layer"] for row in kept.scores()} == set(range(N_BLOCKS + 1))
    assert "map" in of_facts and " map " not in of_mine and "capital" not in of_mine
