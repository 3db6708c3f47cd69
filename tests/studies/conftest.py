"""A finished run of a second or two, as studies find it in a cell."""

from pathlib import Path

import pytest

from fastcluster_lm.config import RunConfig, apply_settings, config_from_dict
from fastcluster_lm.studies.study import train_run
from tests.laws.conftest import SMALL

# three layers, and instructions of which all letters are one distribution's own
MINIATURE = (
    "tasks.n_tasks=4", "tasks.n_distributions=2", "tasks.style=constant", "tasks.alphabet_size=24",
    "model.n_layers=3", "training.steps=50", "training.eval_every=10", "training.learning_rate=5e-3",
    "probe.every=10", "scores.n_iter=5", "scores.warm_iter=2", "training.early_stopping_patience=2",
)  # fmt: skip


@pytest.fixture(scope="session")
def miniature() -> RunConfig:
    """Give the config of a run that learns something in two seconds."""
    return apply_settings(config_from_dict(SMALL), MINIATURE)


@pytest.fixture(scope="session")
def cell(miniature, tmp_path_factory) -> Path:
    """Train it once for all tests of studies."""
    folder = tmp_path_factory.mktemp("cell")
    train_run(miniature, folder, {})
    return folder
