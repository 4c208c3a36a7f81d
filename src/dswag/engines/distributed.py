"""Clients spread over the processes of one run, on one or several machines; all run the same program."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dswag.client.calling import Loss
from dswag.client.replica import OptimizerFactory
from dswag.core.checksums import fingerprint
from dswag.core.parameters import Layout
from dswag.core.serialization import as_bytes, as_text
from dswag.engines.in_process import InProcess
from dswag.engines.ranks import RankError, Ranks
from dswag.federation import failures
from dswag.federation.contract import ClientError, Fold, FoldT, Payload, Result, Task, check_tasks
from dswag.federation.coordinates import APART, PER_COORDINATE, spread

CLIENT_FAILED, RANK_FAILED = "a client failed", "the rank failed"
"""Names of what a rank says of its failure."""


class Distributed:
    """Runs each rank's share of the tasks as `InProcess` does, and combines what the ranks folded.

    Every rank runs the same program with the same settings, has access to all clients' data, and ends every round trip
    with the same content in its fold. Rank r takes the r-th of equal shares of consecutive tasks. The ranks' folds are
    cut by coordinates: each rank merges one range of all folds, in the order of the ranks, and sends the result to the
    others. So a rank sends and receives as much as two folds hold, whatever the number of ranks and clients. If a fold
    keeps something of every client, as the robust rules do, no rank ever holds all of it; all ranks then call `result`
    together.

    Args:
        model: any module with trainable parameters, the same on all ranks, on `ranks.device` if that is a GPU.
        clients: each client's data, as `InProcess` takes them.
        ranks: the processes, as `dswag.engines.ranks.joined` gives them.
        loss: of a batch, as for `InProcess`.
        workers: clients at a time on each rank, as for `InProcess`.
        layout: the parameters in θ; all trainable ones if None.
        optimizer: makes each client's optimizer, as for `InProcess`.
    """

    def __init__(
        self,
        model: nn.Module,
        clients: Sequence[Any],
        *,
        ranks: Ranks,
        loss: Loss = F.cross_entropy,
        workers: int | None = None,
        layout: Layout | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        self.ranks = ranks
        self._local = InProcess(model, clients, loss=loss, workers=workers, layout=layout, optimizer=optimizer)
        self._asked: tuple[Task, ...] = ()
        self._told: dict[str, Tensor] = {}
        self._combined: WeakSet[Fold[Any, Any]] = WeakSet()

    @property
    def num_clients(self) -> int:
        """W."""
        return self._local.num_clients

    @property
    def batch_norm_layers(self) -> Mapping[str, int]:
        """Those of the model."""
        return self._local.batch_norm_layers

    @property
    def loss(self) -> Loss:
        """The loss that clients train with."""
        return self._local.loss

    def answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
        """The answers to this rank's share of the tasks, in task order; none where there are fewer tasks than ranks."""
        check_tasks(tasks, self.num_clients)
        self._asked = tuple(tasks)
        self._told = {"work from another θ": _fingerprint(payload), "have other tasks": _as_fingerprint(tasks)}
        start, end = self.ranks.bounds(len(tasks))[self.ranks.rank]
        return self._local.answers(payload, tasks[start:end]) if start < end else iter(())

    def combine(self, fold: Fold[Any, Any], failure: Exception | None = None) -> None:
        """Makes the fold, in place, what the folds of all ranks are together, merged in the order of the ranks.

        Raises:
            ValueError: ranks that work from different θ, on other tasks or for another fold; a fold that was combined
                before, or that cannot be merged.
            ClientError: a client failed on whichever rank; the first in task order.
            RankError: another rank is gone, or its part failed.
        """
        self._agree(failure, fold)
        if fold in self._combined:
            raise ValueError("this fold was combined before, and would count twice: give each round trip an empty one")
        merge_over(self.ranks, fold)
        self._combined.add(fold)
        spread(fold, self.ranks)

    def _agree(self, failure: Exception | None, fold: Fold[Any, Any]) -> None:
        """Raises, on all ranks alike, that they do not do the same, or what went wrong on the first rank of some."""
        given = {**self._told, "have a fold of another kind": _as_fingerprint(_kind(fold))}
        told = self.ranks.tell({**given, **_described(failure)})
        for difference, mine in given.items():
            apart = [rank for rank, said in enumerate(told) if not torch.equal(said[difference], mine)]
            if apart:
                raise ValueError(
                    f"ranks {apart} {difference} than rank {self.ranks.rank}: "
                    "every rank must be given the same model, settings and seed"
                ) from failure
        for rank, said in enumerate(told):
            if rank == self.ranks.rank and failure is not None:
                raise failure
            if CLIENT_FAILED in said:
                raise failures.unpacked(said[CLIENT_FAILED], self._asked)[0]
            if RANK_FAILED in said:
                raise RankError(f"rank {rank} failed: {as_text(said[RANK_FAILED])}")


def merge_over(ranks: Ranks, fold: Fold[Any, Any]) -> None:
    """Makes the fold, in place, what the folds of all ranks are together, merged in the order of the ranks.

    Each merges one range of the coordinates and tells the others; what is `APART` it keeps to itself.
    """
    state = fold.state()
    bounds = {name: ranks.bounds(t.shape[-1]) for name, t in state.items() if name.endswith(PER_COORDINATE)}
    received = ranks.trade(
        {name: t[..., slice(*bounds[name][rank])] if name in bounds else t for name, t in state.items()}
        for rank in range(ranks.size)
    )
    merged = _loaded(fold.empty(), next(received))
    for message in received:
        merged.merge(_loaded(fold.empty(), message))
    state = merged.state()
    mine = {name: t for name, t in state.items() if name.endswith(PER_COORDINATE) and not name.endswith(APART)}
    told = ranks.tell(mine)
    fold.load({**state, **{name: torch.cat([ranges.pop(name) for ranges in told], -1) for name in mine}})


def _loaded(fold: FoldT, state: Mapping[str, Tensor]) -> FoldT:
    fold.load(state)
    return fold


def _fingerprint(payload: Payload) -> Tensor:
    """A number that hardly any other θ has."""
    theta = payload["theta"] if "theta" in payload else payload["mean"]
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return theta.detach().contiguous().view(integers[theta.element_size()]).sum(dtype=torch.int64).cpu()


def _kind(fold: Fold[Any, Any]) -> list[tuple[str, torch.dtype, torch.Size]]:
    """What the state of an empty fold of this kind looks like."""
    return [(name, tensor.dtype, tensor.shape) for name, tensor in fold.empty().state().items()]


def _as_fingerprint(values: Iterable[object]) -> Tensor:
    """Of values that say in their representation what they are."""
    return as_bytes(fingerprint({}, *map(repr, values)))


def _described(failure: Exception | None) -> dict[str, Tensor]:
    """A failure as the other ranks learn of it."""
    if failure is None:
        return {}
    if isinstance(failure, ClientError):
        return {CLIENT_FAILED: failures.packed([failure])}
    return {RANK_FAILED: as_bytes(f"{type(failure).__name__}: {failure}")}
