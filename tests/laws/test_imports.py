"""Law 5: imports keep their direction, and neither the package nor its help loads torch or starts CUDA."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastcluster_lm.kernels import native

ROOT = Path(__file__).parents[2]
# what a run on a CPU does not use: torch's compilers, what shards models, what draws pages; each takes 0.2 to 2 s
UNUSED = (
    "torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "torch.distributed.tensor", "sympy", "triton",
    "scipy", "sklearn", "faiss", "matplotlib", "bokeh", "transformers",
)  # fmt: skip


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


@pytest.mark.skipif(not native.status()[0], reason=native.status()[1])
@pytest.mark.parametrize(
    "options",
    [
        ["--probe-every", "0", "-s", "model.dropout=0.1"],
        ["--probe-every", "2", "-s", "probe.worker=off"],
        ["--probe-every", "1", "--probe-source", "batch", "-s", "probe.full_every=2", "-s", "probe.worker=off"],
    ],
)
def test_a_run_on_a_cpu_loads_nothing_that_it_does_not_use(tmp_path, options):
    short = ["training.steps=3", "device=cpu", "scores.n_iter=20", "scores.n_nulls=2"]
    command = ["train", *options, *(part for text in short for part in ("-s", text)), "--out", str(tmp_path / "run")]
    code = f"""
from fastcluster_lm.cli import main
main({command}, standalone_mode=False)
import sys; print([name for name in {UNUSED} if name in sys.modules])"""
    assert run_python(code) == "[]"


def test_scoring_starts_no_cuda():
    code = """
import numpy, torch
from fastcluster_lm import kmeans
kmeans(numpy.arange(12.0).reshape(6, 2), 2)
print(torch.cuda.is_initialized())"""
    assert run_python(code) == "False"


# a notebook's kernel has "" first on its sys.path, as a program on standard input has
FROM_THE_ROOT = {"-c": ["-c", "{}"], "-m": ["-m", "timeit", "-n", "1", "-r", "1", "{}"], "notebook": ["-"]}


@pytest.mark.parametrize("way", FROM_THE_ROOT)
def test_transformers_loads_a_model_in_the_root_of_the_checkout(way, tmp_path):
    pytest.importorskip("transformers")
    code = f"""
import os, sys
assert os.getcwd() in map(os.path.abspath, sys.path[:2]), sys.path
from transformers import AutoModelForCausalLM, BloomPreTrainedModel
from tests.tiny_language_model import write_model
import fastcluster_lm.kernels
model = AutoModelForCausalLM.from_pretrained(write_model(__import__("pathlib").Path({str(tmp_path)!r})))
print(model.config.model_type, BloomPreTrainedModel.__name__)"""
    command = [sys.executable, *(part.format(code) for part in FROM_THE_ROOT[way])]
    done = subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT)
    assert "llama BloomPreTrainedModel" in done.stdout, done.stderr[-2000:]


def test_the_name_kernels_is_left_to_the_package_of_that_name(tmp_path):
    code = """
try:
    import kernels
    print(kernels.__file__)
except ModuleNotFoundError as error:
    print(error)"""
    # a folder that git emptied still holds caches, and is no module with a file
    assert run_python(code) in ("No module named 'kernels'", "None")
    installed = tmp_path / "kernels" / "__init__.py"
    installed.parent.mkdir()
    installed.touch()
    assert run_python(f"import sys; sys.path.append({str(tmp_path)!r}){code}") == str(installed)


def test_threads_are_told_to_wait_a_moment_and_then_sleep_before_torch_starts_them():
    code = """
import os
for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'):
    os.environ.pop(name, None)
import fastcluster_lm
print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])"""
    assert run_python(code) == "PASSIVE 20000"
