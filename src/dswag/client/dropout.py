"""Dropout that draws from a generator of its own, for replicas: PyTorch's takes the global one."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn


class Source:
    """Where the dropout layers of one replica draw from; wherever PyTorch says if there is no generator."""

    generator: Generator | None = None


class SeededDropout(nn.Dropout):
    """`nn.Dropout` with the same values as under `randomness.DrawFrom`, without its costs at every operation."""

    source: Source

    def forward(self, input: Tensor) -> Tensor:
        """The input with random values dropped, in training."""
        generator = self.source.generator
        seeded = generator is not None and generator.device == input.device
        if not (seeded and self.training and 0 < self.p < 1 and input.numel()):
            return F.dropout(input, self.p, self.training, self.inplace)
        kept = torch.empty_like(input).bernoulli_(1 - self.p, generator=generator).div_(1 - self.p)
        return input.mul_(kept) if self.inplace else input * kept


def seed_dropout(module: nn.Module) -> Source:
    """Lets the dropout layers of a module draw from one source, in place; those of other kinds stay as they are."""
    source = Source()
    for layer in module.modules():
        if type(layer) in (nn.Dropout, SeededDropout):
            layer.__class__ = SeededDropout
            layer.source = source  # type: ignore[assignment]
    return source
