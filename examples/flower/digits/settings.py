"""The settings of a run, which Flower hands to server and nodes alike."""

from flwr.app import Context

from dswag.lab.experiments.recipe import Recipe

OF_THE_SERVER = ("output", "timeout", "resume")


def recipe_of(context: Context) -> Recipe:
    """The settings under [tool.flwr.app.config], and what `flwr run --run-config` made of them."""
    settings = {name: value for name, value in context.run_config.items() if name not in OF_THE_SERVER}
    return Recipe.checked(settings, source="[tool.flwr.app.config]")
