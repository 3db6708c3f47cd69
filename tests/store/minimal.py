"""The least that a run.toml must hold; no run that could be trained."""

from typing import Any


def minimal(**more: Any) -> dict[str, Any]:
    """Give the contents of a run.toml, with more keys at the top."""
    return {
        "name": "tiny",
        "seed": 3,
        "model": {"n_layers": 2, "d_model": 4},
        "data": {"n_train_instructions": 1, "n_val_instructions": 1},
        "training": {"steps": 5, "learning_rate": 0.004, "betas": [0.9, 0.98]},
        "report": {"space": "hidden", "group": "all", "layer": -1},
        "resolved": {"engine": "fused", "device": "cpu", "threads": 1},
        "taskset": {
            "inputs": ["a"],
            "outputs": ["x"],
            "lengths": [1],
            "tasks": [{"name": "one", "expressions": ["b"], "table": {"a": "x"}}],
        },
        **more,
    }
