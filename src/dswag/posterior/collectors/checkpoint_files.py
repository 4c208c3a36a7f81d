"""Moments of the weights in checkpoint files; the module itself is not needed."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.core.parameters import Layout
from dswag.posterior.collectors.state_dicts import SUFFIXES, CheckpointFileError, read_state_dict
from dswag.posterior.moments import Moments

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of BatchNorm and its like: without a module, the name alone tells them from parameters."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds."""

    layout: Layout
    """Its weights, in the file's order."""
    left_out: tuple[str, ...]
    """Names of its other tensors: buffers, integers, further names of tied weights, names without the prefix."""


def moments_from_files(
    paths: str | Path | Iterable[str | Path],
    *,
    rank: int = 20,
    columns: Literal["last", "svd"] = "last",
    centering: Literal["final", "running"] = "final",
    layout: Layout | None = None,
    key: str | None = None,
    prefix: str = "",
    taken_in: Callable[[Path], None] = lambda path: None,
) -> Moments:
    """The moments of the weights in checkpoint files, each of which is one snapshot; one file at a time is in memory.

    Statistics of BatchNorm layers are not weights: collect them anew for every draw from the posterior
    (`dswag.update_batch_norm`).

    Args:
        paths: files in the order of the snapshots, or a folder, whose checkpoints are taken in natural order: epoch9
            before epoch10.
        rank: K, the most deviation columns kept.
        columns: "last" keeps those of the last K files, "svd" the K principal directions of all.
        centering: as for `Moments`.
        layout: the entries that make up θ, such as `Layout.of(model)`; others are ignored. Without one, θ is what
            `contents` finds in the first file, in that file's order, and every file must hold the same.
        key: where a nested file holds the state dict, such as "state_dict"; use dots for deeper levels.
        prefix: take only entries whose names start with this, such as "model.", and remove it from their names.
        taken_in: called with each file whose weights are in the moments.

    Raises:
        CheckpointFileError: a file that is truncated, of another kind, or readable only by executing code; NaN or
            infinite weights; or entries that differ between files. The error names the file and the entry.
        FileNotFoundError: no such file or folder.
        ValueError: no checkpoints at all, or settings that `Moments` refuses.
    """
    files = checkpoint_files(paths)
    expected, source = None, "the layout"
    if layout is None:
        first = _read(files[0], key, prefix)
        layout, expected, source = _layout(first), set(_weights(first)), str(files[0])
    moments = Moments(rank=rank, columns=columns, centering=centering, layout=layout)
    for path in files:
        moments.add(_theta(path, _read(path, key, prefix), layout, expected, source))
        taken_in(path)
    return moments


def contents(path: str | Path, *, key: str | None = None, prefix: str = "") -> Contents:
    """Which tensors of a checkpoint file are weights, judged without a module.

    Floating-point tensors are weights, unless their name is one of `BUFFERS`; weights that share memory count once.

    Raises:
        CheckpointFileError: a file that is truncated, of another kind, without weights, or readable only by executing
            code.
    """
    layout = _layout(_read(Path(path), key, prefix))
    taken = {prefix + name for name in layout.names}
    return Contents(layout, tuple(name for name in read_state_dict(Path(path), key=key) if name not in taken))


def checkpoint_files(paths: str | Path | Iterable[str | Path]) -> tuple[Path, ...]:
    """The files in their order; in place of a folder, the checkpoints in it, in natural order.

    Raises:
        CheckpointFileError: a file whose name ends in none of `dswag.posterior.collectors.state_dicts.SUFFIXES`.
        FileNotFoundError: no such file or folder.
        ValueError: no checkpoints at all.
    """
    files: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir():
            inside = [p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file() and not p.name.startswith(".")]
            if not inside:
                raise ValueError(f"{path} holds no checkpoints: expected files that end in {', '.join(SUFFIXES)}")
            files += sorted(inside, key=_natural)
        elif not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        elif path.suffix not in SUFFIXES:
            raise CheckpointFileError(f"{path} must end in one of {', '.join(SUFFIXES)}, which tell how to read it")
        else:
            files.append(path)
    if not files:
        raise ValueError("there are no checkpoints to take moments of: name at least one file or folder")
    return tuple(files)


def _natural(path: Path) -> list[str | int]:
    """Digits as numbers; texts and numbers alternate from a text on, so that like is compared with like."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", path.stem))]


def _read(path: Path, key: str | None, prefix: str) -> dict[str, Tensor]:
    """The tensors that start with the prefix, named without it; at least one of them is a weight."""
    found = read_state_dict(path, key=key)
    entries = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    if any(name.startswith(".") for name in entries):
        raise CheckpointFileError(f"{path}: without the prefix {prefix!r} names begin with a dot: pass '{prefix}.'")
    if not _weights(entries):
        beginning = f" that start with {prefix!r}" if prefix else ""
        names = ", ".join([*found][:3]) + (", ..." if len(found) > 3 else "")
        raise CheckpointFileError(f"{path} has no weights{beginning}, only {names or 'values that are no tensors'}")
    return entries


def _weights(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in entries.items()
        if tensor.is_floating_point() and name.rpartition(".")[2] not in BUFFERS
    }


def _layout(entries: Mapping[str, Tensor]) -> Layout:
    """The weights, tied ones under their first name."""
    names: dict[object, str] = {}
    for name, tensor in _weights(entries).items():
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride())
        names.setdefault(memory if tensor.numel() else name, name)
    return Layout(tuple(names.values()), tuple(tuple(entries[name].shape) for name in names.values()))


def _theta(
    path: Path, entries: Mapping[str, Tensor], layout: Layout, expected: Collection[str] | None, source: str
) -> Float[Tensor, "d"]:
    """The file's θ, once it is certain that it fits; `source` says what it has to fit."""
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in entries:
            longer = [entry.removesuffix(name) for entry in entries if entry.endswith(f".{name}")]
            advice = f": it has {longer[0]}{name}, so pass the prefix {longer[0]!r}" if longer else ""
            raise CheckpointFileError(f"{path} has no {name}, which {source} has{advice}")
        entry = entries[name]
        if tuple(entry.shape) != shape or not entry.is_floating_point():
            raise CheckpointFileError(
                f"{path}: {name} must be floating-point of shape {list(shape)}, as in {source}, "
                f"got {entry.dtype} of shape {list(entry.shape)}"
            )
    more = [] if expected is None else [name for name in _weights(entries) if name not in expected]
    if more:
        raise CheckpointFileError(f"{path} has {more[0]}, which {source} has not: is it a checkpoint of another model?")
    theta = layout.flatten(entries)
    for name, values in layout.views(theta).items():
        if not torch.isfinite(values).all():
            raise CheckpointFileError(f"{path}: {name} is NaN or infinite, which would spoil all moments: leave it out")
    return theta
