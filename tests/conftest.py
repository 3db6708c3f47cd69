"""What every test shares: shapes checked at the public boundaries, one thread, small task sets."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from jaxtyping import install_import_hook

import tests.shape_checks  # noqa: F401

# not the model: the check would stand in the compiled graph
_CHECKED = [f"fastcluster_lm.{room}" for room in ("data", "training", "probe")]
# what verbs hand on to, but not the verbs themselves: these refuse in words of their own what does not fit
_CHECKED += [
    f"fastcluster_lm.scores.{name}"
    for name in ["agreement", "batches", "contingency", "nulls", "points", "rows", "spaces"]
]
install_import_hook(_CHECKED, "tests.shape_checks.checked")

import pytest  # noqa: E402
import torch  # noqa: E402

from fastcluster_lm.config import ModelConfig  # noqa: E402
from fastcluster_lm.data import Instances, Vocabulary, build_instances, split_instructions  # noqa: E402
from fastcluster_lm.model import GPT2  # noqa: E402
from fastcluster_lm.tasks import Task, TaskSet  # noqa: E402


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none, so that a self-test on a CPU names it and fails nothing."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small problems: a second thread only makes timings and memory uneven."""
    torch.set_num_threads(1)


@pytest.fixture
def taskset() -> TaskSet:
    """Give three tasks of two distributions each, three inputs and two outputs, four-letter instructions."""
    tasks = (
        Task("one", ("[ab]{4}", "a[cd]{3}"), (0, 1, 0)),
        Task("two", ("[ef]{4}", "b[gh]{3}"), (1, 0, 0)),
        Task("three", ("[ij]{4}", "c[kl]{3}"), (0, 0, 1)),
    )
    return TaskSet(inputs=("x", "y", "z"), outputs=("0", "1"), lengths=(4,), tasks=tasks)


@pytest.fixture
def vocabulary(taskset: TaskSet) -> Vocabulary:
    """Give the task set's vocabulary."""
    return Vocabulary.of(taskset)


@pytest.fixture
def splits(taskset: TaskSet, vocabulary: Vocabulary) -> tuple[Instances, Instances]:
    """Give training and validation instances on the CPU."""
    chosen = split_instructions(taskset, n_train=5, n_val=3, seed=0)
    cpu = torch.device("cpu")
    return build_instances(taskset, chosen.train, vocabulary, cpu), build_instances(
        taskset, chosen.val, vocabulary, cpu
    )


@pytest.fixture
def model(vocabulary: Vocabulary) -> GPT2:
    """Give a two-layer model that is not trained."""
    config = ModelConfig(d_model=16, n_layers=2, n_heads=2, init_std=0.1)
    return GPT2(config, len(vocabulary), 5, torch.Generator().manual_seed(0))
