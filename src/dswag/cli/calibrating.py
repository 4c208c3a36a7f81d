"""The command `calibrate`: scales and temperature of a run's posterior, fitted to what its clients held out."""

from dswag.algorithms.calibration import calibrate as fit
from dswag.cli import console
from dswag.cli.commands import evaluate, opened
from dswag.cli.options import Calibrate, Evaluate
from dswag.cli.outputs import to_json
from dswag.runs import RunFolder


def calibrate(options: Calibrate) -> None:
    """Fits a run's posterior, saves it, and scores the run again."""
    folder = RunFolder.open(options.run)
    experiment, posterior = opened(folder, options)
    fitted = fit(experiment.engine, posterior, experiment.recipe)
    with folder.held():
        folder.save_posterior(fitted)
    found = {name: getattr(fitted, name) for name in ("within_scale", "between_scale", "temperature")}
    console.say(", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in found.items()))
    if options.json:
        console.emit(to_json({"run": str(folder.path), **found}))
    evaluate(Evaluate(run=options.run, data_dir=options.data_dir, save=True), quiet=options.json)
