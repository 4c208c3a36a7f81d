"""What the server does: the run that `dswag train` does, with its clients on the federation's nodes."""

from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from digits.settings import recipe_of
from dswag.cli.pages import page
from dswag.engines.flower import Flower
from dswag.lab.experiments.recipe import build
from dswag.lab.experiments.run import execute
from dswag.lab.experiments.scoring import Scored
from dswag.runs import RunFolder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Waits for the clients, and runs Algorithms 1 and 2 into a run folder, or goes on with the one that is there."""
    recipe, timeout = recipe_of(context), float(context.run_config["timeout"])

    def make_engine(model: Any, clients: Any, **_: Any) -> Flower:
        return Flower(grid, model, recipe.clients, timeout=timeout, enough=recipe.enough_of(recipe.clients))

    experiment = build(recipe, make_engine=make_engine)
    output = str(context.run_config["output"])
    folder = RunFolder.open(output) if context.run_config["resume"] else RunFolder.create(output, recipe)
    for event in execute(experiment, folder):
        print(f"{event.method}: {event.scores}" if isinstance(event, Scored) else event)
    folder.save_report(page([folder]))
