"""A run that is over in a moment."""

import pytest

from dswag.lab.experiments.recipe import Recipe, build
from dswag.lab.experiments.trained import train


@pytest.fixture(scope="session")
def tiny_recipe():
    return Recipe(clients=4, rounds=2, explore_epochs=2, samples=3, holdout=0.1, stop_accuracy=1.0)


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe, tmp_path_factory):
    return train(build(tiny_recipe), tmp_path_factory.mktemp("work"))
