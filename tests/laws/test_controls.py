"""Law 4: controls. What must score nothing scores nothing, and what must score 1 scores 1."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastcluster_lm import score_clusters
from tests.laws.conftest import run_to_end
from tests.tolerances import LAYER_ZERO_ARI


def blobs(rng: np.random.Generator, n_blocks: int, per_block: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw points in `n_blocks` clusters; block b belongs to label b // 2."""
    centres = rng.normal(size=(n_blocks, 16)) * 10
    block = np.repeat(np.arange(n_blocks), per_block)
    return centres[block] + spread * rng.normal(size=(len(block), 16)), block


def test_separated_blobs_score_one():
    rng = np.random.default_rng(0)
    X, label = blobs(rng, 6, 30, spread=0.1)
    for row in score_clusters(X, label, n_clusters=6):
        for name in ("ari", "ami", "f1", "f1_pairwise", "f1_bcubed", "knn_share", "knn_accuracy"):
            assert row[name] == pytest.approx(1.0, abs=1e-9), (row["space"], name)


def test_shuffled_points_score_nothing():
    rng = np.random.default_rng(1)
    X, label = blobs(rng, 6, 60, spread=0.1)
    for row in score_clusters(X, rng.permutation(label)):
        assert abs(row["ari"]) < 0.03 and abs(row["ami"]) < 0.03
        assert row["knn_share"] == pytest.approx(1 / 6, abs=0.05)


def test_reassigned_labels_lie_within_the_interval_of_their_null_and_true_ones_outside():
    rng = np.random.default_rng(2)
    # states that hold the distribution alone: tasks are no more together than chance
    X, block = blobs(rng, 12, 20, spread=0.5)
    null = []
    for _ in range(60):
        task = rng.permutation(np.arange(12) // 2)[block]
        null.append(score_clusters(X, task, spaces=("hidden",), n_init=1, n_nulls=1)[0]["ari"])
    low, high = np.quantile(null[:40], [0.025, 0.975])
    inside = np.mean([low <= value <= high for value in null[40:]])
    assert inside >= 0.8
    row = score_clusters(X, np.arange(12)[block] // 2, blocks=block, spaces=("hidden",), n_init=1)[0]
    assert low <= row["null_ari"] <= high
    # tasks that do gather: both distributions of a task in one place
    together = X - 0.98 * (X - X.reshape(6, 40, 16).mean(1)[block // 2])
    assert score_clusters(together, block // 2, spaces=("hidden",), n_init=5)[0]["ari"] > high + 0.2


def test_layer_zero_is_flat_at_zero_for_task_labels_and_its_own_labels_are_not(small, tmp_path):
    # few points make even independent labels differ from 0, so all there are
    small = replace(
        small, data=replace(small.data, n_val_instructions=12), probe=replace(small.probe, n_points=192, every=12)
    )
    rows = run_to_end(small, tmp_path / "run").folder.scores()
    flat = [row["ari"] for row in rows if row["layer"] == 0 and row["labels"] == "task" and row["space"] == "hidden"]
    assert len(flat) == 2 * 2 * 3  # steps, splits, groups
    assert max(abs(value) for value in flat if value is not None) <= LAYER_ZERO_ARI
    seen = [row["ari"] for row in rows if row["layer"] == 0 and row["labels"] == "input" and row["group"] == "all"]
    assert min(seen) > 0.9


def test_an_instruction_in_layer_zero_would_be_seen(small, tmp_path, monkeypatch):
    from fastcluster_lm.model import Evaluator

    honest = Evaluator.states_into

    def leaking(self, instances, buffer):
        honest(self, instances, buffer)
        buffer[0, :, 0] += 10.0 * instances.task.to(torch.float32)

    monkeypatch.setattr(Evaluator, "states_into", leaking)
    rows = run_to_end(small, tmp_path / "run").folder.scores()
    seen = [row["ari"] for row in rows if row["layer"] == 0 and row["labels"] == "task" and row["group"] == "input"]
    assert max(seen) > 0.5
