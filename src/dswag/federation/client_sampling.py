"""Which clients take part (Algorithm 1, lines 4 and 16), and how many of them may be malicious."""

import re

import numpy as np

from dswag.core.randomness import derive_seed


def checked_share(share: object) -> int | str:
    """Some of the clients: a number of them, a percentage such as "30%", or "all", which is the same as "100%".

    Raises:
        ValueError: anything else, a fraction such as 0.3 or 1.0 among it, which looks too much like a number.
    """
    if isinstance(share, int) and not isinstance(share, bool):
        return share
    if share == "all":
        return share
    if isinstance(share, str) and re.fullmatch(r"\d+(\.\d+)?%", share) and 0 < float(share[:-1]) <= 100:
        return share_of(float(share[:-1]) / 100)
    meant = share_of(share) if isinstance(share, float) and 0 < share < 1 else "30%"
    raise ValueError(f'must be a number of clients such as 3, a share such as "{meant}", or "all"')


def share_of(fraction: float) -> str:
    """A fraction of the clients as `checked_share` has it, such as "30%" for 0.3."""
    return "all" if fraction == 1 else f"{float(f'{100 * fraction:.12g}'):.12g}%"


def cohort_size(share: int | str, clients: int) -> int:
    """How many clients `share` means: a number counts them, a percentage is of all, rounded, at least one.

    Raises:
        ValueError: more clients than there are, or what `checked_share` refuses.
    """
    share = checked_share(share)
    if isinstance(share, int):
        if not 1 <= share <= clients:
            raise ValueError(f"the number of clients must be between 1 and {clients}, got {share}")
        return share
    return clients if share == "all" else max(1, round(float(share[:-1]) / 100 * clients))


def malicious_number(byzantine: int | str, clients: int, *, spare: int, rule: str) -> int:
    """How many of so many clients may be malicious (f), given as a number or as a percentage, rounded, at least one.

    Raises:
        ValueError: fewer than 2 f + `spare` clients, too few for the rule; or what `checked_share` refuses.
    """
    number = _malicious(byzantine, clients)
    if clients < 2 * number + spare:
        raise ValueError(
            f"{rule} needs at least {2 * number + spare} clients where {number} may be malicious, got {clients}: "
            "let more clients take part, or lower byzantine"
        )
    return number


def fewest_withstanding(byzantine: int | str, clients: int, *, spare: int) -> int:
    """The least number from which on all numbers below `clients` are enough for `malicious_number`; else `clients`."""
    fewest = clients
    while fewest > 1 and fewest - 1 >= 2 * _malicious(byzantine, fewest - 1) + spare:
        fewest -= 1
    return fewest


def sample_clients(share: int | str, clients: int, *, seed: int, phase: int, round: int) -> tuple[int, ...]:
    """Distinct clients in random order: a function of the run's seed, the phase and the round alone."""
    rng = np.random.default_rng(derive_seed(seed, phase, round))
    return tuple(rng.permutation(clients)[: cohort_size(share, clients)].tolist())


def _malicious(byzantine: int | str, clients: int) -> int:
    return byzantine if isinstance(byzantine, int) else cohort_size(byzantine, clients)
