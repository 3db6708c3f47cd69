"""Rows: whole, plain and finite, or refused by name."""

import numpy as np
import pytest

from fastcluster_lm.errors import DataError
from fastcluster_lm.store import SCORE_COLUMNS, STEP_COLUMNS, score_row, step_row
from fastcluster_lm.store.schemas import ScoreRow, StepRow


def test_columns_are_those_of_the_design():
    assert SCORE_COLUMNS[:6] == ("step", "layer", "split", "space", "group", "labels")
    assert SCORE_COLUMNS[SCORE_COLUMNS.index("null_knn_share") + 1] == "null_knn_share_across"
    assert len(SCORE_COLUMNS) == len(set(SCORE_COLUMNS)) == 35
    assert SCORE_COLUMNS[-3:] == ("null_kind", "base_rate", "position")
    assert STEP_COLUMNS == (
        "step", "loss", "lr", "grad_norm", "val_accuracy", "step_ms", "probe_ms", "probe_wait_ms",
        "tokens_per_s", "skipped",
    )  # fmt: skip


def test_absent_columns_are_none_and_order_is_fixed():
    row = score_row({"ari": np.float32(0.5), "step": np.int64(3), "warm": np.bool_(True)})
    assert tuple(row) == SCORE_COLUMNS
    assert {name: value for name, value in row.items() if value is not None} == {"step": 3, "ari": 0.5, "warm": True}
    assert [type(row[name]) for name in ("step", "ari", "warm")] == [int, float, bool]


def test_unknown_column_names_the_nearest():
    with pytest.raises(DataError, match="no column 'knn_shares'; did you mean 'knn_share'"):
        score_row({"step": 1, "knn_shares": 0.1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf"), np.float64("nan")])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(DataError, match="'loss'.*finite"):
        step_row({"step": 1, "loss": value})


@pytest.mark.parametrize("value", [np.zeros(2), [1.0], 1j, b"x"])
def test_values_that_are_not_plain_are_refused(value):
    with pytest.raises(DataError, match="'loss' of a step row is a"):
        step_row({"step": 1, "loss": value})


def test_every_column_that_is_written_is_checked_when_it_is_read():
    assert set(ScoreRow.__annotations__) == set(SCORE_COLUMNS)
    assert set(StepRow.__annotations__) == set(STEP_COLUMNS)
