"""Causality: a loss term dissolves and tightens clusters, equal losses are matched, a planted shift carries."""

import pytest
import torch

from fastcluster_lm.config import apply_settings
from fastcluster_lm.studies.experiments import patching, regulariser
from fastcluster_lm.studies.experiments.regulariser import at_equal_loss, task_contrast, train_regularised
from fastcluster_lm.studies.reading import trained_rooms
from fastcluster_lm.studies.relabelled import shuffled_tasks
from fastcluster_lm.studies.states import group_means
from tests.studies.planted import judged


def blobs(spread: float, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    task = torch.arange(120) % 4
    given = torch.arange(120) // 4 % 5
    centers, inputs = torch.randn(4, 8, generator=draw), 5 * torch.randn(5, 8, generator=draw)
    X = spread * centers[task] + inputs[given] + 0.3 * torch.randn(120, 8, generator=draw)
    return X, task, given


def test_the_contrast_sees_tasks_whatever_the_input_and_nothing_else():
    X, task, given = blobs(1.0)
    assert task_contrast(X, task, given) > 0.8
    assert abs(float(task_contrast(blobs(0.0)[0], task, given))) < 0.1
    shuffled = task[torch.randperm(120, generator=torch.Generator().manual_seed(2))]
    assert abs(float(task_contrast(X, shuffled, given))) < 0.1
    assert float(task_contrast(X[:1], task[:1], given[:1])) == 0.0


def test_going_down_the_contrast_dissolves_clusters():
    X, task, given = blobs(1.0)
    X.requires_grad_()
    for _ in range(50):
        (gradient,) = torch.autograd.grad(task_contrast(X, task, given), X)
        X = (X - 20 * gradient).detach().requires_grad_()
    assert float(task_contrast(X.detach(), task, given)) < 0.2


def test_shuffled_tasks_move_whole_distributions_and_keep_their_numbers(splits):
    train, val = splits
    moved = shuffled_tasks(train, seed=1)
    for distribution in range(6):
        assert len(moved[train.distribution == distribution].unique()) == 1
    assert moved.bincount().tolist() == train.task.bincount().tolist()
    assert not torch.equal(moved, train.task)
    # a distribution has one label in both splits
    for distribution in range(6):
        assert (
            moved[train.distribution == distribution][0]
            == shuffled_tasks(val, seed=1)[val.distribution == distribution][0]
        )


def test_accuracies_are_compared_where_the_losses_are_equal():
    losses = {"fast": {10: 0.8, 20: 0.4, 30: 0.0}, "slow": {10: 1.0, 20: 0.8, 30: 0.6}}
    accuracy = {"fast": {10: 0.2, 20: 0.6, 30: 1.0}, "slow": {10: 0.1, 20: 0.2, 30: 0.3}}
    # both reach 0.6: the fast one half-way between its first two validations
    assert at_equal_loss(losses, accuracy) == {"fast": pytest.approx(0.4), "slow": 0.3}


def test_the_regulariser_is_judged_against_the_shuffled_one():
    planted = [(0.2 + 0.01 * seed, 0.05) for seed in range(5)]
    null = [(0.05 + 0.01 * (seed - 2), 0.05) for seed in range(5)]
    assert judged(regulariser.STUDY, planted).verdict == "supported"
    assert judged(regulariser.STUDY, null).verdict == "undecided"


def test_a_regularised_run_dissolves_what_a_tightened_one_gathers(miniature, tmp_path):
    config = apply_settings(miniature, ["training.batch_size=64", "probe.every=0"])
    found = {}
    for strength in (-1.0, 1.0):
        folder = tmp_path / str(strength)
        folder.mkdir()
        train_regularised(config, folder, {"strength": strength, "shuffled": 0})
        rooms = trained_rooms(folder)
        val = rooms.trainer.val
        states = patching.states_of(rooms.trainer.evaluator, val, n_layers=3, d_model=16)[1]
        found[strength] = float(task_contrast(states, val.task, val.input))
        assert (folder / "added.json").is_file()
    assert found[-1.0] > found[1.0] + 0.2


def test_a_move_is_the_difference_of_centroids_over_the_other_inputs():
    draw = torch.Generator().manual_seed(0)
    task, given = torch.arange(60) // 20, torch.arange(60) % 4
    shift = torch.randn(3, 6, generator=draw)
    X = shift[task] + torch.randn(4, 6, generator=draw)[given]
    own, toward = task, (task + 1) % 3
    planted = patching.moves(X, task, given, own, toward, given)
    torch.testing.assert_close(planted, shift[toward] - shift[own])
    # what one input alone holds does not move that input
    X[(given == 0) & (task == 1)] += 100.0
    alone = patching.moves(X, task, given, own, toward, given)
    torch.testing.assert_close(alone[given == 0], planted[given == 0], rtol=1e-3, atol=1e-3)
    assert (alone[given == 1] - planted[given == 1]).abs().max() > 1


def test_patching_follows_a_model_that_reads_one_direction_a_task(cell, monkeypatch):
    """At the last layer the answer is a linear reading, so a planted shift of all states decides it."""
    rooms = trained_rooms(cell)
    rows = patching.patched_rows(rooms)
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    outputs = rooms.vocabulary.encode(rooms.taskset.outputs)
    tables = torch.tensor([task.table for task in rooms.taskset.tasks])

    def toward_the_answer(X, task, given, source, target, at):
        readings = rooms.trainer.model.wte.weight[torch.tensor(outputs)]
        return 1000 * readings[tables[target, at]].detach()

    real = patching.moves
    monkeypatch.setattr(
        patching,
        "moves",
        lambda X, task, *rest: (toward_the_answer if torch.equal(task, rooms.trainer.train.task) else real)(
            X, task, *rest
        ),
    )
    planted = patching.patched_rows(rooms)
    assert planted[3]["follows"] > 0.95 and planted[3]["stays"] < 0.05
    pairs = [
        (patching.best(planted, "follows") - 0.01 * seed, patching.best(planted, "follows_shuffled"))
        for seed in range(5)
    ]
    assert pairs[0][0] > pairs[0][1]
    assert judged(patching.STUDY, [(0.30 + 0.01 * s, 0.1) for s in range(5)]).verdict == "supported"
    assert judged(patching.STUDY, [(0.10 + 0.01 * s, 0.1) for s in range(5)]).verdict == "not supported"


def test_group_means_of_all_points_are_the_mean():
    X = torch.randn(10, 3)
    torch.testing.assert_close(group_means(X, torch.zeros(10, dtype=torch.int64), 1)[0], X.mean(0))
