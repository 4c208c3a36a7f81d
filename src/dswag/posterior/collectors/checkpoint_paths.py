"""Which files and folders are checkpoints, and in which order: as the tools that write them leave them."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from dswag.posterior.collectors.state_dicts import INDEX, SUFFIXES, CheckpointFileError, is_distributed

_STATE = re.compile(
    r"(optimizer|optim|scheduler|scaler|sampler|dl_state_dict|rng_state|random_states|training_args)([_.-]?\d+)*"
)
"""Names of what trainers save beside the weights, without the suffix."""

_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}")
"""The name of a file that holds a part of one checkpoint, without the suffix."""


def checkpoint_files(paths: str | Path | Iterable[str | Path]) -> tuple[Path, ...]:
    """The checkpoints in their order: in a folder the natural one, in which epoch9 comes before epoch10.

    Paths are taken in the order given, unless that is the one in which a shell puts what its pattern finds: it writes
    epoch10 before epoch9, so they are taken in natural order too.

    Each path returned is one snapshot: a file, the index of a checkpoint in several files, or a folder that
    torch.distributed.checkpoint wrote. A folder holds those that lie in it, and those in folders in it that are
    numbered, such as checkpoint-500, and hold one each. Optimizers, schedulers and states of random generators beside
    the weights are none.

    Raises:
        CheckpointFileError: a file whose name ends in none of `dswag.posterior.collectors.state_dicts.SUFFIXES`, or
            which is a part of a checkpoint without an index; a folder that DeepSpeed wrote, or with folders in it that
            hold several.
        FileNotFoundError: no such file or folder.
        ValueError: no checkpoints at all.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if _as_a_shell_orders(given):
        given = sorted(given, key=_natural)
    found = dict.fromkeys(chain.from_iterable(map(_checkpoints, given)))  # the index of several parts comes once
    if not found:
        raise ValueError("there are no checkpoints to take moments of: name at least one file or folder")
    return tuple(found)


def _as_a_shell_orders(paths: Sequence[Path]) -> bool:
    """By their characters; in some languages whatever the case, and in Python part by part."""
    texts = [str(path) for path in paths]
    return texts in (sorted(texts), sorted(texts, key=str.casefold)) or list(paths) == sorted(paths)


def _natural(path: Path) -> list[list[str | int]]:
    """Digits as numbers; texts and numbers alternate from a text on, so that like is compared with like."""
    parts = (*path.parts[:-1], path.stem)
    return [
        [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", text))] for text in parts
    ]


def _checkpoints(path: Path) -> list[Path]:
    """What a path that was given stands for."""
    if path.is_dir():
        inside = _inside(path)
        if not inside:
            raise ValueError(f"{path} holds no checkpoints: expected files that end in {', '.join(SUFFIXES)}")
        return inside
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.name.endswith(INDEX):
        return [path]
    if path.suffix not in SUFFIXES:
        raise CheckpointFileError(f"{path} must end in one of {', '.join(SUFFIXES)}, which tell how to read it")
    if shard := _SHARD.fullmatch(path.stem):
        index = path.with_name(f"{shard[1]}{path.suffix}{INDEX}")
        if not index.exists():
            raise CheckpointFileError(f"{path} is a part of a checkpoint, whose index {index.name} is not beside it")
        return [index]
    return [path]


def _inside(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in natural order."""
    if is_distributed(folder):
        return [folder]
    if any(folder.glob("*_optim_states.pt")):
        raise CheckpointFileError(
            f"{folder} was written by DeepSpeed, whose files hold parts of the weights: make one file of it with the "
            "zero_to_fp32.py beside it, or the command ds_to_universal"
        )
    entries = [path for path in folder.iterdir() if not path.name.startswith(".") and not _is_state(path)]
    files = {
        checkpoint: None
        for path in entries
        if path.is_file() and (path.suffix in SUFFIXES or path.name.endswith(INDEX))
        for checkpoint in _checkpoints(path)
    }
    numbered = [path for path in entries if path.is_dir() and re.search(r"\d$", path.name)]
    return sorted([*files, *chain.from_iterable(map(_the_only_one, numbered))], key=_natural)


def _the_only_one(folder: Path) -> list[Path]:
    """The checkpoint in a folder, if there is one."""
    inside = _inside(folder)
    if len(inside) > 1:
        raise CheckpointFileError(
            f"{folder} holds {len(inside)} checkpoints, such as {inside[0].name} and {inside[1].name}: a folder with "
            "folders in it must hold one in each; name the one that is meant"
        )
    return inside


def _is_state(path: Path) -> bool:
    return _STATE.fullmatch(path.name if path.is_dir() else path.stem) is not None
