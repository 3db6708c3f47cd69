"""Summaries of hand-made rows, worked out by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from fastcluster_lm.views import accuracy_at, best_layer, failure_signatures, layer_table, settled_step


def score(step, layer=1, split="val", group="all", **values):
    return {"step": step, "layer": layer, "split": split, "space": "hidden", "group": group, "labels": "task"} | values


def accuracy(step, value):
    return {"step": step, "val_accuracy": value}


def signatures(scores, steps):
    found = failure_signatures(scores, steps, space="hidden", group="all", layer=1)
    return [(one["present"], None if one["figure"] is None else round(one["figure"], 6)) for one in found]


def test_views_never_load_torch():
    code = "import sys, fastcluster_lm.views; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 0.94, 0.96, 1.0], 30),
        ([0.0, 0.96, 0.5, 0.96, 1.0], 30),
        ([1.0, 1.0, 1.0, 1.0, 1.05], 0),
        ([None, 1.0, None, 1.0, None], 10),
        ([0.0, 0.1, 0.2, 0.3, 0.4], 40),
        ([-1.0, -0.97, -1.04, -1.0, -1.0], 0),
        ([0.1, 0.0, 0.0, 0.0, 0.0], 10),
        ([None] * 5, None),
    ],
)
def test_settled_is_the_first_probe_that_stays_near_the_end(values, expected):
    assert settled_step([0, 10, 20, 30, 40], values) == expected


def test_settled_tolerance_is_a_share_of_the_final_value():
    assert settled_step([0, 1], [0.8, 1.0], tolerance=0.2) == 0
    assert settled_step([0, 1], [0.79, 1.0], tolerance=0.2) == 1
    assert settled_step([], []) is None


def test_layer_table_takes_start_mark_end_of_the_rows_asked_for():
    scores = [
        score(30, ari=0.9, knn_share=0.6),
        score(0, ari=0.1),
        score(10, ari=0.5, null_ari=0.05),
        score(20, ari=0.88),
        score(0, layer=0, ari=0.0),
        score(30, split="train", ari=7.0),
        score(30, group="input", ari=8.0),
        score(30, ari=9.0) | {"labels": "output"},
        score(30, ari=10.0) | {"space": "map"},
    ]
    steps = [accuracy(5, 0.2), accuracy(10, None), accuracy(15, 0.7), accuracy(30, 0.9)]
    zero, one = layer_table(scores, steps, space="hidden", group="all", mark_step=19)
    assert (zero["layer"], zero["step_end"], zero["ari_end"], zero["ari_mark"]) == (0, 0, 0.0, 0.0)
    assert [one[f"step_{moment}"] for moment in ("start", "mark", "end")] == [0, 10, 30]
    assert [one[f"ari_{moment}"] for moment in ("start", "mark", "end", "settled")] == [0.1, 0.5, 0.9, 20]
    assert (one["null_ari_mark"], one["null_ari_end"], one["knn_share_end"]) == (0.05, None, 0.6)
    assert [one[f"val_accuracy_{moment}"] for moment in ("start", "mark", "end")] == [None, 0.2, 0.9]
    (train,) = layer_table(scores, steps, space="hidden", group="all", split="train")
    assert (train["ari_end"], train["ari_start"], train["step_mark"]) == (7.0, None, None)
    assert layer_table([], [], space="hidden", group="all") == []


def test_a_step_probe_is_no_end_to_compare_with():
    """Its points are fewer and it has no null; a loop of one set has it among the rows of val."""
    scores = [
        score(0, ari=0.1, null_ari=0.3, tier="full"),
        score(50, ari=0.9, null_ari=0.2, tier="full"),
        score(60, ari=0.2, null_ari=None, tier="step"),
    ]
    (row,) = layer_table(scores, [], space="hidden", group="all")
    assert (row["step_end"], row["ari_end"], row["null_ari_end"], row["ari_settled"]) == (50, 0.9, 0.2, 50)
    assert signatures(scores, [])[0] == (False, 0.7)


def test_best_layer_has_the_highest_validation_score_and_the_lower_index():
    rows = [score(1, 0, ari=0.1), score(1, 1, ari=0.7), score(1, 2, ari=0.7), score(1, 3, ari=None)]
    rows += [score(1, 4, ari=0.9, split="train"), score(1, 5, ari=0.9, group="input")]
    assert best_layer(rows, "hidden", "all")["layer"] == 1
    assert best_layer(rows, "map", "all") is None


def test_accuracy_is_the_last_one_known_at_a_step():
    steps = [accuracy(10, 0.5), accuracy(20, None), accuracy(30, 0.7)]
    assert [accuracy_at(steps, step) for step in (9, 10, 29, 30, 99)] == [None, 0.5, 0.5, 0.7, 0.7]


RISING = [score(step, ari=step / 50, knn_share=step / 40, null_ari=0.1) for step in (0, 10, 20, 30)]
LEARNING = [accuracy(step, step / 30) for step in (0, 10, 20, 30)]


def test_signatures_of_a_run_that_shows_the_phenomenon():
    train = [score(30, split="train", ari=0.7)]
    assert signatures(RISING + train, LEARNING) == [(False, 0.5), (False, 1.0), (False, 0.1)]


def test_each_signature_is_seen_by_its_own_rule():
    flat = [score(step, ari=0.4, knn_share=-step, null_ari=0.35) for step in (0, 10, 20, 30)]
    train = [score(30, split="train", ari=0.55)]
    assert signatures(flat + train, LEARNING) == [(True, 0.0), (True, -1.0), (True, 0.15)]


def test_null_counts_where_it_is_above_step_0():
    rows = [score(0, ari=0.0), score(10, ari=0.3, null_ari=0.22)]
    assert signatures(rows, [])[0] == (True, 0.08)
    rows[1]["null_ari"] = None
    assert signatures(rows, [])[0] == (False, 0.3)


def test_rank_correlation_has_the_value_worked_by_hand():
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15)
    rows = [score(step, knn_share=share) for step, share in ((0, 0.2), (10, 0.1), (20, 0.4), (30, 0.3))]
    assert signatures(rows, LEARNING)[1] == (False, 0.6)


def test_rank_correlation_is_that_of_scipy_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        shares, accuracies = rng.integers(0, 4, (2, 12)) / 4
        rows = [score(step, knn_share=float(share)) for step, share in enumerate(shares)]
        steps = [accuracy(step, float(value)) for step, value in enumerate(accuracies)]
        assert signatures(rows, steps)[1][1] == pytest.approx(spearmanr(shares, accuracies).statistic, abs=1e-6)


def test_too_few_probes_or_a_constant_accuracy_decide_nothing():
    assert signatures(RISING[:3], LEARNING)[1] == (None, None)
    assert signatures(RISING, [accuracy(0, 1.0)])[1] == (None, None)
    assert signatures(RISING, [])[1] == (None, None)
    assert signatures(RISING[:1], LEARNING) == [(None, None)] * 3
    assert signatures([], []) == [(None, None)] * 3
    still = [row | {"knn_share": 0.5} for row in RISING]
    assert signatures(still, LEARNING)[1] == (True, 0.0)


def test_rules_are_said_in_words():
    for one in failure_signatures([], [], space="hidden", group="all", layer=1):
        assert one["rule"].startswith("yes if ") and any(figure in one["rule"] for figure in ("0.1", "0.5"))
