"""Where training would have been stopped early; it marks the step and stops nothing."""

from dataclasses import dataclass

from fastcluster_lm.config import TrainingConfig


@dataclass
class EarlyStoppingMark:
    """Follow the validation accuracy; `step` is the best one's, once it has not been beaten for `patience` looks."""

    patience: int
    delta: float
    best: float = float("-inf")
    best_step: int = -1
    looks_since: int = 0
    step: int | None = None

    @classmethod
    def of(cls, config: TrainingConfig) -> "EarlyStoppingMark":
        """Take patience and delta from the config."""
        return cls(config.early_stopping_patience, config.early_stopping_delta)

    def look(self, step: int, accuracy: float) -> None:
        """Take note of one validation; the first mark stays, whatever follows."""
        if self.step is not None:
            return
        if accuracy > self.best + self.delta:
            self.best, self.best_step, self.looks_since = accuracy, step, 0
            return
        self.looks_since += 1
        if self.looks_since >= self.patience:
            self.step = self.best_step
