"""θ of a module whose parameters are split among processes, as FSDP2 splits them: each has a part of θ of its own.

This module and `engines.ranks` alone speak to other processes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor, nn

from dswag.core.parameters import Layout, Selection, is_split, parameters


@dataclass(frozen=True)
class Shards(Layout):
    """Where this process's parts of the parameters lie in its part of θ, and where those lie in the whole of θ.

    Names are those of all parameters; shapes are those of the parts, which are blocks of rows, and may have none.
    """

    whole: Layout = None  # type: ignore[assignment]
    """The parameters behind the whole θ."""
    firsts: tuple[int, ...] = ()
    """The number of each part's first element among its parameter's elements."""

    @classmethod
    def of(cls, module: nn.Module, only: Selection | None = None) -> "Shards":
        """The layout of this process's parts of the trainable parameters, or of those that `only` selects.

        Raises:
            ValueError: parameters that are split in another way than by rows, or what `Layout.of` refuses.
        """
        return cls.like(Layout.of(module, only), module)

    @classmethod
    def like(cls, whole: Layout, module: nn.Module) -> "Shards":
        """The layout of this process's parts of the parameters in a layout."""
        found = whole.select(module)
        parts = [_part(name, parameter) for name, parameter in zip(whole.names, found, strict=True)]
        return cls(whole.names, tuple(shape for shape, _ in parts), whole, tuple(first for _, first in parts))

    @property
    def pieces(self) -> tuple[tuple[int, int, int], ...]:
        """What this process has, in order: first element in the whole θ, first in its own part, and how many."""
        starts = [part.start for part in self.whole.slices.values()]
        own = accumulate(self.sizes, initial=0)
        pieces = zip(starts, self.firsts, own, self.sizes, strict=False)
        return tuple((start + first, mine, size) for start, first, mine, size in pieces if size)

    def subset(self, only: Selection) -> "Shards":
        """The layout of some of the parameters, in the same order."""
        whole = self.whole.subset(only)
        kept = [self.names.index(name) for name in whole.names]
        return Shards(whole.names, tuple(self.shapes[i] for i in kept), whole, tuple(self.firsts[i] for i in kept))

    def select(self, source: nn.Module | Mapping[str, Tensor]) -> list[Tensor]:
        """This process's parts of the parameters of a module."""
        if not isinstance(source, nn.Module):
            raise ValueError("a part of θ is read from the module itself, not from a state dict")
        found = [_own(parameter) for parameter in self.whole.select(source)]
        for name, shape, part in zip(self.names, self.shapes, found, strict=True):
            if tuple(part.shape) != shape:
                raise ValueError(
                    f"this process's part of {name} must have shape {list(shape)}, got {list(part.shape)}: the model "
                    "is split in another way than the one that θ was made for"
                )
        return found

    def part_of(self, whole: Tensor) -> Tensor:
        """This process's elements of a vector [d], or of rows [k, d], over the whole θ; a copy."""
        return torch.cat([whole[..., start : start + size] for start, _, size in self.pieces], -1)


def split(module: nn.Module) -> bool:
    """Whether parameters of a module are split among processes."""
    return any(is_split(parameter) for parameter in parameters(module).values())


def number_and_count() -> tuple[int, int]:
    """The number of this process, and how many share the work; (0, 1) where it works alone."""
    return (dist.get_rank(), dist.get_world_size()) if _others() else (0, 1)


def told_by_all(mine: UInt8[Tensor, "n"]) -> list[UInt8[Tensor, "n"]]:
    """What every process tells all, in their order; of the same length everywhere. Waits for all of them."""
    if not _others():
        return [mine]
    on_gpu = "gloo" not in dist.get_backend() and torch.cuda.is_available()
    mine = mine.to("cuda" if on_gpu else "cpu")
    told = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(told, mine)
    return [said.cpu() for said in told]


def _others() -> bool:
    return dist.is_available() and dist.is_initialized()


def _own(tensor: Any) -> Tensor:
    """This process's part of a tensor, in the same memory."""
    part: Tensor = tensor.detach().to_local() if is_split(tensor) else tensor
    return part


def _part(name: str, parameter: Any) -> tuple[tuple[int, ...], int]:
    """The shape of this process's part of a parameter, and the number of its first element."""
    if not is_split(parameter):
        return tuple(parameter.shape), 0
    kinds = {type(placement).__name__ for placement in parameter.placements}
    shape, size = tuple(parameter.to_local().shape), parameter.shape
    if not kinds <= {"Shard", "Replicate"} or shape[1:] != tuple(size[1:]):
        raise ValueError(
            f"parameter {name} is split as {_listed(parameter.placements)}: only rows can be, as FSDP2 splits them "
            "(Shard(0))"
        )
    # what torch.distributed.checkpoint asks a tensor for: where its part begins in each dimension
    begins = [tuple(chunk.offsets) for chunk in parameter.__create_chunk_list__()] if prod(shape) else []
    return shape, begins[0][0] * prod(shape[1:]) if begins and shape else 0


def _listed(placements: Iterable[object]) -> str:
    return ", ".join(map(str, placements))
