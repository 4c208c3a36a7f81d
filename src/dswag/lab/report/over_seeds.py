"""Numbers over seeds: told with their spread, and compared as far as chance allows."""

import math
from collections.abc import Mapping, Sequence

from dswag.lab.report.reproduced import spread

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""0.975 quantiles of Student's t with 1 to 9 degrees of freedom; more degrees are held to the last."""


def with_error(values: Sequence[float], digits: int = 4) -> str:
    """Mean ± standard deviation over seeds; without the latter where there is one seed."""
    mean, deviation = (float(value) for value in spread(values))
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def direction(first: Sequence[float], second: Sequence[float], least: float) -> int:
    """1 where the second values are higher, -1 where lower, 0 where they differ by less than chance may do.

    Chance is half the width of Welch's 95 % t interval for the difference over seeds, or `least` where that is more. A
    side with one seed is taken as it is: where both have one, `least` decides.
    """
    (mean, deviation), (other, other_deviation) = (tuple(map(float, spread(each))) for each in (first, second))
    variances = [(deviation**2 / len(first), len(first) - 1), (other_deviation**2 / len(second), len(second) - 1)]
    total = sum(variance for variance, _ in variances)
    chance = least
    if total:
        degrees = 1 / sum((variance / total) ** 2 / own for variance, own in variances if variance)
        chance = max(_quantile(degrees) * math.sqrt(total), least)
    return 0 if abs(other - mean) <= chance else int(math.copysign(1, other - mean))


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
    return mean, _quantile(len(differences) - 1) * deviation / math.sqrt(len(differences))


def _quantile(degrees: float) -> float:
    """Between whole degrees of freedom its logarithm is linear in their inverse, which is up to 3 % too much."""
    whole = int(degrees)
    if whole >= len(T_QUANTILES):
        return T_QUANTILES[-1]
    above, below = T_QUANTILES[whole - 1 : whole + 1]
    share = (1 / degrees - 1 / (whole + 1)) * whole * (whole + 1)
    return float(below * (above / below) ** share)
