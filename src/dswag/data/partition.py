"""How the examples of one data set are spread over clients.

A partition is a function (targets [n], clients, seed) -> one tensor of indices per client; it sees the targets because
most partitions skew them. To add one, write the function and name it in `PARTITIONS`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Int64, Shaped
from torch import Generator, Tensor

Partition = Callable[[Tensor, int, int], list[Tensor]]
"""Maps (targets [n], clients, seed) to `clients` disjoint, non-empty index tensors on the CPU."""


def iid(targets: Shaped[Tensor, "n ..."], clients: int, seed: int) -> list[Int64[Tensor, "_"]]:
    """Indices per client: a random split of all the examples into parts whose sizes differ by at most 1.

    Raises:
        ValueError: fewer than one client, or more clients than examples.
    """
    _check_clients(len(targets), clients)
    order = torch.randperm(len(targets), generator=Generator().manual_seed(seed))
    return list(order.tensor_split(clients))


PARTITIONS: Mapping[str, Partition] = MappingProxyType({"iid": iid})
"""Every partition by its name in a config."""


def partition(name: str, targets: Shaped[Tensor, "n ..."], clients: int, seed: int) -> list[Int64[Tensor, "_"]]:
    """Indices per client, by the partition of that name.

    Raises:
        ValueError: a name that is not in `PARTITIONS`, or what the partition refuses.
    """
    if name not in PARTITIONS:
        raise ValueError(f"partition must be one of {', '.join(PARTITIONS)}, got {name!r}")
    return PARTITIONS[name](targets, clients, seed)


def _check_clients(num_examples: int, clients: int) -> None:
    if clients < 1:
        raise ValueError(f"clients must be at least 1, got {clients}")
    if clients > num_examples:
        raise ValueError(
            f"every client needs an example, got {clients} clients for {num_examples} examples: "
            "use fewer clients or more data"
        )
