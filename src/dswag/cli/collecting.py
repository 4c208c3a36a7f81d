"""The command `collect`: a posterior of checkpoints, without a run."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dswag.cli import console
from dswag.cli.options import Collect
from dswag.cli.outputs import to_json, writing
from dswag.config import ConfigError
from dswag.core.atomic_files import remove_leftovers
from dswag.posterior.collectors.checkpoint_files import Contents, checkpoint_files, moments_from_files

_NAMES = 6


def collect(options: Collect) -> None:
    """Writes the posterior of checkpoints to a file."""
    if not options.files:
        raise ConfigError("collect needs checkpoints: name at least two files, or a folder of them")
    if options.output.suffix.lower() != ".safetensors":
        raise ConfigError(f"the output must end in .safetensors, got {options.output}")
    if options.rank < 0 or options.rank == 1 or (options.rank == 0 and options.columns == "svd"):
        allowed = "at least 2" if options.columns == "svd" else "0 or at least 2"
        raise ConfigError(f"rank must be {allowed} for --columns {options.columns}, got {options.rank}")
    files = checkpoint_files(options.files)
    if len(files) < 2:
        raise ConfigError(f"a posterior needs at least 2 checkpoints, got {len(files)}")
    if options.output.resolve() in [path.resolve() for path in files]:
        raise ConfigError(f"{options.output} is one of the checkpoints: choose another output")
    if not options.output.parent.is_dir():
        raise ConfigError(f"{options.output} cannot be written: {options.output.parent} is no folder")
    told: list[Contents] = []
    with console.display() as display:

        def found(contents: Contents) -> None:
            told.append(contents)
            _say(contents)
            if len(contents.files) < 2:
                raise ConfigError(f"a posterior needs at least 2 checkpoints, got {len(contents.files)}")
            display.begin("checkpoint", len(contents.files))

        moments = moments_from_files(
            files,
            rank=options.rank,
            columns=options.columns,
            key=options.key,
            prefix=options.prefix,
            found=found,
            taken_in=lambda path: display.advance(_name(path, files)),
        )
    posterior = moments.finish()
    remove_leftovers(options.output)
    with writing(options.output), _ending_when_told():
        posterior.save(options.output)
    columns, parameters = posterior.deviations.shape
    if options.json:
        made_of = {"checkpoints": posterior.count, "parameters": parameters, "columns": columns}
        console.emit(to_json({"posterior": str(options.output), **made_of, "left_out": told[0].left_out}))
    else:
        what = f"{posterior.count} checkpoints, {parameters:,} parameters, {columns} columns"
        console.emit(f"posterior of {what}: {options.output}")


def _say(contents: Contents) -> None:
    """What was found, and does not count."""
    if contents.averaged:
        console.say("training averaged its weights: the current ones are taken, not the averages beside them")
    for path in contents.averages:
        console.say(f"left out: {path}, which holds an average of the weights that training went through")
    for path, other in contents.copies.items():
        console.say(f"left out: {path}, which holds the same weights as {other}")
    others = [name for name in contents.left_out if name not in contents.unchanged]
    if others:
        console.say(f"left out: {_first(others)}")
    if contents.unchanged:
        console.say(f"left out, as the same in all files, so frozen or no weights: {_first(contents.unchanged)}")


def _first(names: Sequence[str]) -> str:
    more = "" if len(names) <= _NAMES else f" and {len(names) - _NAMES} more"
    return f"{', '.join(names[:_NAMES])}{more}"


def _name(path: Path, files: Sequence[Path]) -> str:
    """What tells a file from the others: its name, or where that is the same in all folders, the folder's too."""
    alone = len({file.name for file in files}) == len(files)
    return path.name if alone else f"{path.parent.name}/{path.name}"


@contextmanager
def _ending_when_told() -> Iterator[None]:
    """A process that is told to end within does so as after an error, so that it leaves nothing half written."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
