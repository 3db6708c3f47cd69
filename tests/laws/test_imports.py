"""Law 5: imports keep their direction, and neither the package nor its help loads torch or starts CUDA."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_every_contract_of_the_house_is_kept():
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import fastcluster_lm",
        "import fastcluster_lm.cli",
        "import fastcluster_lm.store, fastcluster_lm.views, fastcluster_lm.tasks, fastcluster_lm.config",
        "import sys, fastcluster_lm.cli as cli; cli.main(['train', '--help'], standalone_mode=False)",
    ],
)
def test_torch_is_not_loaded_before_it_is_used(code):
    assert run_python(f"{code}\nimport sys; print('torch' in sys.modules)") == "False"


def test_the_check_itself_sees_torch():
    assert run_python("from fastcluster_lm import kmeans\nimport sys; print('torch' in sys.modules)") == "True"


def test_scoring_starts_no_cuda():
    code = """
import numpy, torch
from fastcluster_lm import kmeans
kmeans(numpy.arange(12.0).reshape(6, 2), 2)
print(torch.cuda.is_initialized())"""
    assert run_python(code) == "False"


def test_a_bare_import_of_the_workshop_is_refused():
    code = """
try:
    import kernels
except ImportError as error:
    print(error)"""
    assert "fastcluster_lm.kernels" in run_python(code)


def test_threads_are_told_to_sleep_before_torch_starts_them():
    code = """
import os
os.environ.pop('OMP_WAIT_POLICY', None)
import fastcluster_lm
print(os.environ['OMP_WAIT_POLICY'])"""
    assert run_python(code) == "PASSIVE"
