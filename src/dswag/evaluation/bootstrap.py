"""How much numbers would change with other test examples: the bootstrap (Efron 1979) over the test set."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from dswag.core.arrays import as_tensor
from dswag.core.choices import check_choice
from dswag.core.randomness import generator_for
from dswag.evaluation.alignment import aligned
from dswag.evaluation.reliability import Binning, Reliability, reliability

Method = Literal["percentile", "bca"]

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A number with its bootstrap interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class ReliabilityBand:
    """A reliability curve, with a bootstrap interval of confidence - accuracy for each bin."""

    curve: Reliability
    low: tuple[float, ...]
    high: tuple[float, ...]


def mean_interval(
    values: Float[Tensor, "n"],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    method: Method = "percentile",
) -> Interval:
    """The mean of a value per test example, with its interval.

    The values may be paired differences between two methods, such as those of `metrics.nll_of_each`: their interval
    takes account of how much the methods agree about which examples are hard.

    Raises:
        ValueError: no values, or an unknown method.
    """
    values = as_tensor(values).double()

    def mean(rows: Tensor) -> float:
        return float(values[rows].mean())

    return interval(mean, len(values), seed=seed, resamples=resamples, level=level, method=method)


def interval(
    statistic: Callable[[Int64[Tensor, "n"]], float],
    n: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    method: Method = "percentile",
) -> Interval:
    """A function of the rows of the test set, with its interval over rows drawn with replacement.

    "percentile" takes quantiles of the resampled values; "bca" (bias-corrected and accelerated, Efron 1987) shifts them
    by how far their median is from the estimate, and by how the spread changes with the statistic, which leaving out
    one row at a time shows: n evaluations more. It is closer to its level where the distribution is skewed.

    Raises:
        ValueError: no rows, or an unknown method.
    """
    check_choice("method", method, get_args(Method))
    replicates = torch.tensor([statistic(rows) for rows in _resampled(n, seed, resamples)], dtype=torch.float64)
    estimate = statistic(torch.arange(n))
    tail = (1 - level) / 2
    tails = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    if method == "bca":
        tails = _corrected(tails, replicates, estimate, statistic, n)
    low, high = replicates.quantile(tails).tolist()
    return Interval(estimate, low, high)


def reliability_band(
    probabilities: Float[Tensor, "n c"],
    targets: Int[Tensor, "n"],
    *,
    bins: int = 20,
    binning: Binning = "equal-mass",
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> ReliabilityBand:
    """The reliability curve with a pointwise band: for each bin, over resamples that are cut into bins anew.

    Raises:
        ValueError: bins that a resample leaves empty, as equal-width bins may be, and what `reliability` raises.
    """
    probabilities, targets = aligned(probabilities, targets)
    curve = reliability(probabilities, targets, bins=bins, binning=binning)
    gaps = []
    for rows in _resampled(len(targets), seed, resamples):
        gaps.append(reliability(probabilities[rows], targets[rows], bins=bins, binning=binning).gap)
        if len(gaps[-1]) != len(curve.gap):
            raise ValueError(f"a resample fills {len(gaps[-1])} of {len(curve.gap)} bins: use equal-mass or fewer bins")
    low, high = _percentiles(torch.tensor(gaps, dtype=torch.float64), level)
    return ReliabilityBand(curve, tuple(low.tolist()), tuple(high.tolist()))


def _resampled(n: int, seed: int, resamples: int) -> Iterator[Int64[Tensor, "n"]]:
    """So many rows drawn with return, as often as asked for; the same for every method compared with one seed."""
    if n < 1:
        raise ValueError("there is nothing to resample: give at least one example")
    generator = generator_for(seed)
    return (torch.randint(n, (n,), generator=generator) for _ in range(resamples))


def _corrected(
    tails: Float64[Tensor, "2"],
    replicates: Float64[Tensor, "r"],
    estimate: float,
    statistic: Callable[[Int64[Tensor, "n"]], float],
    n: int,
) -> Float64[Tensor, "2"]:
    """The tails that BCa takes instead (Efron 1987, equation 2.3); as they are where nothing varies."""
    below = ((replicates < estimate).sum() + (replicates == estimate).sum() / 2) / len(replicates)
    if not 0 < below < 1 or n < 2:
        return tails
    bias = torch.special.ndtri(below.double())
    rows = torch.arange(n)
    left_out = torch.tensor([statistic(torch.cat([rows[:i], rows[i + 1 :]])) for i in range(n)], dtype=torch.float64)
    pull = left_out.mean() - left_out
    spread = pull.square().sum() ** 1.5
    acceleration = pull.pow(3).sum() / (6 * spread) if spread > 0 else torch.zeros((), dtype=torch.float64)
    z = bias + torch.special.ndtri(tails)
    corrected: Tensor = torch.special.ndtr(bias + z / (1 - acceleration * z))
    return corrected.clamp(0, 1)


def _percentiles(replicates: Float64[Tensor, "r *b"], level: float) -> tuple[Tensor, Tensor]:
    tail = (1 - level) / 2
    low, high = replicates.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return low, high
