"""A Gaussian over weights: what Algorithm 1 returns (line 32) and Algorithm 2 draws from (line 2)."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from dswag.core.atomic_files import replacing, save_tensors
from dswag.core.choices import check_choice
from dswag.core.links import Learned
from dswag.core.normalization import normalizing
from dswag.core.parameters import Layout, Selection
from dswag.core.shards import Shards, split
from dswag.posterior import density, file, parts, sampling
from dswag.posterior.draws import Draws, Kind
from dswag.posterior.file import PosteriorFileError as PosteriorFileError

_TENSORS = ("mean", "variance", "deviations", "variance_within", "deviations_within")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """N(mean, ½ diag(variance) + D Dᵀ / (2 (k - 1))), with D the k deviation columns (Algorithm 2, line 2).

    k is the number of columns stored, not the K asked for. Without columns the covariance is diag(variance) alone.

    If the scatter within clients is known, variance and columns are sums of a part within and a part between clients;
    `within_scale` and `between_scale` multiply the covariance of each part, and are 1 in the paper.

    Raises:
        ValueError: shapes that do not fit together, a single column, a negative variance, or NaN or infinity.
    """

    mean: Float[Tensor, "d"] = field(repr=False)
    variance: Float[Tensor, "d"] = field(repr=False)
    deviations: Float[Tensor, "k d"] = field(repr=False)
    count: int
    """The number of snapshots that it was made from."""
    layout: Layout | None = None
    """The parameters behind θ, if known."""
    variance_within: Float[Tensor, "d"] | None = field(default=None, repr=False)
    """The part of the variance within clients; None if each gave one snapshot: then all variance is between clients."""
    deviations_within: Float[Tensor, "k d"] | None = field(default=None, repr=False)
    """The part of each column within its client; the rest of it is its client's mean less the global mean."""
    within_scale: float = 1.0
    between_scale: float = 1.0
    temperature: float = 1.0
    """What logits are divided by when class probabilities are predicted."""
    link: Learned | None = None
    """What the loss of training says about the model's outputs (`core.links`); None if nobody looked."""

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
        for whole, part in ((self.variance, self.variance_within), (self.deviations, self.deviations_within)):
            if part is not None and part.shape != whole.shape:
                raise ValueError(f"the part within clients must have shape {list(whole.shape)}, got {list(part.shape)}")
        for name, tensor in self.tensors().items():
            if tensor.dtype not in _DTYPES:
                raise ValueError(f"the posterior's {name} must be float32, float64 or bfloat16, got {tensor.dtype}")
            if not (torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all()):  # a sum of finite ones may overflow
                raise ValueError(f"the posterior's {name} must be finite, got NaN or infinity")
        if (self.variance < 0).any():
            raise ValueError("the posterior's variance must not be negative")
        if self.count < 0:
            raise ValueError(f"the count of snapshots must be at least 0, got {self.count}")
        if self.link is not None:
            check_choice("link", self.link, get_args(Learned))
        for name in ("within_scale", "between_scale", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name == "temperature" and value == 0):
                raise ValueError(f"{name} must be {'positive' if name == 'temperature' else 'at least 0'}, got {value}")

    @property
    def std(self) -> Float[Tensor, "d"]:
        """The square root of the variance, which `kind="diagonal"` draws with at scales of 1."""
        return self.variance.sqrt()

    def factors(
        self, kind: Kind = "swag", scale: float = 1.0, part: slice | Tensor = slice(None)
    ) -> tuple[Float[Tensor, "p"], Float[Tensor, "k p"]]:
        """(v, F) such that the covariance of θ[part] is diag(v) + FᵀF, with all factors that `kind` and `scale` imply.

        `part` is a slice or a vector of indices. F has no rows if `kind` does not use the columns.

        Raises:
            ValueError: an unknown kind, a negative or infinite scale, or a kind that needs columns if there are none.
        """
        diagonal, low_rank = self._weights(kind, scale)
        variance = diagonal * self._combined(self.variance, self.variance_within, part, 1)
        if not low_rank:
            return variance, self.deviations[:0, part]
        return variance, math.sqrt(low_rank) * self._combined(self.deviations, self.deviations_within, part, 2)

    @property
    def is_point(self) -> bool:
        """Whether all draws are the mean: both scales are 0, as where `calibrate` found that draws gain nothing."""
        return self.within_scale == self.between_scale == 0

    def sample(
        self,
        seed: int,
        n: int = 1,
        *,
        first: int = 0,
        kind: Kind = "swag",
        scale: float = 1.0,
        out: Float[Tensor, "n d"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """The draws of the seed with the numbers `first` to `first + n - 1`, a row each (Algorithm 2, line 2).

        A draw is mean + √(scale/2) √variance z₁ + √(scale / (2 (k - 1))) D z₂, with one z₂ [k] for all of θ, so that
        the covariance between layers is kept. "diagonal" uses only the first term, "low_rank" only the second, both
        without the ½. A draw is a function of posterior, seed, number, kind and scale: bit for bit on every processor,
        whatever the number of threads and of draws asked for at once. Draws 0 and 1, 2 and 3, and so on lie opposite
        each other around the mean, and the z₂ of 16 such pairs in succession are orthogonal (`sampling.draw`), so that
        averages over draws have less noise. With `out`, draws are written there; allocating memory for many draws of a
        large θ takes as much time as drawing them.

        Raises:
            ValueError: no draws, a number below 0, an unknown kind, a negative or infinite scale, a kind that needs
                columns if there are none, or an `out` of another shape, dtype or device.
        """
        if n < 1 or first < 0:
            raise ValueError(f"n must be at least 1 and first at least 0, got {n} and {first}")
        draws = self.mean.new_empty(n, len(self.mean)) if out is None else out
        wanted, found = ((t.dtype, t.device) for t in (self.mean, draws))
        if draws.shape != (n, len(self.mean)) or wanted != found:
            raise ValueError(
                f"out must have shape {[n, len(self.mean)]}, {wanted[0]} on {wanted[1]}, "
                f"got {list(draws.shape)}, {found[0]} on {found[1]}"
            )
        diagonal, low_rank = self._weights(kind, scale)

        def spread(part: slice) -> tuple[Tensor | None, Tensor | None]:
            variance = self._combined(self.variance, self.variance_within, part, 1) if diagonal else None
            columns = self._combined(self.deviations, self.deviations_within, part, 2) if low_rank else None
            return None if variance is None else diagonal * variance, columns

        pieces = self.layout.pieces if isinstance(self.layout, Shards) else None
        k, weight = len(self.deviations), math.sqrt(low_rank)
        sampling.draw(self.mean, spread, k, weight=weight, seed=seed, first=first, out=draws, pieces=pieces)
        return draws

    def log_prob(
        self, theta: Float[Tensor, "*n d"], kind: Kind = "swag", scale: float = 1.0, *, floor: float = 0.0
    ) -> Float64[Tensor, "*n"]:
        """The log density of one θ [d], or of each row of [n, d], under what `sample` draws from; in nats, float64.

        -½ (d ln 2π + ln det Σ + (θ - mean)ᵀ Σ⁻¹ (θ - mean)), with Σ = diag(v) + FᵀF from `factors`. `floor` is a
        variance that is added to every element here, but not in draws. A θ in float32 is rounded by up to 6e-8 of its
        size: if standard deviations are not far above that, sample and measure in float64 (`to(dtype=torch.float64)`).

        Raises:
            ValueError: elements without variance, for which there is no density; a θ of another shape; or a kind or
                scale that `factors` refuses.
        """
        return density.log_prob(self._gaussian(kind, scale, floor), theta)

    def mahalanobis(
        self, theta: Float[Tensor, "*n d"], kind: Kind = "swag", scale: float = 1.0, *, floor: float = 0.0
    ) -> Float64[Tensor, "*n"]:
        """The squared Mahalanobis distance (θ - mean)ᵀ Σ⁻¹ (θ - mean), float64; for draws it is χ² with d degrees.

        Takes and raises what `log_prob` does.
        """
        return density.mahalanobis(self._gaussian(kind, scale, floor), theta)

    def entropy(self, kind: Kind = "swag", scale: float = 1.0, *, floor: float = 0.0) -> Float64[Tensor, ""]:
        """The entropy ½ (d (1 + ln 2π) + ln det Σ) in nats, float64; raises what `log_prob` does."""
        return density.entropy(self._gaussian(kind, scale, floor))

    def kl(
        self, other: "GaussianPosterior", kind: Kind = "swag", scale: float = 1.0, *, floor: float = 0.0
    ) -> Float64[Tensor, ""]:
        """KL(self ‖ other) = E_self[ln self - ln other] in nats, float64; kind, scale and floor are those of both.

        Raises:
            ValueError: posteriors over other parameters, and what `log_prob` raises.
        """
        other = other if self.layout is None else other.in_layout(self.layout)
        return density.kl(self._gaussian(kind, scale, floor), other._gaussian(kind, scale, floor))

    def covariance(
        self, indices: Tensor | Sequence[int], kind: Kind = "swag", scale: float = 1.0
    ) -> Float64[Tensor, "m m"]:
        """The dense covariance of the m elements of θ with these indices, float64, even if there is no density.

        `posterior.layout.slices` says which elements belong to a parameter.

        Raises:
            ValueError: indices that are no integers from 0 to d - 1, or a kind or scale that `factors` refuses.
        """
        return density.covariance(self._gaussian(kind, scale), indices)

    def subset(self, only: Selection) -> "GaussianPosterior":
        """The posterior over some of the parameters, selected by name or by a function of the name.

        It is the marginal distribution: mean and covariance of these parameters stay as they are. With it, `mean_into`,
        `sampled` and `predict` set only these parameters, and leave the others as the module has them. To have the
        others at the mean, call `mean_into` of the whole posterior first. Its draws are not parts of the draws that the
        whole posterior makes from the same seed.

        Raises:
            ValueError: unknown names, an empty selection, or a posterior without a layout.
        """
        if self.layout is None:
            raise ValueError("a posterior without a layout has no names to select by: give Moments a layout")
        return self._of(self.layout.subset(only), self.layout)

    def in_layout(self, layout: Layout) -> "GaussianPosterior":
        """The same distribution over the same parameters in another order; itself where the order is not known.

        Raises:
            ValueError: a layout of other parameters, or of other shapes.
        """
        if self.layout is None or self.layout == layout:
            return self
        own, others = (dict(zip(each.names, each.shapes, strict=True)) for each in (self.layout, layout))
        if own != others:
            raise ValueError(
                f"both layouts must be of the same parameters, got {list(self.layout.names)} and "
                f"{list(layout.names)}, or other shapes: take a subset of the larger"
            )
        return self._of(layout, self.layout)

    def _of(self, layout: Layout, own: Layout) -> "GaussianPosterior":
        """The marginal distribution of these parameters, in this order."""
        slices = own.slices
        parts = [slices[name] for name in layout.names]
        tensors: dict[str, Any] = {
            name: torch.cat([tensor[..., part] for part in parts], -1) for name, tensor in self.tensors().items()
        }
        return replace(self, **tensors, layout=layout)

    def to(self, device: str | torch.device | None = None, *, dtype: torch.dtype | None = None) -> "GaussianPosterior":
        """The same posterior with its tensors on a device, or in a dtype.

        Raises:
            ValueError: a dtype other than float32, float64 and bfloat16, or values outside its range.
        """
        if dtype not in (None, *_DTYPES):
            raise ValueError(f"dtype must be float32, float64 or bfloat16, in which small variances fit, got {dtype}")
        tensors: dict[str, Any] = {
            name: tensor.to(device=device, dtype=dtype) for name, tensor in self.tensors().items()
        }
        return replace(self, **tensors)

    def _gaussian(self, kind: Kind, scale: float, floor: float = 0.0) -> density.Gaussian:
        """What `sample` draws from, plus the floor."""
        if isinstance(self.layout, Shards):
            raise ValueError("a density is of the whole θ, and this is one process's part: save it, and load the whole")
        sizes = None if self.layout is None else dict(zip(self.layout.names, self.layout.sizes, strict=True))
        return density.Gaussian(self.mean, partial(self.factors, kind, scale), floor, sizes)

    def _combined(self, whole: Tensor, within: Tensor | None, part: slice | Tensor, power: int) -> Tensor:
        """Variance (power 1) or columns (power 2) with their parts within and between clients scaled."""
        scales = (self.within_scale, self.between_scale)
        inner, outer = scales if power == 1 else map(math.sqrt, scales)
        whole = whole[..., part]
        if within is None or inner == outer:
            return whole if outer == 1 else outer * whole
        between = whole - within[..., part]
        if power == 1:
            between.clamp_min_(0)  # where it is none of the variance, rounding must not leave less than that
        return between.mul_(outer).add_(inner * within[..., part])  # each rounded: no step may depend on the processor

    def _weights(self, kind: Kind, scale: float) -> tuple[float, float]:
        """What multiplies diag(variance) and D Dᵀ in the covariance."""
        check_choice("kind", kind, get_args(Kind))
        if not (scale >= 0 and math.isfinite(scale)):
            raise ValueError(f"scale must be at least 0 and finite, got {scale}")
        k = len(self.deviations)
        if kind == "low_rank" and not k:
            raise ValueError("this posterior has no deviation columns: train with rank at least 2")
        if kind == "diagonal" or not k:
            return scale, 0.0
        if kind == "low_rank":
            return 0.0, scale / (k - 1)
        return scale / 2, scale / (2 * (k - 1))

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name; the parts within clients only where they are known."""
        named = {name: getattr(self, name) for name in _TENSORS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **others: Any) -> "GaussianPosterior":
        """The posterior with these `tensors()`, to draw from; its count is 0, and its layout unknown unless given."""
        known: dict[str, Any] = {name: tensors[name] for name in _TENSORS if name in tensors}
        return cls(**known, count=0, **others)

    def draws(self, seed: int, count: int, *, kind: Kind = "swag", scale: float = 1.0) -> Draws:
        """The first `count` draws of the seed, as a client is asked to make them from `tensors`."""
        return Draws(
            seed=seed,
            first=0,
            count=count,
            kind=kind,
            scale=scale,
            within_scale=self.within_scale,
            between_scale=self.between_scale,
        )

    def part(self, module: nn.Module) -> "GaussianPosterior":
        """The part of the posterior that this process's part of a module needs, where FSDP2 split that; else itself.

        `mean_into` and `sampled` take it themselves; whoever calls `sampled` often, takes it once.

        Raises:
            ValueError: a module that lacks the parameters, or is split in another way.
        """
        layout = self.layout or Layout.of(module)
        layout.check(self.mean)
        if isinstance(layout, Shards):
            if not split(module):
                raise ValueError(
                    "this is one process's part of a posterior, and the module is whole: save it in all processes, and "
                    "load what they saved"
                )
            return self
        if not split(module):
            return self if self.layout is layout else replace(self, layout=layout)
        shards = Shards.like(layout, module)
        tensors: dict[str, Any] = {name: shards.part_of(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **tensors, layout=shards)

    def mean_into(self, module: nn.Module) -> None:
        """Copies the mean into the module's parameters, in place.

        Warns:
            UserWarning: the module has layers whose running statistics, such as BatchNorm's, belong to other weights.
        """
        part = self.part(module)
        part._own_layout.write(part.mean, module)
        stale = list(normalizing(module, part._own_layout))
        if stale:
            named = f"{stale[:3]}" + (f" and {len(stale) - 3} more" if len(stale) > 3 else "")
            warnings.warn(
                f"the running statistics of the layers {named} belong to the weights from before: collect them with "
                "dswag.update_batch_norm(model, batches) before you predict",
                stacklevel=2,
            )

    @contextmanager
    def sampled(
        self, module: nn.Module, *, seed: int, number: int = 0, kind: Kind = "swag", scale: float = 1.0
    ) -> Iterator[nn.Module]:
        """The module with the weights of one draw; its own are back afterwards, also after an exception.

        BatchNorm statistics stay those of the module: collect them with `dswag.update_batch_norm` inside the context.

        Raises:
            ValueError: a module that lacks the parameters, or what `sample` raises.
        """
        part = self.part(module)
        layout = part._own_layout
        before = layout.flatten(module)
        try:
            layout.write(part.sample(seed, first=number, kind=kind, scale=scale)[0], module)
            yield module
        finally:
            layout.write(before, module)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file: the tensors, and names, shapes, count, scales and a fingerprint as metadata.

        Where each process has a part of the posterior, all of them call this. Each writes a file of its own beside
        `path`, and the first one their list, `path`.index.json, by which `load` finds them.
        """
        path = Path(path)
        own = parts.own_file(path) if isinstance(self.layout, Shards) else path
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors().items()}
        described = file.metadata(
            tensors,
            count=self.count,
            layout=self.layout,
            within_scale=self.within_scale,
            between_scale=self.between_scale,
            temperature=self.temperature,
            link=self.link,
        )
        with replacing(own) as temporary:
            save_tensors(temporary, tensors, described)
        if own != path:
            parts.write_index(path, described["fingerprint"])

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "GaussianPosterior":
        """The posterior in a file that `save` wrote; nothing in the file is executed.

        On the CPU its tensors are mapped from the file, so that parts that are not used take no memory. What several
        processes saved is put together in memory; a process that needs its own part alone loads its own file.

        Raises:
            PosteriorFileError: a file that is truncated, damaged, no posterior, or of a newer format.
            FileNotFoundError: no such file.
        """
        path = Path(path)
        index = parts.index_of(path)
        if path == index or (index.exists() and not path.exists()):
            return cls._joined(index, device)
        return file.read(path, _TENSORS, cls, device=device)

    @classmethod
    def _joined(cls, index: Path, device: str | torch.device) -> "GaussianPosterior":
        """The posterior whose parts the list names."""
        try:
            found = [file.read(path, _TENSORS, cls, device="cpu", known=known) for path, known in parts.listed(index)]
            layouts = [part.layout for part in found if isinstance(part.layout, Shards)]
            tensors: dict[str, Any] = parts.joined(layouts, [part.tensors() for part in found])
            return replace(found[0], **tensors, layout=layouts[0].whole).to(device)
        except ValueError as error:
            raise file.PosteriorFileError(f"{index} lists no whole posterior: {error}; save it again") from error

    @property
    def _own_layout(self) -> Layout:
        if self.layout is None:
            raise ValueError("a posterior without a layout has no names: give Moments a layout")
        return self.layout
