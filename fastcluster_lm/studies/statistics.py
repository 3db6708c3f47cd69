"""The statistics of studies, with the seed as the unit: intervals, corrections, correlations; it reads no run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fastcluster_lm.errors import DataError

LEVEL = 0.95
# refits behind the interval of a change point; its ends then move by about a hundredth of the level
N_REFITS = 200
# places by which one series may lead another
MOST_LAG = 4
# steps on either side that a training loss is averaged over
REACH = 12

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """The mean of one value a seed, its t-interval, and the two-sided p of "the mean is `against`"."""

    mean: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True)
class ChangePoint:
    """Where a series changes its level: the first place after the change, its interval, the levels around it."""

    at: int
    low: int
    high: int
    before: float
    after: float


def t_interval(values: Sequence[float], *, against: float = 0.0) -> Interval:
    """Give the mean of independent values with Student's interval.

    Errors: DataError for fewer than two values
    Source: scipy.stats.ttest_1samp; values that are all equal have an interval of no width, and p is then 0 or 1
    """
    if len(values) < 2:
        raise DataError(f"a t-interval needs two values or more, got {len(values)}; run more seeds")
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if np.ptp(sample) == 0:
        return Interval(mean, mean, mean, float(mean == against), len(sample))
    found = stats.ttest_1samp(sample, against)
    low, high = found.confidence_interval(LEVEL)
    return Interval(mean, float(low), float(high), float(found.pvalue), len(sample))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests, so that one false finding among all of them is as rare as asked.

    Source: Holm 1979: the i-th smallest of m is multiplied by m - i + 1, and none falls below one before it
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - place)))
        adjusted[int(index)] = largest
    return adjusted


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Give Spearman's rank correlation; None for fewer than three pairs, or where one side never moves."""
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(stats.spearmanr(x, y).statistic)


def correlation_of_changes(x: Sequence[float], y: Sequence[float], *, lag: int = 0) -> float | None:
    """Correlate the ranks of two series' first differences, so that a common trend alone counts for nothing.

    Units:  lag in places: above 0, x's changes are set beside y's changes that many places later (x leads)
    """
    dx, dy = np.diff(x), np.diff(y)
    if lag > 0:
        dx, dy = dx[:-lag], dy[lag:]
    elif lag < 0:
        dx, dy = dx[-lag:], dy[:lag]
    return rank_correlation(dx.tolist(), dy.tolist())


def lead(x: Sequence[float], y: Sequence[float]) -> int | None:
    """Find by how many places x's changes come before y's: the lag that correlates best, the smallest of equals."""
    found = {lag: correlation_of_changes(x, y, lag=lag) for lag in range(-MOST_LAG, MOST_LAG + 1)}
    known = {lag: value for lag, value in found.items() if value is not None}
    return max(known, key=lambda lag: (known[lag], -abs(lag))) if known else None


def partial_rank_correlation(x: Sequence[float], y: Sequence[float], given: Sequence[float]) -> float | None:
    """Correlate the ranks of x and y once what a straight line in the ranks of `given` explains is taken out.

    Source: the partial correlation of ranks, for one given variable; None where nothing is left to correlate
    """
    if len(x) < 4:
        return None
    ranks = [stats.rankdata(values) for values in (x, y, given)]
    base = np.stack([np.ones(len(x)), ranks[2]], 1)
    left = [values - base @ np.linalg.lstsq(base, values, rcond=None)[0] for values in ranks[:2]]
    if min(float(np.abs(part).max()) for part in left) < 1e-9 * len(x):
        return None
    return float(np.corrcoef(left[0], left[1])[0, 1])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Give the slope of the least-squares line through (x, y)."""
    return float(stats.linregress(x, y).slope)


def power_law(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float] | None:
    """Fit values = scale * sizes ** exponent on logarithms; None where a value is not above 0."""
    if min(values) <= 0:
        return None
    found = stats.linregress(np.log(sizes), np.log(values))
    return math.exp(found.intercept), float(found.slope)


def change_point(values: Sequence[float], *, seed: int = 0) -> ChangePoint:
    """Find where a series goes from one level to another, with an interval.

    Errors: DataError for fewer than four values
    Source: least squares over one change of the mean (Page 1955; Bai 1994); the interval is the percentile bootstrap
            of the residuals around the two levels
    """
    series = np.asarray(values, dtype=np.float64)
    if len(series) < 4:
        raise DataError(f"a change point needs four values or more, got {len(series)}; probe more often")
    at = _best_split(series)
    before, after = float(series[:at].mean()), float(series[at:].mean())
    level_line = np.where(np.arange(len(series)) < at, before, after)
    residuals = series - level_line
    rng = np.random.default_rng(seed)
    found = sorted(_best_split(level_line + rng.choice(residuals, len(series))) for _ in range(N_REFITS))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return ChangePoint(at, min(at, int(low)), max(at, int(high)), before, after)


def _best_split(series: _Floats) -> int:
    """Choose the split with the least squared distance to the means of its two sides, the first of equals."""
    n = len(series)
    sums, places = np.cumsum(series)[:-1], np.arange(1, n)
    # the part of the total sum of squares that the split explains
    explained = (sums / places - (series.sum() - sums) / (n - places)) ** 2 * places * (n - places)
    return int(np.argmax(explained)) + 1


def smoothed(loss: Mapping[int, float]) -> dict[int, float]:
    """Average the loss of each step with those of the REACH steps on either side, so that no curve lags behind."""
    steps = sorted(loss)
    found = {}
    for place, step in enumerate(steps):
        window = steps[max(0, place - REACH) : place + REACH + 1]
        found[step] = sum(loss[one] for one in window) / len(window)
    return found
