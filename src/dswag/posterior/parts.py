"""A posterior of which each process has a part: its files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dswag.core.atomic_files import write_text
from dswag.core.serialization import as_bytes, as_text
from dswag.core.shards import Shards, number_and_count, told_by_all

INDEX = ".index.json"
"""How the name of the file ends that lists the parts' files."""

_FORMAT = "dswag-posterior-index"


def own_file(path: Path) -> Path:
    """Where this process puts its part of what is saved at `path`."""
    number, count = number_and_count()
    return path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}{path.suffix}")


def write_index(path: Path, fingerprint: str) -> None:
    """Lists the parts beside `path` with their fingerprints, once all processes have written theirs."""
    number, count = number_and_count()
    told = [as_text(said) for said in told_by_all(as_bytes(fingerprint))]
    if number == 0:
        names = [f"{path.stem}-{n + 1:05}-of-{count:05}{path.suffix}" for n in range(count)]
        listed = {"format": _FORMAT, "format_version": 1, "parts": dict(zip(names, told, strict=True))}
        write_text(index_of(path), json.dumps(listed, indent=2))
    told_by_all(as_bytes("done"))


def index_of(path: Path) -> Path:
    """The name of the list of the parts of what was saved at `path`; the list's own, if it is that."""
    return path if path.name.endswith(INDEX) else path.with_name(f"{path.name}{INDEX}")


def listed(index: Path) -> list[tuple[Path, str]]:
    """The files of the parts and their fingerprints.

    Raises:
        ValueError: a file that is no such list.
    """
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT or found["format_version"] != 1 or not found["parts"]:
            raise ValueError("it is of another kind, or of a newer version")
        for name in found["parts"]:
            if Path(name).name != name:
                raise ValueError(f"{name} does not lie beside it")
        return [(index.parent / name, str(fingerprint)) for name, fingerprint in found["parts"].items()]
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError("it is no list of parts") from error


def joined(layouts: Sequence[Shards], parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors [d] and [k, d] of the whole, from those of all parts.

    Raises:
        ValueError: parts of different posteriors, or that leave elements out.
    """
    if len(layouts) < len(parts):
        raise ValueError("some of its parts are whole posteriors")
    whole, tensors = layouts[0].whole, parts[0]
    out = {name: tensor.new_empty(*tensor.shape[:-1], whole.d) for name, tensor in tensors.items()}
    filled = torch.zeros(whole.d, dtype=torch.bool)
    for layout, own in zip(layouts, parts, strict=True):
        rows = {name: tensor.shape[:-1] for name, tensor in own.items()}
        if layout.whole != whole or rows != {name: tensor.shape[:-1] for name, tensor in tensors.items()}:
            raise ValueError("its parts are of different posteriors")
        for start, mine, size in layout.pieces:
            filled[start : start + size] = True
            for name, tensor in own.items():
                out[name][..., start : start + size] = tensor[..., mine : mine + size]
    if not filled.all():
        raise ValueError(f"its parts leave out {int((~filled).sum())} of {whole.d} elements")
    return out
