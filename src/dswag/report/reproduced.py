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


def methods_of(results: Sequence[Result]) -> list[str]:
    """Every method that a result has."""
    return list(dict.fromkeys(method for result in results for method in result["measured"]))


def spread(values: Sequence[Any]) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Mean and standard deviation over seeds, 0 of a single one."""
    numbers = np.asarray(values, dtype=float)
    return numbers.mean(0), numbers.std(0, ddof=1) if len(numbers) > 1 else np.zeros_like(numbers[0])


def case_label(result: Result) -> str:
    """The partition of a result in a few words."""
    config = result["config"]
    kinds: Mapping[str, str] = {
        "iid": "IID",
        "dirichlet": f"Dirichlet {config.get('concentration')}",
        "shards": f"{config.get('shards_per_client')} shards",
    }
    return kinds.get(config["partition"], str(config["partition"]))
