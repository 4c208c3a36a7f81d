"""Measures explorers that train alone against explorers that are averaged, from one phase 1, with and without + T.

One line of JSON for each cell (data set, partition, seed) goes to results/exploration.jsonl; cells there are not
measured again. The rows with + T have a temperature fitted to the held-out examples, every row in the same way.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from dswag.core.randomness import derive_seed
from dswag.data import holdout
from dswag.evaluation.metrics import score
from dswag.evaluation.temperature import fit_temperature, temper
from dswag.lab.baselines import METHODS
from dswag.lab.baselines.method import Problem, complete
from dswag.lab.baselines.phases import phase_1
from dswag.lab.experiments.measurements import PHASE_1
from dswag.lab.experiments.recipe import Recipe, build
from dswag.lab.experiments.scoring import environment

RESULTS = Path(__file__).parents[1] / "results" / "exploration.jsonl"
PARTITIONS: Mapping[str, dict[str, Any]] = {
    "iid": {},
    "dirichlet-0.3": {"partition": "dirichlet", "concentration": 0.3},
    "dirichlet-0.1": {"partition": "dirichlet", "concentration": 0.1},
    "two-labels": {"partition": "shards", "shards_per_client": 2},
}
FORMS: Mapping[str, dict[str, Any]] = {
    "alone": {"explore_rounds": 1, "explore_learning_rate": 0.01, "explore_final_learning_rate": 0.001},
    "alone-fast": {"explore_rounds": 1, "explore_learning_rate": 0.05, "explore_final_learning_rate": 0.005},
    "averaged": {},
    "averaged-slow": {"explore_learning_rate": 0.01, "explore_final_learning_rate": 0.001},
}
"""The paper's form and the default, and each with the other's rates."""
SHOWN = {
    "phase-1": "the phase-1 model",
    "dswag-mean alone": "explored alone (the paper's form): mean",
    "dswag alone": "explored alone: draws",
    "ensemble alone": "explored alone: ensemble",
    "dswag-mean averaged": "explorers averaged (default): mean",
    "dswag averaged": "explorers averaged: draws",
    "ensemble averaged": "explorers averaged: ensemble",
    "fedavg averaged": "FedAvg, same epochs and rates",
}
PAGE = Path(__file__).parents[1] / "docs" / "phase-2.md"
START, END = "<!-- table: tools/measure_exploration.py -->", "<!-- end of exploration -->"


def rows(recipe: Recipe) -> Iterator[tuple[str, dict[str, float]]]:
    """Scores of each way to predict."""
    experiment = build(recipe, workers=1)
    clients = [experiment.dataset.train[part] for part in experiment.parts]
    first = Problem(experiment.model, clients, recipe, workers=1)
    test = experiment.dataset.test
    kept: list[Any] = [
        holdout.split(data, recipe.calibration.holdout, derive_seed(recipe.seed, number))[1]
        for number, data in enumerate(clients)
    ]
    inputs, targets = torch.cat([data.inputs for data in kept]), torch.cat([data.targets for data in kept])

    def scored(method: Any, problem: Problem) -> dict[str, float]:
        predictor, cost = complete(method, problem)
        predicted = predictor(test.inputs).probabilities
        temperature = fit_temperature(predictor(inputs).probabilities, targets)
        found = {"temperature": temperature, "megabytes": cost.bytes / 1e6, "examples": cost.examples}
        for name, probabilities in (("", predicted), (" + T", temper(predicted, temperature))):
            found |= _numbers(probabilities, test.targets, name)
        return found

    yield "phase-1", scored(PHASE_1, first)
    shared = {phase_1: first.done[phase_1]}
    for form, settings in FORMS.items():
        problem = Problem(experiment.model, clients, recipe.replaced(**settings), workers=1, done=dict(shared))
        names = ["dswag", "dswag-mean", "ensemble", *(["fedavg"] if "averaged" in form else [])]
        for name in names:
            yield f"{name} {form}", scored(METHODS[name], problem)


def _numbers(probabilities: Tensor, targets: Tensor, name: str) -> dict[str, float]:
    scores = score(probabilities, targets)
    return {f"accuracy{name}": scores.accuracy, f"nll{name}": scores.nll, f"ece{name}": scores.ece_equal_mass}


def table(results: Path = RESULTS) -> str:
    """The rows of docs/phase-2.md, means over seeds."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in sorted(results.read_text(encoding="utf-8").splitlines()):
        cell = json.loads(line)
        cells.setdefault((cell["dataset"], cell["partition"]), []).append(cell["rows"])
    lines = ["| data | | NLL | NLL + T | ECE | ECE + T |", "| --- | --- | --- | --- | --- | --- |"]
    for (dataset, partition), seeds in sorted(cells.items(), key=lambda item: list(PARTITIONS).index(item[0][1])):
        named = f"{dataset}, {partition} ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})"
        for row, title in SHOWN.items():
            values = [fmean(seed[row][name] for seed in seeds) for name in ("nll", "nll + T", "ece", "ece + T")]
            lines.append(f"| {named} | {title} | " + " | ".join(f"{value:.4f}" for value in values) + " |")
            named = ""
    return "\n".join(lines)


def write_table() -> None:
    """Puts the table into the document."""
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> None:
    """Measures what is not there yet, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="mnist5k")
    parser.add_argument("--partitions", nargs="+", default=list(PARTITIONS), choices=list(PARTITIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--holdout", type=float, default=0.1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed, name in product(options.seeds, options.partitions):
        cell = {"dataset": options.dataset, "partition": name, "clients": options.clients, "seed": seed}
        cell["holdout"] = options.holdout
        lines = options.output.read_text(encoding="utf-8").splitlines() if options.output.exists() else []
        if any(cell.items() <= json.loads(line).items() for line in lines):
            continue
        settings = {key: value for key, value in cell.items() if key != "partition"}
        recipe = Recipe(**settings, **PARTITIONS[name])
        line = json.dumps({**cell, "rows": dict(rows(recipe)), "environment": environment()})
        with options.output.open("a") as file:
            file.write(line + "\n")
    if options.output == RESULTS:
        write_table()


if __name__ == "__main__":
    main()
