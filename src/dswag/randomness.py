"""Randomness from explicit seeds: the global generators are neither read nor advanced."""

from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any

import torch
from torch import Generator
from torch.utils._python_dispatch import TorchDispatchMode


def derive_seed(*path: int) -> int:
    """A seed in [0, 2^63) for the place named by `path`, such as (run seed, phase, round, client).

    A hash of the path: the same on every machine, and unrelated for different paths.
    """
    digest = blake2b(",".join(map(str, path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(*path: int) -> Generator:
    """A CPU generator seeded for the place named by `path`."""
    return Generator().manual_seed(derive_seed(*path))


class DrawFrom(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context every random operation of this thread on the CPU draws from `generator`.

    Dropout and initializers take no generator of their own; threads that share the global one would make a run
    depend on which thread came first. `used` says whether any operation drew.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = generator
        self.used = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        seeded = _seeded_form(func)
        if seeded is None:
            return func(*args, **kwargs)
        self.used = True
        if kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        return seeded(*args, **kwargs)


@cache
def _seeded_form(func: Any) -> Any:
    """The overload of a random operation that takes a generator; None for an operation that has none."""
    names = {argument.name for argument in func._schema.arguments}
    if "generator" in names:
        return func
    packet = func.overloadpacket
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    siblings = (getattr(packet, name) for name in packet.overloads())
    wanted = names | {"generator"}
    return next((s for s in siblings if {argument.name for argument in s._schema.arguments} == wanted), None)
