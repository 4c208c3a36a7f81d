"""The command `collect`: a posterior of checkpoints, without a run."""

from dswag.cli import console
from dswag.cli.options import Collect
from dswag.cli.outputs import to_json, writing
from dswag.config import ConfigError
from dswag.posterior.collectors.checkpoint_files import checkpoint_files, contents, moments_from_files

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
    left_out = contents(files[0], key=options.key, prefix=options.prefix).left_out
    if left_out:
        more = "" if len(left_out) <= _NAMES else f" and {len(left_out) - _NAMES} more"
        console.say(f"left out: {', '.join(left_out[:_NAMES])}{more}")
    with console.display() as display:
        display.begin("checkpoint", len(files))
        moments = moments_from_files(
            files,
            rank=options.rank,
            columns=options.columns,
            key=options.key,
            prefix=options.prefix,
            taken_in=lambda path: display.advance(path.name),
        )
    posterior = moments.posterior()
    with writing(options.output):
        posterior.save(options.output)
    columns, parameters = posterior.deviations.shape
    if options.json:
        found = {"checkpoints": posterior.count, "parameters": parameters, "columns": columns, "left_out": left_out}
        console.emit(to_json({"posterior": str(options.output), **found}))
    else:
        made_of = f"{posterior.count} checkpoints, {parameters:,} parameters, {columns} columns"
        console.emit(f"posterior of {made_of}: {options.output}")
