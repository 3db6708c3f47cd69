"""Statistics of studies on data with known answers: a planted effect is found, a planted null is not."""

import numpy as np
import pytest
from scipy import stats

from fastcluster_lm.errors import DataError
from fastcluster_lm.studies.statistics import (
    change_point,
    correlation_of_changes,
    holm,
    lead,
    partial_rank_correlation,
    power_law,
    rank_correlation,
    slope,
    t_interval,
)


def test_the_t_interval_is_the_textbooks():
    # 5 values of mean 3 and standard deviation sqrt(2.5); t(0.975, 4) = 2.776445
    found = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * np.sqrt(2.5 / 5)
    assert (found.mean, found.n) == (3.0, 5)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert found.p == pytest.approx(2 * stats.t.sf(3 / np.sqrt(0.5), 4))


def test_the_t_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [t.low <= 0.3 <= t.high for t in (t_interval(rng.normal(0.3, 1.0, 5).tolist()) for _ in range(1500))]
    # 1500 draws at 0.95 have a standard error of 0.0056
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_equal_values_and_too_few():
    assert t_interval([0.5, 0.5]).p == 0.0
    assert t_interval([0.5, 0.5], against=0.5).p == 1.0
    with pytest.raises(DataError, match="two values or more, got 1"):
        t_interval([1.0])


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holms_correction_keeps_false_findings_rare_where_all_are_null():
    rng = np.random.default_rng(1)
    false = [min(holm(rng.uniform(size=15).tolist())) < 0.05 for _ in range(1000)]
    assert np.mean(false) == pytest.approx(0.05, abs=0.02)


def test_a_common_trend_is_no_correlation_of_changes_and_a_common_change_is():
    rng = np.random.default_rng(2)
    trend = np.linspace(0, 5, 200)
    apart = [trend + rng.normal(0, 0.1, 200) for _ in range(2)]
    assert rank_correlation(*map(list, apart)) > 0.9
    assert abs(correlation_of_changes(*map(list, apart))) < 0.2
    steps = np.cumsum(rng.normal(size=200))
    assert correlation_of_changes(list(steps), list(3 * steps + 2)) == pytest.approx(1.0)


def test_what_never_moves_correlates_with_nothing():
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, 2], [1, 2]) is None


def test_a_planted_lead_is_found():
    rng = np.random.default_rng(3)
    x = np.cumsum(rng.normal(size=60))
    y = np.concatenate([[0, 0, 0], x[:-3]])
    assert lead(list(x), list(y)) == 3
    assert lead(list(y), list(x)) == -3
    assert lead([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) is None


def test_partial_correlation_takes_out_what_both_share():
    rng = np.random.default_rng(4)
    given = rng.normal(size=2000)
    x, y = given + rng.normal(size=2000), given + rng.normal(size=2000)
    assert rank_correlation(list(x), list(y)) > 0.4
    assert abs(partial_rank_correlation(list(x), list(y), list(given))) < 0.06
    together = rng.normal(size=2000)
    assert partial_rank_correlation(list(given + together), list(given + together + 1e-3 * y), list(given)) > 0.9
    assert partial_rank_correlation([1, 2, 3, 4], [2, 3, 4, 5], [1, 2, 3, 4]) is None


def test_a_slope_and_a_power_law_by_hand():
    assert slope([0, 1, 2], [1, 3, 5]) == pytest.approx(2.0)
    assert power_law([1, 10, 100], [2, 20, 200]) == pytest.approx((2.0, 1.0))
    assert power_law([1, 10], [0.0, 1.0]) is None


def test_a_planted_change_is_found_where_it_is():
    found = change_point([0.0] * 7 + [1.0] * 5)
    assert (found.at, found.low, found.high, found.before, found.after) == (7, 7, 7, 0.0, 1.0)
    with pytest.raises(DataError, match="four values"):
        change_point([0.0, 1.0, 1.0])


def test_the_interval_of_a_change_covers_it():
    rng = np.random.default_rng(5)
    covered, width = [], []
    for seed in range(150):
        found = change_point([*rng.normal(0, 1, 15), *rng.normal(2, 1, 15)], seed=seed)
        covered.append(found.low <= 15 <= found.high)
        width.append(found.high - found.low)
    assert np.mean(covered) >= 0.9
    # and it says something: a series of 30 has 29 places for it
    assert np.median(width) < 10
