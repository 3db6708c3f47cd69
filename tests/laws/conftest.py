"""A whole run in under two seconds, for the promises that only whole runs can break."""

import hashlib
from pathlib import Path

import pytest

from fastcluster_lm.config import RunConfig, config_from_dict
from fastcluster_lm.engine import RunOutcome, start_run
from fastcluster_lm.errors import TrainingError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.training import Trainer

SMALL = {
    "name": "small",
    "tasks": {
        "n_tasks": 4,
        "n_distributions": 2,
        "n_inputs": 2,
        "n_outputs": 2,
        "instruction_length": 3,
        "alphabet_size": 12,
        "letters_per_position": 3,
    },
    "data": {"n_train_instructions": 12, "n_val_instructions": 6},
    "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "init_std": 0.1},
    "training": {
        "steps": 12,
        "batch_size": 16,
        "warmup_steps": 2,
        "eval_every": 4,
        "checkpoint_every": 5,
        "threads": 1,
    },
    "probe": {"every": 4, "full_every": 1, "n_points": 96, "map_points": 48, "worker": "off"},
    "scores": {"n_init": 2, "n_iter": 30, "warm_iter": 10, "perplexity": 5.0, "n_nulls": 5, "key_frame_every": 2},
}


@pytest.fixture
def small() -> RunConfig:
    """Give the config of a run of 12 steps."""
    return config_from_dict(SMALL)


def fingerprint(folder: RunFolder) -> str:
    """Hash the final weights, the optimiser and every loss of a run; timings are left out."""
    digest = hashlib.sha256()
    step = folder.latest_checkpoint()
    for name in ("model", "optimizer"):
        digest.update((folder.path / "checkpoints" / f"step-{step:06d}" / f"{name}.safetensors").read_bytes())
    for row in folder.steps():
        digest.update(repr((row["step"], row["loss"], row["grad_norm"], row["val_accuracy"])).encode())
    return digest.hexdigest()


@pytest.fixture
def diverges_after(monkeypatch):
    """Let training fail behind the step that is named."""

    def fail_after(step: int) -> None:
        advance = Trainer.advance

        def diverge(self):
            if self.step == step:
                raise TrainingError(f"step {step + 1}: expected a finite loss, got nan")
            return advance(self)

        monkeypatch.setattr(Trainer, "advance", diverge)

    return fail_after


def run_to_end(config: RunConfig, path: Path) -> RunOutcome:
    """Train a run from start to end."""
    outcome = start_run(config, path)
    assert outcome.finished
    return outcome
