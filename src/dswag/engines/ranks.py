"""The processes of one run, as `torchrun` starts them, and their messages, through `torch.distributed`."""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise

import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from torch import Tensor

from dswag.core.serialization import as_bytes, as_text, packed, unpacked

TIMEOUT = 1800.0
"""Seconds that ranks wait for one another: longer than the longest share of a round trip takes."""


class RankError(RuntimeError):
    """Another process of the run has ended, failed, or not answered in time; the message names it."""


@contextmanager
def joined(*, timeout: float = TIMEOUT) -> Iterator["Ranks"]:
    """The processes that `torchrun` started together with this one, until the context ends.

    Tensors in main memory are sent through gloo, those on a GPU through nccl; each process has the GPU of its
    `LOCAL_RANK`.

    Args:
        timeout: seconds to wait for one another before a process counts as gone.

    Raises:
        ValueError: this process was not started by `torchrun` or a similar launcher.
        RankError: the processes did not find one another in time.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"a run over several processes is started by torchrun, which sets {', '.join(missing)}: "
            "torchrun --nproc-per-node 2 -m dswag ..."
        )
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankError(
            f"rank {os.environ['RANK']} did not find all {os.environ['WORLD_SIZE']} processes of the run at {where} "
            f"within {timeout:g} s ({error}): start as many, with the same address"
        ) from error
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()


class Ranks:
    """All processes of the default process group, among which this one has the number `rank` of `size`.

    As `dswag.federation.contract.Coordinates`, each holds the range of coordinates that `bounds` gives to its number.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        self._names = [f"rank {rank} of {self.size}" for rank in range(self.size)]
        name = f"{self._names[self.rank]} ({socket.gethostname()}, process {os.getpid()})"
        self._names = [as_text(said["name"]) for said in self.tell({"name": as_bytes(name)})]

    def bounds(self, length: int) -> list[tuple[int, int]]:
        """Where each rank's part of a sequence starts and ends: lengths differ by at most one, the first are longer."""
        edges = [-(-rank * length // self.size) for rank in range(self.size + 1)]
        return list(pairwise(edges))

    def tell(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """What every rank told all, in the order of the ranks."""
        return list(self._trade([packed(tensors, self.device)] * self.size))

    def leader_says(self, text: str) -> str:
        """What rank 0 says, whatever the others do."""
        return as_text(self.tell({"text": as_bytes(text)})[0]["text"])

    def trade(self, outgoing: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """What came from every rank, in their order, where the n-th of `outgoing` goes to rank n.

        Each is brought into its form, and let go, when the next is asked for.

        Raises:
            RankError: a rank is gone or does not answer.
        """
        return self._trade([packed(tensors, self.device) for tensors in outgoing])

    def total(self, values: Tensor) -> Tensor:
        """The sum of the ranks' tensors, in their order: the same bits everywhere."""
        first, *others = (said["values"] for said in self.tell({"values": values}))
        for other in others:
            first += other
        return first

    def part(self, whole: Float[Tensor, "d"]) -> Float[Tensor, "d_part"]:
        """This rank's range of the coordinates."""
        start, end = self.bounds(len(whole))[self.rank]
        return whole[start:end]

    def whole(self, part: Float[Tensor, "d_part"]) -> Float[Tensor, "d"]:
        """All ranges one after another."""
        return torch.cat([said["part"] for said in self.tell({"part": part})])

    def _trade(self, messages: list[UInt8[Tensor, "_"]]) -> Iterator[dict[str, Tensor]]:
        lengths = [torch.tensor([len(message)], device=self.device) for message in messages]
        sizes = [int(size) for size in self._swap(lengths, [1] * self.size)]
        received = self._swap(messages, sizes)
        messages.clear()
        return (unpacked(received.pop(0)) for _ in range(self.size))

    def _swap(self, outgoing: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """One tensor for every rank against one of the same dtype from every rank, of these lengths."""
        incoming = [
            out if rank == self.rank else out.new_empty(length)
            for rank, (out, length) in enumerate(zip(outgoing, lengths, strict=True))
        ]
        others = [rank for rank in range(self.size) if rank != self.rank]
        if not others:
            return incoming
        sends = [dist.P2POp(dist.isend, outgoing[rank], rank) for rank in others]
        receives = [dist.P2POp(dist.irecv, incoming[rank], rank) for rank in others]
        try:
            # nccl answers with one work for all, gloo with one for each: whose fails says who is gone
            works = dist.batch_isend_irecv([*receives, *sends])
        except RuntimeError as error:
            raise self._lost(others, error) from error
        partners = [*others, *others] if len(works) > 1 or len(others) == 1 else [None]
        for work, partner in zip(works, partners, strict=False):
            try:
                work.wait()
            except RuntimeError as error:
                raise self._lost(others if partner is None else [partner], error) from error
        return incoming

    def _lost(self, ranks: Sequence[int], error: RuntimeError) -> RankError:
        names = " or ".join(self._names[rank] for rank in ranks)
        cause = str(error).partition("] ")[2].partition(". ")[0] or str(error)
        return RankError(
            f"{names} is gone, or took longer than the timeout: {cause}. "
            "Its own output says why; the run goes on from its last complete round when it is started again"
        )
