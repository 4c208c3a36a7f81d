"""The command `check`: whether the files of a run are whole and as they were saved."""

from dswag.cli import console
from dswag.cli.options import Check
from dswag.cli.outputs import to_json
from dswag.lab.experiments.recipe import Recipe
from dswag.runs import FILES, RunFolder, RunFolderError
from dswag.runs.files import MANIFEST

_WORDS = {True: "as saved", False: "changed or missing", None: "not in the manifest"}


def check(options: Check) -> None:
    """Reads every file, and compares it with the manifest where there is one.

    Raises:
        RunFolderError: a file that is not what was saved.
        CheckpointError, PosteriorFileError: one that is damaged.
    """
    folder = RunFolder.open(options.run)
    if folder.manifest() is None:
        console.say(f"{folder.path} has no {MANIFEST}: the run is not complete, or was stopped while it was changed")
    found = {
        name: _WORDS[folder.is_as_saved(name)]
        for name in FILES
        if name != MANIFEST and ((folder.path / name).exists() or folder.is_as_saved(name) is False)
    }
    if options.json:
        console.emit(to_json({"run": str(folder.path), "files": found}))
    else:
        console.emit("\n".join(f"{name:<24} {state}" for name, state in found.items()))
    changed = [name for name, state in found.items() if state == _WORDS[False]]
    if changed:
        raise RunFolderError(f"{folder.path} is not as it was saved: {', '.join(changed)}")
    _read_all(folder)


def _read_all(folder: RunFolder) -> None:
    """Raises what the readers do."""
    folder.config(Recipe)
    for read in (folder.partition, folder.history, folder.landscape, folder.metrics, folder.latest_checkpoint):
        read()
    if folder.has_posterior():
        folder.posterior()
