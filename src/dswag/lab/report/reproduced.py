"""Results of reproduced figures, in the groups and numbers in which they are drawn and written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Result = Mapping[str, Any]
"""One case as `dswag reproduce` writes it: case, config, measured and more."""


def by_value(results: Sequence[Result], *keys: str) -> dict[tuple[Any, ...], list[Result]]:
    """The results that have the same values of some settings, which are also looked for in the case; in their order."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        settings = {**result["config"], **result["case"]}
        groups.setdefault(tuple(settings[key] for key in keys), []).append(result)
    return groups


def by_skew(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each partition under its short name, from the least skew to the most."""
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=_skew):
        groups.setdefault(partition_label(result), []).append(result)
    return groups


def methods_of(results: Sequence[Result]) -> list[str]:
    """Every method that a result has."""
    return list(dict.fromkeys(method for result in results for method in result["measured"]))


def best_first(results: Sequence[Result]) -> list[str]:
    """Every method that a result has, the one with the lowest mean NLL first."""

    def mean(method: str) -> float:
        return float(np.mean([run["measured"][method]["nll"] for run in results if method in run["measured"]]))

    return sorted(methods_of(results), key=mean)


def spread(values: Sequence[Any]) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Mean and standard deviation over seeds, 0 of a single one."""
    numbers = np.asarray(values, dtype=float)
    return numbers.mean(0), numbers.std(0, ddof=1) if len(numbers) > 1 else np.zeros_like(numbers[0])


def partition_label(result: Result) -> str:
    """The partition of a result in a few words."""
    config = result["config"]
    kinds: Mapping[str, str] = {
        "iid": "IID",
        "dirichlet": f"Dirichlet {config.get('concentration')}",
        "shards": f"{config.get('shards_per_client')} shards",
    }
    return kinds.get(config["partition"], str(config["partition"]))


def _skew(result: Result) -> tuple[int, float]:
    """More for partitions whose clients differ more."""
    config = result["config"]
    order = {"iid": 0, "quantity": 1, "dirichlet": 2, "shards": 3}
    return order[config["partition"]], -(config.get("concentration") or config.get("shards_per_client") or 0)
