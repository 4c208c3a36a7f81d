"""Randomness from explicit seeds: the global generators are neither read nor advanced."""

from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any

import torch
from torch import Generator, Tensor
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
    """Within this context every random operation of this thread draws from `generator`, or what it seeded.

    Dropout and initializers take no generator of their own; threads that share the global one would make a run
    depend on which thread came first. Operations on a GPU, which cannot draw from a generator of the CPU, draw from one
    of their device that is seeded from it. `used` says whether any operation had no generator of its own.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would import its compiler at the first operation, a second, to keep it from compiling this mode."""
        return False

    def __init__(self, generator: Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = generator
        self.used = False
        self._elsewhere: dict[torch.device, Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        seeded = _seeded_form(func)
        if seeded is None:
            return func(*args, **kwargs)
        if kwargs.get("generator") is None:
            self.used = True
            kwargs["generator"] = self._on(_device(args, kwargs))
        return seeded(*args, **kwargs)

    def _on(self, device: torch.device) -> Generator:
        """A generator that operations on the device can draw from."""
        if device.type in (self.generator.device.type, "meta"):
            return self.generator
        if device not in self._elsewhere:
            seed = int(torch.randint(2**63 - 1, (), generator=self.generator, device=self.generator.device))
            self._elsewhere[device] = Generator(device).manual_seed(seed)
        return self._elsewhere[device]


def _device(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Where an operation with these arguments draws."""
    given = kwargs.get("device")
    tensors = (argument for argument in (*args, *kwargs.values()) if isinstance(argument, Tensor))
    return torch.device(given) if given is not None else next((t.device for t in tensors), torch.device("cpu"))


@cache
def _seeded_form(func: Any) -> Any:
    """The form of a random operation that takes a generator; None for an operation that has none."""
    if func is torch.ops.aten.native_dropout.default:
        return _dropout
    names = {argument.name for argument in func._schema.arguments}
    if "generator" in names:
        return func
    packet = func.overloadpacket
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    siblings = (getattr(packet, name) for name in packet.overloads())
    wanted = names | {"generator"}
    return next((s for s in siblings if {argument.name for argument in s._schema.arguments} == wanted), None)


def _dropout(inputs: Tensor, p: float, train: bool | None, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """`native_dropout`, which GPUs use and which takes no generator: its output, and which values it kept."""
    if train is False:
        return inputs.clone(), torch.ones_like(inputs, dtype=torch.bool)
    kept = torch.empty_like(inputs, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
    return inputs * kept * (0.0 if p == 1 else 1 / (1 - p)), kept
