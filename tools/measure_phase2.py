"""Measures what the settings of phases 2 and 3 and of prediction do on MNIST: the numbers in docs/phase-2.md.

One factor at a time around the defaults, a few together. Phase 1 is trained once for a seed and a number of rounds, and
kept in the work folder; explorations that differ only in which clients and snapshots are used share one training.
A line for each setting and seed is added to the results as it is measured; what is there already is not measured again.

    python tools/measure_phase2.py --data-dir DIR [--seeds 0 1 2] [--sweeps rate epochs] [--work runs/phase2]
    python tools/phase2_tables.py
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

import dswag
from dswag.algorithms.schedules import cycle_snapshots
from dswag.evaluation.metrics import score
from dswag.federation.folds import Snapshots
from dswag.lab.experiments.recipe import Experiment, Recipe, build
from dswag.lab.experiments.scoring import prediction_seed
from dswag.posterior.draws import Kind
from dswag.posterior.moments import Moments

Settings = Mapping[str, Any]
"""What differs from the defaults: settings of `Recipe`, and "columns" of Moments and "kind" of the draws."""

RESULTS = Path(__file__).parents[1] / "results" / "phase2.jsonl"
MILESTONES = (1, 5, 10, 20, 40)
"""Rounds after which θ is kept; a longer phase 1 goes on from a shorter one, since its rate is constant."""


def rates(first: float, last: float | None = None) -> Settings:
    """A ramp of phase 2, to a tenth if nothing else is said."""
    return {
        "explore_learning_rate": first,
        "explore_final_learning_rate": round(first / 10, 6) if last is None else last,
    }


FAST = rates(0.05)
SMALL = {"dataset": "mnist5k"}
MANY = {"snapshots_per_cycle": 5}  # of as many epochs: one after each

SWEEPS: dict[str, list[Settings]] = {
    "rate": [rates(rate) for rate in (0.001, 0.003, 0.01, 0.03, 0.05, 0.1)],
    "final-rate": [rates(0.01, last) for last in (0.001, 0.01)] + [rates(0.05, last) for last in (0.005, 0.05)],
    "epochs": [{"explore_epochs": epochs} for epochs in (1, 2, 5, 10, 20)],
    "cycles": [
        {"explore_epochs": epochs, "cycles": cycles} for epochs, cycles in ((5, 1), (5, 5), (10, 1), (10, 2), (10, 5))
    ],
    "snapshots": [{"snapshots_per_cycle": number} for number in (1, 2, 3, 5)],
    "snapshots-fast": [{**FAST, "snapshots_per_cycle": number} for number in (1, 2, 3, 5)],
    "explorers": [
        {"explorers": explorers, "snapshots_per_cycle": number} for number in (1, 5) for explorers in (2, 3, 5, 10)
    ],
    "explorers-50": [{"clients": 50, "explorers": explorers} for explorers in (5, 10, 25, 50)],
    "rank": [{**MANY, "rank": rank} for rank in (0, 2, 5, 10, 20, 50)]
    + [{**MANY, "rank": rank, "columns": "svd"} for rank in (2, 5, 10, 20)],
    "kind": [{"kind": kind} for kind in ("swag", "diagonal", "low_rank")],
    "scale": [{"scale": scale} for scale in (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)],
    "scale-fast": [{**FAST, "scale": scale} for scale in (0.01, 0.1, 0.3, 1.0, 3.0)],
    "scale-low-rank": [{"kind": "low_rank", "scale": scale} for scale in (0.3, 1.0, 2.0, 3.0)],
    "samples": [{"samples": samples} for samples in (1, 3, 10, 30, 100)],
    "rounds": [{"rounds": rounds} for rounds in MILESTONES],
    "rounds-fast": [{"rounds": rounds, **FAST} for rounds in (1, 5, 20, 40)],
    "rate-small": [{**SMALL, **rates(rate)} for rate in (0.001, 0.003, 0.01, 0.03, 0.05, 0.1)],
    "epochs-small": [{**SMALL, "explore_epochs": epochs} for epochs in (1, 2, 5, 10, 20)],
    "snapshots-small": [{**SMALL, "snapshots_per_cycle": number} for number in (1, 2, 3, 5)],
    "explorers-small": [{**SMALL, "explorers": explorers} for explorers in (2, 3, 5, 10)],
    "kind-small": [{**SMALL, "kind": kind} for kind in ("swag", "diagonal", "low_rank")],
    "scale-small": [{**SMALL, "scale": scale} for scale in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)],
    "rounds-small": [{**SMALL, "rounds": rounds} for rounds in MILESTONES],
}


def main() -> None:
    """Measures the sweeps asked for, and says which point it is at."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--work", type=Path, default=Path("runs/phase2"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    experiment_of = lru_cache(partial(build_experiment, arguments.data_dir))
    known = {json.dumps([record["sweep"], record["settings"], record["seed"]]): record for record in read()}
    by_training: dict[Recipe, list[tuple[str, Settings, Recipe]]] = {}
    for seed in arguments.seeds:
        for sweep in arguments.sweeps:
            for settings in SWEEPS[sweep]:
                if json.dumps([sweep, settings, seed]) not in known:
                    recipe = recipe_of(settings, seed)
                    by_training.setdefault(training_of(recipe), []).append((sweep, settings, recipe))
    for training, points in sorted(by_training.items(), key=lambda item: cost(item[0])):
        experiment = experiment_of(training.data.dataset, training.clients, training.seed)
        for record in measure(experiment, training, points, arguments.work):
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(record["sweep"], record["settings"], record["seed"], record["scores"]["DSWAG"], flush=True)


def read() -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []


def cost(training: Recipe) -> tuple[int, int, int]:
    """What comes first: trainings around the defaults, and short ones, so that most is known early."""
    return training.clients, abs(training.train.rounds - Recipe().train.rounds), training.explore.epochs


def build_experiment(data_dir: str | None, dataset: str, clients: int, seed: int) -> Experiment:
    """The data, the model and the clients of a seed."""
    return build(Recipe(dataset=dataset, data_dir=data_dir, clients=clients, seed=seed))


def recipe_of(settings: Settings, seed: int) -> Recipe:
    """All settings of a point."""
    own = {name: value for name, value in settings.items() if name not in ("columns", "kind")}
    return Recipe.paper(**{"dataset": "mnist", "seed": seed, **own})


def training_of(recipe: Recipe) -> Recipe:
    """The recipe of the training that a point needs: all clients explore, and leave a snapshot after each epoch."""
    return recipe.replaced(
        explorers="all",
        snapshots_per_cycle=recipe.explore.epochs // recipe.explore.cycles,
        **{name: Recipe().flat()[name] for name in ("rank", "samples", "scale")},
    )


def measure(
    experiment: Experiment, training: Recipe, points: list[tuple[str, Settings, Recipe]], work: Path
) -> Iterator[dict[str, Any]]:
    """A record for each point that shares a training."""
    theta = phase_1(experiment, training, work)
    everything = trajectories(experiment, theta, training)
    test = experiment.dataset.test
    before = scores(dswag.ensemble(experiment.model, theta[None], test.inputs), test.targets)
    of_members = lru_cache(partial(member_scores, experiment, everything))
    of_posterior = lru_cache(partial(posterior_scores, experiment, theta, everything))
    for sweep, settings, recipe in points:
        predicted, seconds = of_posterior(recipe, settings.get("columns", "last"), settings.get("kind", "swag"))
        explorers, epochs = selection(recipe)
        yield {
            "sweep": sweep,
            "settings": settings,
            "seed": recipe.seed,
            "scores": {"phase-1 model": before, **predicted, **of_members(explorers, epochs)},
            "client_epochs": explorers * recipe.explore.epochs,
            "megabytes_up": round(explorers * len(epochs) * theta.numel() * theta.element_size() / 1e6, 3),
            "seconds": round(seconds, 2),
        }


def phase_1(experiment: Experiment, training: Recipe, work: Path) -> Float[Tensor, "d"]:
    """θ_T, from the work folder or going on from the latest θ that is there."""
    layout = dswag.Layout.of(experiment.model)
    start = dswag.Server(layout.flatten(experiment.model))
    for rounds in MILESTONES:
        path = (
            work
            / f"{training.data.dataset}-{training.clients}-clients-seed-{training.seed}-rounds-{rounds}.safetensors"
        )
        if not path.exists():
            *_, last = dswag.synchronize(experiment.engine, start, training.replaced(rounds=rounds))
            save_file({"theta": last.theta}, path)
        start = dswag.Server(load_file(path)["theta"], round=rounds)
        if rounds == training.train.rounds:
            break
    return start.theta


def trajectories(experiment: Experiment, theta: Float[Tensor, "d"], training: Recipe) -> Float[Tensor, "w e d"]:
    """Phase 2: each client's weights after each epoch, clients in the order in which they are sampled."""
    thetas = dswag.explore(experiment.engine, theta, training, Snapshots()).fold.result()
    return thetas.view(training.clients, training.explore.epochs, -1)


def selection(recipe: Recipe) -> tuple[int, tuple[int, ...]]:
    """How many clients explore, the first of those sampled, and the epochs after which θ is taken."""
    explorers = recipe.explore.explorers if isinstance(recipe.explore.explorers, int) else recipe.clients
    period = recipe.explore.epochs // recipe.explore.cycles
    return explorers, cycle_snapshots(recipe.explore.epochs, period, recipe.explore.snapshots_per_cycle)


def posterior_scores(
    experiment: Experiment,
    theta: Float[Tensor, "d"],
    everything: Float[Tensor, "w e d"],
    recipe: Recipe,
    columns: Literal["last", "svd"],
    kind: Kind,
) -> tuple[dict[str, Any], float]:
    """Scores of the mean and of the draws from the posterior, and the processor's seconds that the draws took."""
    posterior = moments_of(everything, theta, recipe, columns).posterior()
    test = experiment.dataset.test
    mean = dswag.predictive(experiment.model, posterior, test.inputs, kind="mean")
    started = time.process_time()
    drawn = dswag.predictive(
        experiment.model,
        posterior,
        test.inputs,
        samples=recipe.predict.samples,
        scale=recipe.predict.scale,
        seed=prediction_seed(recipe),
        kind=kind,
    )
    seconds = time.process_time() - started
    return {"mean model": scores(mean, test.targets), "DSWAG": scores(drawn, test.targets)}, seconds


def moments_of(
    everything: Float[Tensor, "w e d"], theta: Float[Tensor, "d"], recipe: Recipe, columns: Literal["last", "svd"]
) -> Moments:
    """Phase 3 of the snapshots that the recipe would have taken."""
    explorers, epochs = selection(recipe)
    moments = Moments(theta, rank=recipe.posterior.rank, columns=columns, dtype=torch.float64)
    for index, thetas in enumerate(everything[:explorers]):
        moments.add(thetas[[epoch - 1 for epoch in epochs]], index=index)
    return moments


def member_scores(
    experiment: Experiment, everything: Float[Tensor, "w e d"], explorers: int, epochs: tuple[int, ...]
) -> dict[str, Any]:
    """Mean scores of the explorers' last weights, each alone, and the scores of the ensemble of all snapshots."""
    test = experiment.dataset.test
    thetas = everything[:explorers, [epoch - 1 for epoch in epochs]]
    alone = [
        scores(dswag.ensemble(experiment.model, theta[None], test.inputs), test.targets) for theta in thetas[:, -1]
    ]
    together = dswag.ensemble(experiment.model, thetas.flatten(0, 1), test.inputs)
    mean = {name: round(fmean(one[name] for one in alone), 6) for name in alone[0]}
    return {"an explorer": mean, "ensemble": scores(together, test.targets)}


def scores(prediction: dswag.Predictive, targets: Tensor) -> dict[str, float]:
    """Accuracy, NLL and ECE (20 bins of equal mass)."""
    found = score(prediction.probabilities, targets)
    return {"accuracy": found.accuracy, "nll": round(found.nll, 6), "ece": round(found.ece_equal_mass, 6)}


if __name__ == "__main__":
    main()
