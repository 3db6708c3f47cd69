"""Runs the tests marked gpu or rapids on the machine at hand and gathers what came of them; it tests nothing itself."""

import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fastcluster_lm.device import package_versions
from fastcluster_lm.engine.doctor import examine
from fastcluster_lm.errors import UsageError

# a test that hangs on a GPU must not hang the report
LIMIT_S = 900
MARKED = "gpu or rapids"
CLONE = "clone the repository and install it with pip install -e '.[dev]'"


def run_self_test() -> dict[str, Any]:
    """Run the tests of this checkout that are marked gpu or rapids, in a process of their own.

    Gives {version, facts, seconds, counts, tests}, a test being {name, outcome, seconds, message, measured}; outcome is
    passed, failed or skipped. Plain values only, for one JSON file
    Errors: UsageError where there are no tests, since a wheel holds none, or no pytest
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "tests" / "conftest.py").exists() or not (root / "pyproject.toml").exists():
        raise UsageError(f"--self-test: expected a checkout, the installed package holds no tests; {CLONE}")
    if find_spec("pytest") is None:
        raise UsageError(f"--self-test: expected pytest, which is not installed; {CLONE}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "tests.xml"
        # the last -m wins over the one in pyproject.toml
        command = [sys.executable, "-m", "pytest", "-q", "-m", MARKED, "-p", "no:cacheprovider"]
        command.append(f"--junitxml={record}")
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=LIMIT_S)
            said, code = done.stdout + done.stderr, done.returncode
        except subprocess.TimeoutExpired as error:
            said, code = f"{error.stdout!r}", -1
        tests = read_record(record) if record.exists() else []
    # 5: no test carries the marker; anything beside 0 and 1 is no verdict on a test
    if code not in (0, 1) or not tests:
        message = f"pytest ended with status {code} within {LIMIT_S} s: {said[-2000:]}"
        tests.append({"name": "pytest", "outcome": "failed", "seconds": 0.0, "message": message, "measured": {}})
    counts = {kind: sum(test["outcome"] == kind for test in tests) for kind in ("passed", "failed", "skipped")}
    return {
        "version": package_versions(("fastcluster-lm",)).get("fastcluster-lm"),
        "facts": examine(),
        "seconds": time.perf_counter() - started,
        "counts": counts,
        "tests": tests,
    }


def read_record(path: Path) -> list[dict[str, Any]]:
    """Read the tests of a JUnit file as pytest writes it."""
    tests = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if problem is None else "skipped" if problem.tag == "skipped" else "failed"
        module = case.get("classname", "").removeprefix("tests.")
        tests.append(
            {
                "name": f"{module}.{case.get('name', '')}".lstrip("."),
                "outcome": outcome,
                "seconds": float(case.get("time", 0)),
                "message": "" if problem is None else problem.get("message", ""),
                "measured": {entry.get("name", ""): entry.get("value", "") for entry in case.iter("property")},
            }
        )
    return tests
