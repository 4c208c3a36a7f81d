"""Learning rates as data: one rate for each epoch; and when snapshots are taken."""

from collections.abc import Sequence

from dswag.config import Config


def exploration(config: Config) -> Sequence[tuple[tuple[float, ...], tuple[int, ...]]]:
    """For each exchange of phase 2 the rates of its epochs, and after which of them snapshots are taken.

    In a single exchange rates are those of α(t), as printed; over several they fall on a line to α₂ itself. All but the
    last give the weights at their end, for the average; the last gives the snapshots of phase 3.
    """
    total = config.explore.epochs
    epochs = total // config.explore_exchanges
    first, last = config.explore_learning_rates
    rates = (
        cyclic(first, last, total, total // config.explore.cycles) if epochs == total else linear(first, last, total)
    )
    parts = [rates[start : start + epochs] for start in range(0, total, epochs)]
    snapshots = cycle_snapshots(epochs, epochs // config.explore.cycles, config.explore.snapshots_per_cycle)
    return [*((part, (epochs,)) for part in parts[:-1]), (parts[-1], snapshots)]


def constant(rate: float, epochs: int) -> tuple[float, ...]:
    """The same rate for every epoch."""
    return (rate,) * epochs


def linear(first: float, last: float, epochs: int) -> tuple[float, ...]:
    """Rates from `first` in the first epoch to `last` in the last, evenly spaced."""
    if epochs == 1:
        return (first,)
    return tuple(first + (last - first) * t / (epochs - 1) for t in range(epochs))


def cyclic(first: float, last: float, epochs: int, period: int) -> tuple[float, ...]:
    """α(t) = (1 - t/c) α₁ + (t/c) α₂ with t counted from the start of each cycle of c = `period` epochs (Section 6).

    With `period` = `epochs` this is the paper's single ramp. α₂ itself is never reached, as printed.

    Raises:
        ValueError: the period does not divide the epochs: the last cycle would end early.
    """
    if period < 1 or epochs % period:
        raise ValueError(f"period must divide the number of epochs, got period {period} for {epochs} epochs")
    return tuple((1 - t / period) * first + t / period * last for t in (epoch % period for epoch in range(epochs)))


def cycle_snapshots(epochs: int, period: int, per_cycle: int) -> tuple[int, ...]:
    """After which finished epochs to take θ: `per_cycle` evenly spaced in each cycle, the last at its end.

    Raises:
        ValueError: a cycle has fewer epochs than snapshots.
    """
    if not 1 <= per_cycle <= period:
        raise ValueError(f"snapshots per cycle must be between 1 and the {period} epochs of a cycle, got {per_cycle}")
    offsets = [(number + 1) * period // per_cycle for number in range(per_cycle)]
    return tuple(start + offset for start in range(0, epochs, period) for offset in offsets)
