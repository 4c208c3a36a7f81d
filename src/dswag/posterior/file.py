"""What the file of a posterior says beside its tensors, and how it is read: safetensors, of which nothing executes."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dswag.core.checksums import fingerprint
from dswag.core.parameters import Layout
from dswag.core.provenance import provenance
from dswag.core.shards import Shards

_FORMAT = "dswag-posterior"
_FORMAT_VERSION = 1

PosteriorT = TypeVar("PosteriorT")


class PosteriorFileError(ValueError):
    """A file holds no posterior that this version can read."""


def metadata(
    tensors: Mapping[str, Tensor],
    *,
    count: int,
    layout: Layout | None,
    within_scale: float,
    between_scale: float,
    temperature: float,
    link: str | None,
) -> dict[str, str]:
    """What goes into the file beside the tensors; floats to the last bit, and a fingerprint of everything."""
    described = {
        "format": _FORMAT,
        "format_version": str(_FORMAT_VERSION),
        **provenance(),
        "count": str(count),
        "within_scale": repr(within_scale),
        "between_scale": repr(between_scale),
        "temperature": repr(temperature),
        "link": json.dumps(link),
        "layout": json.dumps(_described(layout)),
    }
    return {**described, "fingerprint": _fingerprint(tensors, described)}


def read(
    path: str | Path,
    tensors: Sequence[str],
    make: Callable[..., PosteriorT],
    *,
    device: str | torch.device,
    known: str | None = None,
) -> PosteriorT:
    """What `make` makes of those of the named tensors that are in the file, and of the metadata.

    Where its fingerprint is known, the file has to be of that.

    Raises:
        PosteriorFileError: a file that is truncated, damaged, of another kind or of a newer format, or that `make`
            refuses.
        FileNotFoundError: no such file.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            described = file.metadata() or {}
            _check_format(path, described)
            found = {name: file.get_tensor(name) for name in tensors if name in file.keys()}  # noqa: SIM118
            if "fingerprint" in described and described["fingerprint"] != _fingerprint(found, described):
                raise ValueError("its content is not what was saved")
            if known is not None and described.get("fingerprint") != known:
                raise ValueError("it is not the file that was saved with the others")
            return make(
                **found,
                count=int(described["count"]),
                layout=_layout(json.loads(described["layout"])),
                within_scale=float(described["within_scale"]),
                between_scale=float(described["between_scale"]),
                temperature=float(described["temperature"]),
                link=json.loads(described["link"]),
            )
    except (SafetensorError, AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, PosteriorFileError):
            raise
        raise PosteriorFileError(f"{path} is truncated, damaged or no posterior: {error}; save it again") from error


def _described(layout: Layout | None) -> Any:
    """The layout as JSON has it."""
    if isinstance(layout, Shards):
        whole = [layout.whole.names, layout.whole.shapes]
        return {"whole": whole, "shapes": layout.shapes, "firsts": layout.firsts}
    return None if layout is None else [layout.names, layout.shapes]


def _layout(described: Any) -> Layout | None:
    """What `_described` made JSON of."""
    if isinstance(described, dict):
        whole = _layout(described["whole"])
        if whole is None:
            raise ValueError("a part of a posterior needs the layout of the whole")
        return Shards(whole.names, tuple(map(tuple, described["shapes"])), whole, tuple(described["firsts"]))
    return None if described is None else Layout(tuple(described[0]), tuple(map(tuple, described[1])))


def _fingerprint(tensors: Mapping[str, Tensor], described: Mapping[str, str]) -> str:
    words = (f"{name}: {value}" for name, value in sorted(described.items()) if name != "fingerprint")
    return fingerprint(tensors, *words)


def _check_format(path: str | Path, described: dict[str, str]) -> None:
    if described.get("format") != _FORMAT:
        raise PosteriorFileError(
            f"{path} is no dswag posterior: expected format {_FORMAT}, got {described.get('format')}"
        )
    if int(described["format_version"]) > _FORMAT_VERSION:
        raise PosteriorFileError(
            f"{path} has format version {described['format_version']}, this dswag reads up to {_FORMAT_VERSION}: "
            f"install dswag {described.get('dswag', '')} or newer"
        )
