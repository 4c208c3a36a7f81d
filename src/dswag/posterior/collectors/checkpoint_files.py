"""Moments of the weights in checkpoint files; the module itself is not needed."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.core.adapters import names_in_files
from dswag.core.parameters import Layout
from dswag.posterior.collectors.checkpoint_contents import Contents, contents, entries_of, weights
from dswag.posterior.collectors.checkpoint_paths import checkpoint_files
from dswag.posterior.collectors.state_dicts import CheckpointFileError, check_readable
from dswag.posterior.moments import Moments

__all__ = ["CheckpointFileError", "Contents", "checkpoint_files", "contents", "moments_from_files"]


ADAPTED = "base_model."
"""How names of the weights of a model begin that has adapters of PEFT."""


def moments_from_files(
    paths: str | Path | Iterable[str | Path],
    *,
    rank: int = 20,
    columns: Literal["last", "svd"] = "last",
    centering: Literal["final", "running"] = "final",
    layout: Layout | None = None,
    key: str | None = None,
    prefix: str = "",
    found: Callable[[Contents], None] = lambda contents: None,
    taken_in: Callable[[Path], None] = lambda path: None,
) -> Moments:
    """The moments of the weights in checkpoint files, each of which is one snapshot; one file at a time is in memory.

    Files are read twice: first to see what in them changes, and which are copies of others (`contents`). Statistics of
    BatchNorm layers are not weights: collect them anew for every draw from the posterior (`dswag.update_batch_norm`).

    Args:
        paths: files in the order of the snapshots, or folders of them, whose checkpoints are taken in natural order:
            epoch9 before epoch10 (`checkpoint_files`).
        rank: K, the most deviation columns kept.
        columns: "last" keeps those of the last K files, "svd" the K principal directions of all.
        centering: as for `Moments`.
        layout: the entries that make up θ, such as `Layout.of(model)`; others are ignored. Without one, θ is what
            `contents` finds in the files, in the first one's order, and every file must hold the same.
        key: where a nested file holds the state dict, such as "state_dict"; use dots for deeper levels.
        prefix: take only entries whose names start with this, such as "model.", and remove it from their names.
        found: called once with what counts in the files, and what does not.
        taken_in: called with each file whose weights are in the moments.

    Raises:
        CheckpointFileError: a file that is truncated, of another kind, or readable only by executing code; NaN or
            infinite weights; or entries that differ between files. The error names the file and the entry.
        FileNotFoundError: no such file or folder.
        ValueError: no checkpoints at all, or settings that `Moments` refuses.
    """
    known = contents(paths, layout=layout, key=key, prefix=prefix)
    found(known)
    expected, source = None, "the layout"
    if layout is None:
        layout, source = known.layout, str(known.files[0])
        expected = set(weights(entries_of(known.files[0], key, prefix)))
    moments = Moments(rank=rank, columns=columns, centering=centering, layout=layout)
    for path in known.files:
        moments.add(_theta(path, entries_of(path, key, prefix), layout, expected, source))
        taken_in(path)
    return moments


def _as_in_the_model(entries: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The weights of an adapter's file under the names that the layout has for them."""
    places = {name: next((found for found in names_in_files(name) if found in entries), None) for name in layout.names}
    return {name: entries[found] for name, found in places.items() if found is not None}


def _theta(
    path: Path, entries: Mapping[str, Tensor], layout: Layout, expected: Collection[str] | None, source: str
) -> Float[Tensor, "d"]:
    """The file's θ, once it is certain that it fits; `source` says what it has to fit."""
    if layout.names[0].startswith(ADAPTED):
        entries = {**_as_in_the_model(entries, layout), **entries}
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
        check_readable(path, name, entry)
    more = [] if expected is None else [name for name in weights(entries) if name not in expected]
    if more:
        raise CheckpointFileError(f"{path} has {more[0]}, which {source} has not: is it a checkpoint of another model?")
    theta = layout.flatten(entries)
    for name, values in layout.views(theta).items():
        if not torch.isfinite(values).all():
            raise CheckpointFileError(f"{path}: {name} is NaN or infinite, which would spoil all moments: leave it out")
    return theta
