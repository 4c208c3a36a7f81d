"""A Gaussian over weights: what Algorithm 1 returns (line 32) and Algorithm 2 draws from (line 2)."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dswag.files import replacing
from dswag.parameters import Layout
from dswag.randomness import generator_for
from dswag.tasks import Kind
from dswag.threads import default_workers, ordered_map

BLOCK = 1 << 17
"""Elements of θ drawn from one generator: part of what a draw is a function of, so never changed."""

CHUNK = 1 << 13
"""Elements whose K columns stay in the processor's cache while several draws use them."""

_FORMAT = "dswag-posterior"
_FORMAT_VERSION = 1


class PosteriorFileError(ValueError):
    """A file holds no posterior that this version can read."""


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """N(mean, ½ diag(variance) + D Dᵀ / (2 (k - 1))), with D the k deviation columns (Algorithm 2, line 2).

    k is the number of columns stored, not the K asked for. Without columns the covariance is diag(variance) alone.

    Raises:
        ValueError: shapes that do not fit together, a single column, a negative variance, or NaN or infinity.
    """

    mean: Float[Tensor, "d"]
    variance: Float[Tensor, "d"]
    deviations: Float[Tensor, "k d"]
    count: int
    """How many snapshots it was made of."""
    layout: Layout | None = None
    """The parameters behind θ, where known."""

    def __post_init__(self) -> None:
        d = len(self.mean)
        if self.variance.shape != (d,) or self.deviations.dim() != 2 or self.deviations.shape[1] != d:
            raise ValueError(
                f"a posterior needs mean [d], variance [d] and deviations [k, d], got {list(self.mean.shape)}, "
                f"{list(self.variance.shape)} and {list(self.deviations.shape)}"
            )
        if len(self.deviations) == 1:
            raise ValueError("deviations must have no or at least 2 columns, got 1: k - 1 would divide by zero")
        if self.layout is not None:
            self.layout.check(self.mean)
        for name, tensor in (("mean", self.mean), ("variance", self.variance), ("deviations", self.deviations)):
            if not torch.isfinite(tensor.sum()):
                raise ValueError(f"the posterior's {name} must be finite, got NaN or infinity")
        if (self.variance < 0).any():
            raise ValueError("the posterior's variance must not be negative")

    @property
    def std(self) -> Float[Tensor, "d"]:
        """The square root of the variance, which `kind="diagonal"` draws with."""
        return self.variance.sqrt()

    def sample(
        self, seed: int, n: int = 1, *, first: int = 0, kind: Kind = "swag", scale: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """Draws number `first` to `first + n - 1` of the seed, a row each (Algorithm 2, line 2).

        mean + √(scale/2) √variance z₁ + √(scale / (2 (k - 1))) D z₂, one z₂ [k] for all of θ, so that the covariance
        between layers is kept. "diagonal" has the first part alone and no ½, "low_rank" the second alone and no ½. A
        draw is a function of the posterior, seed, number, kind and scale, bit for bit on one type of machine, whatever
        the number of threads and however many draws are asked for at once.

        Raises:
            ValueError: no draws, an unknown kind, a scale that cannot be, or columns asked for where there are none.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        diagonal, low_rank = self._factors(kind, scale)
        draws = self.mean.new_empty(n, len(self.mean))
        z2 = torch.stack([_normal(len(self.deviations), seed, first + i) for i in range(n)]) if low_rank else None

        def fill(_: None, block: int) -> None:
            start = block * BLOCK
            for row in range(n):
                out = draws[row, start : start + BLOCK]
                if diagonal:
                    out.copy_(_normal(len(out), seed, first + row, block))
                else:
                    out.zero_()
            for begin in range(start, min(start + BLOCK, len(self.mean)), CHUNK):
                part = slice(begin, min(begin + CHUNK, start + BLOCK))
                self._finish(draws[:, part], part, diagonal, low_rank, z2)

        blocks = range(math.ceil(len(self.mean) / BLOCK))
        for _ in ordered_map(fill, [None] * min(default_workers(), len(blocks)), blocks):
            pass
        return draws

    def _finish(self, out: Tensor, part: slice, diagonal: float, low_rank: float, z2: Tensor | None) -> None:
        """Turns rows of z₁ into rows of θ, in place, for one part of θ."""
        mean = self.mean[part]
        std = self.variance[part].sqrt().mul_(diagonal) if diagonal else None
        columns = self.deviations[:, part] if low_rank else None
        for row, values in enumerate(out):
            if std is not None:
                values.mul_(std)
            values.add_(mean)
            if columns is not None and z2 is not None:
                torch.addmv(values, columns.T, z2[row].to(values.dtype), alpha=low_rank, out=values)

    def _factors(self, kind: Kind, scale: float) -> tuple[float, float]:
        """What multiplies √variance z₁ and D z₂."""
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if not (scale >= 0 and math.isfinite(scale)):
            raise ValueError(f"scale must be at least 0 and finite, got {scale}")
        k = len(self.deviations)
        if kind == "low_rank" and not k:
            raise ValueError("this posterior has no deviation columns: train with rank at least 2")
        if kind == "diagonal" or not k:
            return math.sqrt(scale), 0.0
        if kind == "low_rank":
            return 0.0, math.sqrt(scale / (k - 1))
        return math.sqrt(scale / 2), math.sqrt(scale / (2 * (k - 1)))

    def payload(self) -> dict[str, Tensor]:
        """The tensors that a client needs to draw from this posterior."""
        return {"mean": self.mean, "variance": self.variance, "deviations": self.deviations}

    @classmethod
    def from_payload(cls, payload: Mapping[str, Tensor]) -> "GaussianPosterior":
        """The posterior to draw from that `payload` describes; its count and layout stay where it was made."""
        return cls(payload["mean"], payload["variance"], payload["deviations"], count=0)

    def mean_into(self, module: nn.Module) -> None:
        """Copies the mean into the module's parameters, in place."""
        self._layout_of(module).write(self.mean, module)

    @contextmanager
    def sampled(
        self, module: nn.Module, *, seed: int, number: int = 0, kind: Kind = "swag", scale: float = 1.0
    ) -> Iterator[nn.Module]:
        """The module with the weights of one draw; its own are back afterwards, also after an exception.

        BatchNorm statistics stay those of the module: refresh them with `dswag.batch_norm.update` inside the context.
        """
        layout = self._layout_of(module)
        before = layout.flatten(module)
        try:
            layout.write(self.sample(seed, first=number, kind=kind, scale=scale)[0], module)
            yield module
        finally:
            layout.write(before, module)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file: the three tensors, and names, shapes and counts as metadata."""
        path = Path(path)
        described = {
            "format": _FORMAT,
            "format_version": str(_FORMAT_VERSION),
            "dswag_version": version("dswag"),
            "count": str(self.count),
            "layout": json.dumps(None if self.layout is None else [self.layout.names, self.layout.shapes]),
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.payload().items()}
        with replacing(path) as temporary:
            save_file(tensors, temporary, described)

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "GaussianPosterior":
        """The posterior in a file that `save` wrote; nothing in the file is executed.

        Raises:
            PosteriorFileError: a file that is truncated, of another kind, or of a newer format.
            FileNotFoundError: no such file.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                described = file.metadata() or {}
                _check_format(path, described)
                layout = json.loads(described["layout"])
                return cls(
                    mean=file.get_tensor("mean"),
                    variance=file.get_tensor("variance"),
                    deviations=file.get_tensor("deviations"),
                    count=int(described["count"]),
                    layout=None if layout is None else Layout(tuple(layout[0]), tuple(map(tuple, layout[1]))),
                )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, PosteriorFileError):
                raise
            raise PosteriorFileError(f"{path} is truncated, damaged or no posterior: {error}; save it again") from error

    def _layout_of(self, module: nn.Module) -> Layout:
        layout = self.layout or Layout.of(module)
        layout.check(self.mean)
        return layout


def _check_format(path: str | Path, described: dict[str, str]) -> None:
    if described.get("format") != _FORMAT:
        raise PosteriorFileError(
            f"{path} is no dswag posterior: expected format {_FORMAT}, got {described.get('format')}"
        )
    if int(described["format_version"]) > _FORMAT_VERSION:
        raise PosteriorFileError(
            f"{path} has format version {described['format_version']}, this dswag reads up to {_FORMAT_VERSION}: "
            f"install dswag {described.get('dswag_version', '')} or newer"
        )


def _normal(size: int, *path: int) -> Tensor:
    """Standard normal values [size], a function of the path alone."""
    return torch.randn(size, generator=generator_for(*path), dtype=torch.float32)
