"""How the examples of one data set are spread over clients.

A partition is a function (targets [n], clients, seed, *, its own settings, min_examples) -> one tensor of indices per
client; it sees the targets because most partitions skew them. To add one, write the function and add it to
`PARTITIONS`. For a partition that you already have, use `by_column` or `checked`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, signature
from numbers import Integral
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Generator, Tensor

from dswag.core.choices import check_choice

Partition = Callable[..., list[Tensor]]
"""Maps (targets [n], clients, seed) and settings to `clients` disjoint, non-empty index tensors on the CPU."""

Targets = Shaped[Tensor, "n"] | np.ndarray[Any, Any] | Sequence[float]
"""One of each example, as a data set has them: a tensor, an array or a list."""

DRAWS = 100
"""How often `dirichlet` draws before it gives up; accepting still rarer draws would change the distribution."""


def iid(
    targets: Shaped[Tensor, "n ..."], clients: int, seed: int, *, min_examples: int = 1
) -> list[Int64[Tensor, "_"]]:
    """Indices per client: a random split of all the examples into parts whose sizes differ by at most 1.

    Raises:
        ValueError: fewer than one client, or too few examples for so many.
    """
    _check_numbers(len(targets), clients, min_examples)
    order = torch.randperm(len(targets), generator=Generator().manual_seed(seed), device="cpu")
    return list(order.tensor_split(clients))


def dirichlet(
    targets: Targets | Sequence[str],
    clients: int,
    seed: int,
    *,
    concentration: float | Sequence[float] | np.ndarray[Any, Any] | Mapping[Any, float],
    min_examples: int = 1,
) -> list[Int64[Tensor, "_"]]:
    """Indices per client with label skew: each class is cut into shares ~ Dirichlet(α, ..., α), one for each client.

    Yurochkin et al. 2019. All classes are drawn again until every client has `min_examples`, `DRAWS` times
    at most. A count differs from its share of the class by less than 1.

    Args:
        targets: the class of each example, a whole number or a text.
        clients: how many.
        seed: of all random choices.
        concentration: α; as it grows every client gets equal shares, as it falls each class goes to one client. A
            sequence is of one α for each client, which get shares in these proportions on average; or, where there are
            as many as classes and not as many as clients, for each class in sorted order. A mapping has one for each
            class by its name.
        min_examples: the fewest that a client may have.

    Raises:
        ValueError: impossible numbers, targets that are no classes, or no draw with enough examples for every client.
    """
    _check_numbers(len(targets), clients, min_examples)
    labels = targets.cpu().numpy() if isinstance(targets, Tensor) else np.asarray(targets)
    if labels.ndim != 1 or labels.dtype.kind not in "iubUSO":
        raise ValueError(
            f"dirichlet needs one class for each example, got {labels.dtype} of shape {list(labels.shape)}: "
            "use shards, quantity or iid"
        )
    rng = np.random.default_rng(seed)
    names, sizes = np.unique(labels, return_counts=True)
    alphas = _concentrations(concentration, names.tolist(), clients)
    classes = np.split(labels.argsort(kind="stable"), sizes.cumsum()[:-1])
    least = 0
    for _ in range(DRAWS):
        pieces = [
            np.split(rng.permutation(rows), _cuts(rng, alpha, clients, len(rows)))
            for rows, alpha in zip(classes, alphas, strict=True)
        ]
        parts = [np.concatenate(of_client) for of_client in zip(*pieces, strict=True)]
        fewest = min(map(len, parts))
        if fewest >= min_examples:
            return list(map(torch.from_numpy, parts))
        least = max(least, fewest)
    raise ValueError(
        f"every client needs {_at_least(min_examples)}, but the best of {DRAWS} draws with concentration "
        f"{concentration} leaves one of {clients} clients with {least}: raise concentration, or lower clients or "
        "min_examples"
    )


def shards(
    targets: Targets, clients: int, seed: int, *, shards_per_client: int, min_examples: int = 1
) -> list[Int64[Tensor, "_"]]:
    """Indices per client with few labels each: the data sorted by target, cut into equal shards, dealt at random.

    McMahan et al. 2016, with two shards per client. A client has at most `shards_per_client` labels where
    shards do not cross from label to label, and twice as many where no label has fewer examples than a shard.

    Raises:
        ValueError: fewer examples than shards, or than `min_examples` for each client.
    """
    _check_numbers(len(targets), clients, min_examples)
    targets = torch.as_tensor(targets)
    if targets.dim() != 1:
        raise ValueError(f"shards needs one target for each example, got shape {list(targets.shape)}: use iid")
    if shards_per_client < 1:
        raise ValueError(f"shards_per_client must be at least 1, got {shards_per_client}")
    size = len(targets) // (clients * shards_per_client)
    if size * shards_per_client < min_examples:
        raise ValueError(
            f"every client needs {_at_least(min_examples)}, got {len(targets)} examples for {clients} clients "
            f"of {shards_per_client} shards, {size} or more in each: lower clients, shards_per_client or min_examples"
        )
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(targets)))
    sorted_order = order[targets.cpu()[order].argsort(stable=True)]
    pieces = sorted_order.tensor_split(clients * shards_per_client)
    dealt = rng.permutation(len(pieces)).reshape(clients, shards_per_client)
    return [torch.cat([pieces[number] for number in of_client]) for of_client in dealt]


def quantity(
    targets: Shaped[Tensor, "n ..."], clients: int, seed: int, *, concentration: float, min_examples: int = 1
) -> list[Int64[Tensor, "_"]]:
    """Indices per client with skewed sizes: `min_examples` for each, the rest in shares ~ Dirichlet(α, ..., α).

    Li et al. 2022, who draw again instead until all have enough; which examples go where is random.

    Raises:
        ValueError: impossible numbers, or fewer examples than `min_examples` for each client.
    """
    _check_numbers(len(targets), clients, min_examples)
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(targets)))
    cuts = _cuts(rng, concentration, clients, len(targets) - clients * min_examples)
    return list(order.tensor_split((cuts + min_examples * np.arange(1, clients)).tolist()))


PARTITIONS: Mapping[str, Partition] = MappingProxyType(
    {"iid": iid, "dirichlet": dirichlet, "shards": shards, "quantity": quantity}
)
"""Every partition by its name in a config."""


def partition(
    name: str, targets: Shaped[Tensor, "n ..."], clients: int, seed: int, **settings: Any
) -> list[Int64[Tensor, "_"]]:
    """Indices per client, by the partition of that name with its settings.

    Raises:
        ValueError: a name that is not in `PARTITIONS`, or what the partition refuses.
    """
    check_choice("partition", name, PARTITIONS)
    return PARTITIONS[name](targets, clients, seed, **settings)


def needed_settings(name: str) -> tuple[str, ...]:
    """The settings without which the partition of that name does not work: its keywords that have no default."""
    parameters = signature(PARTITIONS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.default is Parameter.empty)


def by_column(column: Iterable[Any]) -> dict[str | int, Int64[Tensor, "_"]]:
    """Indices of each client's examples, by the client's name and in the sorted order of names, from a column of names.

    Args:
        column: the client's name for each example, a string or integer: a list, array, tensor or data frame column.

    Raises:
        ValueError: no example, one without a name, or names that are neither all strings nor all whole numbers.
    """
    rows: dict[str | int, list[int]] = {}
    for row, name in enumerate(column.tolist() if hasattr(column, "tolist") else column):
        rows.setdefault(_client_name(row, name), []).append(row)
    if not rows:
        raise ValueError("the column is empty: it must name the client of each example")
    if len({type(name) for name in rows}) > 1:
        text, number = (next(name for name in rows if isinstance(name, kind)) for kind in (str, int))
        raise ValueError(
            f"names of clients must be all strings or all whole numbers, got {text!r} and {number}: convert the column"
        )
    return {name: torch.tensor(rows[name]) for name in sorted(rows)}


def checked(parts: Sequence[Any], num_examples: int) -> list[Int64[Tensor, "_"]]:
    """Your own partition as index tensors, once it is certain that they are disjoint, in range and not empty.

    Examples may be left out.

    Args:
        parts: the indices of each client's examples: lists, arrays or tensors of whole numbers.
        num_examples: of the whole data set.

    Raises:
        ValueError: no client, or one that breaks a rule, named with the example.
    """
    if not len(parts):
        raise ValueError("a partition needs at least one client, got none")
    owner = torch.full((num_examples,), -1)
    rows_of_clients = []
    for client, part in enumerate(parts):
        rows = _indices(client, part)
        if (outside := rows[(rows < 0) | (rows >= num_examples)]).numel():
            raise ValueError(
                f"client {client} has example {int(outside[0])}, expected 0 to {num_examples - 1} "
                f"for {num_examples} examples"
            )
        if (taken := rows[owner[rows] >= 0]).numel():
            raise ValueError(
                f"example {int(taken[0])} is in clients {int(owner[taken[0]])} and {client}: "
                "an example belongs to one client"
            )
        ordered = rows.sort().values
        if (again := ordered[1:][ordered[1:] == ordered[:-1]]).numel():
            raise ValueError(f"client {client} has example {int(again[0])} more than once")
        owner[rows] = client
        rows_of_clients.append(rows)
    return rows_of_clients


def _client_name(row: int, name: Any) -> str | int:
    if isinstance(name, bool) or not isinstance(name, str | Integral):
        raise ValueError(f"a client's name must be a string or a whole number, got {name!r} for example {row}")
    return str(name) if isinstance(name, str) else int(name)


def _indices(client: int, part: Any) -> Int64[Tensor, "_"]:
    rows = torch.as_tensor(part).cpu()
    if rows.numel() == 0:
        raise ValueError(f"client {client} has no example: give it one, or leave the client out")
    if rows.dim() != 1 or rows.dtype == torch.bool or rows.is_floating_point():
        raise ValueError(
            f"client {client} must have a list of whole numbers, the indices of its examples, "
            f"got {rows.dtype} of shape {list(rows.shape)}"
        )
    return rows.long()


def _concentrations(given: Any, classes: list[Any], clients: int) -> list[float | Sequence[float]]:
    """For each class α, or one for each client."""
    if isinstance(given, Mapping):
        missing = [name for name in classes if name not in given]
        if missing:
            raise ValueError(f"concentration must have one number for each class, but has none for {missing}")
        return [float(given[name]) for name in classes]
    if isinstance(given, Tensor | np.ndarray):
        given = given.tolist()
    if not isinstance(given, list | tuple):
        return [given] * len(classes)
    if len(given) == clients:
        return [given] * len(classes)
    if len(given) == len(classes):
        return list(given)
    raise ValueError(
        f"concentration must be one number, or one for each of {clients} clients or {len(classes)} classes, "
        f"got {len(given)}"
    )


def _cuts(
    rng: np.random.Generator, concentration: float | Sequence[float], clients: int, size: int
) -> Int64[np.ndarray, "cuts"]:
    """Where to cut `size` examples into shares drawn from a Dirichlet distribution, rounded down."""
    alphas = list(concentration) if isinstance(concentration, Sequence) else [concentration] * clients
    if not (0 < sum(alphas) < math.inf and all(alpha > 0 for alpha in alphas)):
        raise ValueError(f"concentration must be positive and finite, got {concentration}")
    shares = rng.dirichlet(alphas)
    return (shares.cumsum()[:-1] * size).astype(int)


def _check_numbers(num_examples: int, clients: int, min_examples: int) -> None:
    for name, value in (("clients", clients), ("min_examples", min_examples)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if clients * min_examples > num_examples:
        raise ValueError(
            f"every client needs {_at_least(min_examples)}, got {clients} clients for {num_examples} examples: "
            f"use fewer clients{', lower min_examples' if min_examples > 1 else ''} or more data"
        )


def _at_least(examples: int) -> str:
    return f"at least {examples} example{'' if examples == 1 else 's'}"
