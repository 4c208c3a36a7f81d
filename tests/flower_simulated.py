"""Runs a recipe in Flower's simulation, in a process of its own: arguments are the run folder and the settings."""

import json
import sys

from dswag.experiments.federation import simulated
from dswag.experiments.recipe import Recipe, build
from dswag.experiments.run import execute
from dswag.run_folder import RunFolder

if __name__ == "__main__":
    recipe = Recipe(**json.loads(sys.argv[2]))
    folder = RunFolder.create(sys.argv[1], recipe)
    simulated(recipe, lambda make_engine: list(execute(build(recipe, make_engine=make_engine), folder)))
