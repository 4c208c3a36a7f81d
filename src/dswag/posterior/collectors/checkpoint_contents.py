"""Which tensors of checkpoints are weights, judged without the module, and which checkpoints are copies of others."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dswag.core.parameters import Layout, unwrapped_name
from dswag.posterior.collectors.checkpoint_paths import checkpoint_files
from dswag.posterior.collectors.state_dicts import CheckpointFileError, StateDict, check_readable, read

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of BatchNorm and its like, which change in training as parameters do: the name alone tells them apart."""

_SAMPLED = 32
"""Elements of a tensor that are looked at before it is compared as a whole."""


@dataclass(frozen=True)
class Contents:
    """What checkpoints hold."""

    files: tuple[Path, ...]
    """The checkpoints, in their order, each once."""
    layout: Layout
    """Their weights, in the first file's order."""
    left_out: tuple[str, ...]
    """Names of its other tensors: buffers, integers, further names of tied weights, names without the prefix."""
    unchanged: tuple[str, ...] = ()
    """Those left out because they are the same in all files: frozen parameters, and buffers such as class weights."""
    copies: Mapping[Path, Path] = field(default_factory=dict)
    """Files left out because another holds the same weights, with that other, as last.ckpt does."""
    averages: tuple[Path, ...] = ()
    """Files left out because they hold an average of the weights that training went through."""
    averaged: bool = False
    """Whether training averaged weights in files beside the current ones, which alone count here."""


def contents(
    paths: str | Path | Iterable[str | Path], *, layout: Layout | None = None, key: str | None = None, prefix: str = ""
) -> Contents:
    """What counts in checkpoints: which tensors are weights, and which files are snapshots.

    Floating-point tensors are weights, except for `BUFFERS`, vectors of spectral normalization, and what is the same in
    all files while other tensors change. Weights that share memory count once. Files that differ by numbers in their
    names alone are a series, and all count; another file that equals one of them, such as last.ckpt or best.pt, does
    not.

    Args:
        paths: as for `moments_from_files`.
        layout: the entries that are weights; if None, they are judged.
        key: where in a file the state dict lies.
        prefix: that of the names of weights.

    Raises:
        CheckpointFileError: a file that is truncated, of another kind, without weights, or readable only by executing
            code.
    """
    files = checkpoint_files(paths)
    first, known = _opened(files[0], key, prefix)
    given = () if layout is None else tuple(name for name in layout.names if name in first)
    names = given or tuple(weights(first))
    same = set(names)
    samples: dict[Path, bytes] = {}
    averages, averaged = [], known.averaged
    for path in files:
        entries, known = (first, known) if path == files[0] else _opened(path, key, prefix)
        averaged = averaged or known.averaged
        if known.is_average and len(files) > 1:
            averages.append(path)
            continue
        samples[path] = b"".join(_sample(entries[name]) for name in names if name in entries)
        if path != files[0]:
            same = {name for name in same if name in entries and _equal(first[name], entries[name])}
    copies = _copies(samples, names, key, prefix)
    series = tuple(path for path in samples if path not in copies)
    if len(series) < 2 or len(same) == len(names):
        same = set()  # there is nothing to tell them by
    if layout is None:
        same = {name for name in same if not _is_batch_norm(name, first)}
        layout = _layout({name: first[name] for name in names if name not in same})
    present = read(files[0], key=key).tensors
    stay = {unwrapped_name(prefix) + name for name in layout.names}
    return Contents(
        series,
        layout,
        tuple(name for name in present if name not in stay),
        tuple(name for name in names if name in same and name not in layout.names),
        copies,
        tuple(averages),
        averaged,
    )


def entries_of(path: Path, key: str | None, prefix: str) -> dict[str, Tensor]:
    """The tensors that start with the prefix, named without it; at least one of them is a weight."""
    return _opened(path, key, prefix)[0]


def weights(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that a single file shows to be weights."""
    return {
        name: tensor for name, tensor in entries.items() if tensor.is_floating_point() and not _is_buffer(name, entries)
    }


def _opened(path: Path, key: str | None, prefix: str) -> tuple[dict[str, Tensor], StateDict]:
    state = read(path, key=key)
    prefix = unwrapped_name(prefix)
    found = state.tensors
    entries = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    if any(name.startswith(".") for name in entries):
        raise CheckpointFileError(f"{path}: without the prefix {prefix!r} names begin with a dot: pass '{prefix}.'")
    present = weights(entries)
    if not present:
        beginning = f" that start with {prefix!r}" if prefix else ""
        names = ", ".join([*found][:3]) + (", ..." if len(found) > 3 else "")
        raise CheckpointFileError(f"{path} has no weights{beginning}, only {names or 'values that are no tensors'}")
    for name, tensor in present.items():
        check_readable(path, name, tensor)
    return entries, state


def _is_buffer(name: str, entries: Collection[str]) -> bool:
    module, _, own = name.rpartition(".")
    if own in BUFFERS:
        return True
    if own in ("_u", "_v"):  # torch.nn.utils.parametrizations.spectral_norm
        return ".parametrizations." in f".{module}."
    return own[-2:] in ("_u", "_v") and f"{name[:-2]}_orig" in entries  # torch.nn.utils.spectral_norm


def _is_batch_norm(name: str, entries: Collection[str]) -> bool:
    """Whether this is a parameter of a layer that has statistics: no buffer, though it may never have changed."""
    module, _, own = name.rpartition(".")
    return own in ("weight", "bias") and f"{module}.running_mean".removeprefix(".") in entries


def _layout(entries: Mapping[str, Tensor]) -> Layout:
    """The weights, those that share memory under their first name."""
    names: dict[object, str] = {}
    for name, tensor in entries.items():
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride())
        names.setdefault(memory if tensor.numel() else name, name)
    return Layout(tuple(names.values()), tuple(tuple(entries[name].shape) for name in names.values()))


def _copies(samples: Mapping[Path, bytes], names: Collection[str], key: str | None, prefix: str) -> dict[Path, Path]:
    """Files whose weights another holds, that is not of the same series; the larger series stays."""
    kinds = {path: re.sub(r"\d+", "#", str(path)) for path in samples}
    sizes = {path: sum(other == kind for other in kinds.values()) for path, kind in kinds.items()}
    places: dict[Path, list[Path]] = {}
    copies: dict[Path, Path] = {}
    kept: dict[bytes, list[Path]] = {}
    for path in sorted(samples, key=lambda path: -sizes[path]):
        place = places.setdefault(path.resolve(), [])
        originals = place[:1] or [
            other
            for other in kept.get(samples[path], [])
            if kinds[other] != kinds[path] and _same_weights(path, other, names, key, prefix)
        ]
        place.append(path)
        if originals:
            copies[path] = originals[0]
        else:
            kept.setdefault(samples[path], []).append(path)
    return copies


def _same_weights(path: Path, other: Path, names: Iterable[str], key: str | None, prefix: str) -> bool:
    mine, theirs = (entries_of(file, key, prefix) for file in (path, other))
    return all(_equal(mine.get(name), theirs.get(name)) for name in names)


def _equal(tensor: Tensor | None, other: Tensor | None) -> bool:
    if tensor is None or other is None:
        return False
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    return tensor.data_ptr() == other.data_ptr() or (_sample(tensor) == _sample(other) and torch.equal(tensor, other))


def _sample(tensor: Tensor) -> bytes:
    """Some of its elements: those of two snapshots of weights in training are hardly ever the same."""
    if not tensor.numel():
        return b""
    steps = [max(1, -(-length // _SAMPLED)) for length in tensor.shape[-2:]]
    part = tensor[(0,) * max(tensor.dim() - 2, 0) + tuple(slice(None, None, step) for step in steps)]
    return part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
