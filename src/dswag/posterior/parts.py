"""A posterior of which each process has a part: its draws, and its files."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from dswag.core.atomic_files import write_text
from dswag.core.randomness import generator_for
from dswag.core.serialization import as_bytes, as_text
from dswag.core.shards import Shards, number_and_count, told_by_all
from dswag.posterior import sampling

INDEX = ".index.json"
"""How the name of the file ends that lists the parts' files."""

_FORMAT = "dswag-posterior-index"


def draw(
    mean: Float[Tensor, "d_part"],
    parts: sampling.Parts,
    k: int,
    layout: Shards,
    *,
    weight: float,
    seed: int,
    first: int,
    out: Float[Tensor, "n d_part"],
) -> None:
    """Fills `out` with this process's elements of the draws that `sampling.draw` makes of the whole, bit for bit.

    It goes through those chunks of the whole θ in which it has elements, with zeros in place of the others' elements.
    """
    d = layout.whole.d
    z2 = sampling.low_rank_normals(mean, k, seed, first, len(out)).mul_(weight)
    buffer = mean.new_empty(sampling.GROUP, sampling.CHUNK)
    for block, chunks in groupby(_chunks(layout), key=lambda chunk: chunk // sampling.BLOCK):
        generators = [generator_for(seed, number, block) for number in range(first, first + len(out))]
        drawn = block * sampling.BLOCK
        for begin in chunks:
            width = min(sampling.CHUNK, d - begin)
            pieces = _inside(layout, begin, begin + width)
            centre, spread, columns = (mean.new_zeros(*rows, width) for rows in ((), (), (k,)))
            std = low_rank = None
            for there, own in pieces:
                std, low_rank = parts(own)
                centre[there] = mean[own]
                spread[there] = 0 if std is None else std
                columns[:, there] = 0 if low_rank is None else low_rank
            rows = mean.new_zeros(len(out), width)
            for row, generator in zip(rows, generators, strict=True) if std is not None else ():
                for _ in range(drawn, begin, sampling.CHUNK):  # chunks before, of which only others have elements
                    sampling.fill_normal(mean.new_empty(sampling.CHUNK), generator)
                sampling.fill_normal(row, generator)
            drawn = begin + sampling.CHUNK
            torch.addcmul(centre, rows, spread, out=rows)
            if low_rank is not None:
                sampling.add_low_rank(rows, columns, z2, first % sampling.GROUP, buffer[:, :width])
            for there, own in pieces:
                out[:, own] = rows[:, there]


def _chunks(layout: Shards) -> list[int]:
    """Where the chunks of the whole θ begin in which this process has elements."""
    size = sampling.CHUNK
    touched = (range(start // size, -(-(start + count) // size)) for start, _, count in layout.pieces)
    return [number * size for number in sorted(set(chain.from_iterable(touched)))]


def _inside(layout: Shards, begin: int, end: int) -> list[tuple[slice, slice]]:
    """This process's elements of a part of the whole θ: where they lie in that part, and in its own θ."""
    inside = []
    for start, own, count in layout.pieces:
        low, high = max(start, begin), min(start + count, end)
        if low < high:
            inside.append((slice(low - begin, high - begin), slice(own + low - start, own + high - start)))
    return inside


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
