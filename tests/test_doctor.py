"""`fclm doctor`: the facts, the self-test where there is a GPU and where there is none, and what it refuses."""

import json
import subprocess
from importlib import metadata

import pytest
import torch
from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.engine import doctor as examination
from fastcluster_lm.engine import self_test
from fastcluster_lm.errors import UsageError

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.laws.test_a" name="test_one[cuda]" time="1.5">
 <properties><property name="probe_ms" value="3.2"/></properties></testcase>
<testcase classname="tests.laws.test_a" name="test_two[cuda]" time="0.1"><skipped message="no CUDA device"/></testcase>
<testcase classname="tests.laws.test_a" name="test_three" time="0.2"><failure message="1 != 2">long</failure></testcase>
<testcase classname="tests.laws.test_b" name="test_four" time="0.2"><error message="no fixture">long</error></testcase>
</testsuite></testsuites>"""


def invoke(*arguments):
    return CliRunner().invoke(main, ["doctor", *arguments])


def stand_in(monkeypatch, junit, status):
    """Let pytest be a process that writes this record and ends with this status."""
    asked = []

    def run(command, **_):
        asked.append(command)
        if junit:
            path = next(part.partition("=")[2] for part in command if part.startswith("--junitxml="))
            with open(path, "w") as file:
                file.write(junit)
        return subprocess.CompletedProcess(command, status, "said this", "")

    monkeypatch.setattr(self_test.subprocess, "run", run)
    return asked


def test_the_facts_name_what_others_ask_for():
    rows = json.loads(invoke("--json").output)
    found = {(row["part"], row["name"]): row for row in rows}
    assert {"gpu", "package", "engine", "cpu", "system"} == {row["part"] for row in rows}
    assert found["package", "torch"]["value"] == metadata.version("torch")
    assert {("gpu", "driver"), ("gpu", "cuda"), ("cpu", "kernels"), ("cpu", "OMP_WAIT_POLICY")} <= set(found)
    for name in ("fused", "reference", "rapids"):
        assert found["engine", name]["value"] in ("usable", "not usable") and found["engine", name]["note"]
    if not torch.cuda.is_available():
        assert found["engine", "rapids"]["value"] == "not usable" and found["gpu", "gpu"]["value"].startswith("none")


def test_threads_that_spin_are_told_of(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    row = next(row for row in examination.examine() if row["name"] == "OMP_WAIT_POLICY")
    assert row["value"] == "ACTIVE" and "PASSIVE" in row["note"]


def test_the_home_folder_is_not_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    monkeypatch.setenv("FCLM_CACHE_DIR", str(tmp_path / "someone" / "kernels"))
    assert "someone" not in json.dumps(examination.examine())


def test_a_record_becomes_one_file(monkeypatch, tmp_path):
    asked = stand_in(monkeypatch, JUNIT, 1)
    done = invoke("--self-test", "-o", str(tmp_path / "report.json"))
    assert done.exit_code == 1 and "1 passed, 2 failed, 1 skipped" in done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counts"] == {"passed": 1, "failed": 2, "skipped": 1}
    assert [test["outcome"] for test in report["tests"]] == ["passed", "skipped", "failed", "failed"]
    assert report["tests"][0]["measured"] == {"probe_ms": "3.2"} and report["tests"][1]["message"] == "no CUDA device"
    assert {row["part"] for row in report["facts"]} >= {"gpu", "engine"} and report["version"]
    (command,) = asked
    assert command[command.index("-m", 3) + 1] == "gpu or rapids"


@pytest.mark.parametrize(("junit", "status"), [("", 4), ("<testsuites/>", 5), ("<testsuites/>", 0)])
def test_a_pytest_that_tests_nothing_is_a_failure(monkeypatch, junit, status):
    stand_in(monkeypatch, junit, status)
    done = invoke("--self-test", "--json")
    assert done.exit_code == 1 and "said this" in done.output


def test_a_pytest_that_hangs_is_a_failure(monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(self_test.subprocess, "run", run)
    assert self_test.run_self_test()["counts"] == {"passed": 0, "failed": 1, "skipped": 0}


def test_an_installed_package_has_no_tests(monkeypatch, tmp_path):
    monkeypatch.setattr(self_test, "__file__", str(tmp_path / "site" / "fastcluster_lm" / "engine" / "self_test.py"))
    with pytest.raises(UsageError, match="expected a checkout.*clone the repository"):
        self_test.run_self_test()
    assert invoke("--self-test").exit_code == 2
    assert "expected --self-test" in invoke("-o", "x.json").output


@pytest.mark.slow
def test_the_self_test_runs_here(tmp_path):
    done = invoke("--self-test", "-o", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.exit_code == 0, done.output
    names = [test["name"] for test in report["tests"] if test["outcome"] == "skipped"]
    if not torch.cuda.is_available():
        assert any("test_weights_and_generators" in name for name in names) and not report["counts"]["passed"]
