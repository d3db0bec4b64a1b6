"""Averages with half the width of their 95 % intervals; the width is NaN where there is a single value."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

Z95 = 1.959963984540054
"""Half width of a 95 % interval in standard errors (normal approximation, as published)."""


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean; 0 where a value is 0 or less (S, from the means of ES, PS and NS)."""
    if min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)


def mean_interval(values: Sequence[float | int]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval; the width is NaN for a single value."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), math.nan
    return float(array.mean()), float(Z95 * array.std(ddof=1) / math.sqrt(len(array)))


def median_interval(values: Sequence[float | int]) -> tuple[float, float]:
    """Return the median and half the width of its 95 % interval by order statistics."""
    array = np.sort(np.asarray(values, dtype=np.float64))
    n = len(array)
    if n < 2:
        return float(np.median(array)), math.nan
    reach = Z95 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach))
    return float(np.median(array)), float(array[high] - array[low]) / 2


def harmonic_interval(columns: Float[np.ndarray, "case column"]) -> tuple[float, float]:
    """Return the harmonic mean of column means and the half width of its 95 % interval (delta method).

    The columns' covariance over cases counts: ES, PS and NS of one case are not independent.
    """
    means = columns.mean(axis=0)
    score = harmonic_mean([float(m) for m in means])
    if len(columns) < 2:
        return score, math.nan
    if score == 0:
        return 0.0, 0.0
    gradient = score**2 / (len(means) * means**2)
    variance = float(gradient @ np.cov(columns, rowvar=False) @ gradient) / len(columns)
    return score, Z95 * math.sqrt(max(0.0, variance))


def jackknife(
    function: Callable[[Float[np.ndarray, "case column"]], float], columns: Float[np.ndarray, "case column"]
) -> tuple[float, float]:
    """Return a function of all cases and half the width of its 95 % interval; the width is NaN for a single case."""
    n = len(columns)
    if n < 2:
        return function(columns), math.nan
    without = np.array([function(np.delete(columns, i, axis=0)) for i in range(n)])
    variance = (n - 1) / n * float(np.square(without - without.mean()).sum())
    return function(columns), Z95 * math.sqrt(variance)
