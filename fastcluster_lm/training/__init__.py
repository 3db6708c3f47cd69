"""The training loop, its optimiser and its saved state; it has never heard of a probe."""

from fastcluster_lm.training.early_stopping import EarlyStoppingMark
from fastcluster_lm.training.loop import StepResult, Trainer

__all__ = ["EarlyStoppingMark", "StepResult", "Trainer"]
