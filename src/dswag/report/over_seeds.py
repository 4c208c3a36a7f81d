"""Numbers over seeds: told with their spread, and compared as far as chance allows."""

import math
from collections.abc import Mapping, Sequence

from dswag.report.reproduced import spread

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""0.975 quantiles of Student's t with 1 to 9 degrees of freedom; more degrees are held to the last."""


def with_error(values: Sequence[float], digits: int = 4) -> str:
    """Mean ± standard deviation over seeds; without the latter where there is one seed."""
    mean, deviation = (float(value) for value in spread(values))
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def direction(first: Sequence[float], second: Sequence[float], least: float) -> int:
    """1 where the second values are higher, -1 where lower, 0 where they differ by less than chance may do.

    Chance is two standard errors of the difference over seeds, or `least` where that is more or a side has one seed.
    """
    (mean, deviation), (other, other_deviation) = (tuple(map(float, spread(each))) for each in (first, second))
    error = math.sqrt(deviation**2 / len(first) + other_deviation**2 / len(second))
    return 0 if abs(other - mean) <= max(2 * error, least) else int(math.copysign(1, other - mean))


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> tuple[float, float | None]:
    """Mean difference over the seeds that both sides have, and half the width of its 95 % t interval.

    The half width is None with one seed.

    Raises:
        ValueError: no seed that both have.
    """
    differences = [value - reference[seed] for seed, value in values.items() if seed in reference]
    if not differences:
        raise ValueError(f"a paired difference needs a seed on both sides, got {[*values]} and {[*reference]}")
    mean, deviation = (float(value) for value in spread(differences))
    if len(differences) == 1:
        return mean, None
    quantile = T_QUANTILES[min(len(differences) - 1, len(T_QUANTILES)) - 1]
    return mean, quantile * deviation / math.sqrt(len(differences))
