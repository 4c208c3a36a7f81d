"""Which clients take part (Algorithm 1, lines 4 and 16), and how many of them may be malicious."""

import numpy as np

from dswag.core.randomness import derive_seed


def cohort_size(share: int | float, clients: int) -> int:
    """How many clients `share` means: a whole number counts them, a fraction in (0, 1] is of all, at least one.

    Raises:
        ValueError: more clients than there are, or a fraction outside (0, 1].
    """
    if isinstance(share, int):
        if not 1 <= share <= clients:
            raise ValueError(f"the number of clients must be between 1 and {clients}, got {share}")
        return share
    if not 0 < share <= 1:
        raise ValueError(f"the fraction of clients must be in (0, 1], got {share}")
    return max(1, round(share * clients))


def malicious_number(byzantine: int | float, clients: int, *, spare: int, rule: str) -> int:
    """How many of so many clients may be malicious (f), given as a number or as a fraction, rounded, at least one.

    Raises:
        ValueError: fewer than 2 f + `spare` clients, too few for the rule.
    """
    number = _malicious(byzantine, clients)
    if clients < 2 * number + spare:
        raise ValueError(
            f"{rule} needs at least {2 * number + spare} clients where {number} may be malicious, got {clients}: "
            "let more clients take part, or lower byzantine"
        )
    return number


def fewest_withstanding(byzantine: int | float, clients: int, *, spare: int) -> int:
    """The least number from which on all numbers below `clients` are enough for `malicious_number`; else `clients`."""
    fewest = clients
    while fewest > 1 and fewest - 1 >= 2 * _malicious(byzantine, fewest - 1) + spare:
        fewest -= 1
    return fewest


def sample_clients(share: int | float, clients: int, *, seed: int, phase: int, round: int) -> tuple[int, ...]:
    """Distinct clients in random order: a function of the run's seed, the phase and the round alone."""
    rng = np.random.default_rng(derive_seed(seed, phase, round))
    return tuple(rng.permutation(clients)[: cohort_size(share, clients)].tolist())


def _malicious(byzantine: int | float, clients: int) -> int:
    return byzantine if isinstance(byzantine, int) else cohort_size(byzantine, clients)
