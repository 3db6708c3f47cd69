"""Runs the scripts that print what the kernels give and need, each in a process of its own; it judges nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_script(script: str, *arguments: str, **environment: str) -> list[dict]:
    """Run a script beside this file and read its JSON lines."""
    return [json.loads(line) for line in run_lines(script, *arguments, **environment)]


def run_lines(script: str, *arguments: str, **environment: str) -> list[str]:
    """Run a script beside this file and give its lines; interpreter and compiler do not share a process."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env={**inherited, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
