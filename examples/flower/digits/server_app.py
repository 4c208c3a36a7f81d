"""What the server does: the run that `dswag train` does, with its clients on the federation's nodes."""

from dataclasses import replace

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from digits.settings import recipe_of
from dswag.cli.pages import page
from dswag.engines.flower import Flower
from dswag.experiments.recipe import build
from dswag.experiments.run import execute
from dswag.experiments.scoring import Scored
from dswag.run_folder import RunFolder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Waits for the clients, and runs Algorithms 1 and 2 into a run folder."""
    recipe = recipe_of(context)
    experiment = build(recipe)  # the model, and the test set
    engine = Flower(grid, experiment.model, recipe.clients, timeout=float(context.run_config["timeout"]))
    folder = RunFolder.create(str(context.run_config["output"]), recipe)
    for event in execute(replace(experiment, engine=engine), folder):
        print(f"{event.method}: {event.scores}" if isinstance(event, Scored) else event)
    folder.save_report(page([folder]))
