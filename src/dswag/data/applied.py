"""A partition applied to a second data set: the examples there that each client would have."""

from collections.abc import Sequence

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from dswag.core.randomness import generator_for


def applied(
    parts: Sequence[Int64[Tensor, "_"]], targets: Int[Tensor, "n"], others: Int[Tensor, "m"], *, seed: int
) -> list[Int64[Tensor, "_"]]:
    """Rows of a second data set for each client, which has the same share of every class there as in the first.

    Every example of the second set goes to one client, except those of classes that no client has. Shares are rounded
    to whole examples by largest remainders, of equal ones the first client's up; which examples a client gets is drawn
    from the seed. A client may get none, where it has few.

    Args:
        parts: of the first data set, each client's rows.
        targets: the classes of the first data set.
        others: the classes of the second one.
        seed: of the draw.

    Raises:
        ValueError: no client, or classes that are no whole numbers from 0.
    """
    if not parts:
        raise ValueError("a partition needs at least one client, got none")
    for name, labels in (("targets", targets), ("others", others)):
        if labels.dim() != 1 or labels.is_floating_point() or (len(labels) and int(labels.min()) < 0):
            raise ValueError(f"{name} must be classes from 0 in one axis, got {labels.dtype} {list(labels.shape)}")
    classes = 1 + max((int(labels.max()) for labels in (targets, others) if len(labels)), default=0)
    counts = torch.stack([targets[part].long().bincount(minlength=classes) for part in parts]).double()
    rows: list[list[Tensor]] = [[] for _ in parts]
    order = torch.randperm(len(others), generator=generator_for(seed))
    for number in range(classes):
        of_class = order[others[order] == number]
        total = float(counts[:, number].sum())
        if not total or not len(of_class):
            continue
        exact = counts[:, number] / total * len(of_class)
        sizes = exact.floor()
        left = len(of_class) - int(sizes.sum())
        sizes[(exact - sizes).sort(descending=True, stable=True).indices[:left]] += 1
        for client, share in enumerate(torch.split(of_class, sizes.long().tolist())):
            rows[client].append(share)
    return [torch.cat(own).sort().values if own else torch.empty(0, dtype=torch.int64) for own in rows]
