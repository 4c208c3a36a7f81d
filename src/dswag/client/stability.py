"""When training has diverged, by its loss alone."""


class DivergenceError(RuntimeError):
    """Phase 1 has diverged: the message names round, loss and learning rate, and what to do."""


def has_diverged(loss: float, first: float, growth: float) -> bool:
    """Whether a mean loss is NaN, or more than `growth` times both the first one and 1.

    Cross-entropies start near the logarithm of the number of classes, below 7 for a thousand, and rise past ten times
    that only where weights explode. The 1, ten nats, keeps what starts from trained weights, or on one class alone,
    with a loss near 0 from being called diverged by ordinary noise; a loss whose scale is far below 1 is judged late.
    """
    return not loss <= growth * max(first, 1.0)
