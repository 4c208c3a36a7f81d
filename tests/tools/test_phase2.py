"""The advice on phase 2: its tables are what was measured, and what was measured is what `train` does."""

import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dswag
from dswag.lab.experiments.recipe import Recipe, build

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tables():
    return runpy.run_path(str(TOOLS / "phase2_tables.py"))


@pytest.fixture(scope="module")
def measure():
    return runpy.run_path(str(TOOLS / "measure_phase2.py"))


def record(seed, nll, *, kind="swag", sweep="kind"):
    scores = {"accuracy": 0.9, "nll": nll, "ece": 0.01}
    methods = ("phase-1 model", "an explorer", "mean model", "DSWAG", "ensemble")
    return {
        "sweep": sweep,
        "settings": {"kind": kind},
        "seed": seed,
        "scores": {method: {**scores, "nll": 0.3} for method in methods} | {"DSWAG": scores},
        "client_epochs": 50,
        "megabytes_up": 6.4,
        "seconds": 1.2,
    }


def test_the_tables_in_the_document_are_those_of_the_results(tables):
    document = tables["DOCUMENT"].read_text(encoding="utf-8")
    records = tables["read"](tables["RESULTS"])
    assert document.count("<!-- sweep ") > 10
    assert document == tables["updated"](document, records)


def test_differences_are_paired_and_their_interval_is_students(tables):
    mean, half_width = tables["paired"]([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert mean == 2
    assert half_width == pytest.approx(4.303 / math.sqrt(3))  # standard deviation 1, two degrees of freedom


def test_a_table_shows_what_differs_and_marks_the_default_and_clear_differences(tables):
    records = [
        *(record(seed, nll) for seed, nll in enumerate([0.20, 0.30, 0.40])),
        *(record(seed, nll, kind="diagonal") for seed, nll in enumerate([0.301, 0.400, 0.499])),
        *(record(seed, nll, kind="low_rank") for seed, nll in enumerate([0.40, 0.30, 0.20])),
    ]
    title, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in tables["table"](records).split("\n")
    ]
    assert title == ["`kind`", "NLL", "NLL less the default's"]
    assert rows == [
        ["diagonal", "0.4000 ± 0.0990", "**+0.1000 ± 0.0025**"],
        ["low_rank", "0.3000 ± 0.1000", "+0.0000 ± 0.4969"],
        ["**swag**", "0.3000 ± 0.1000", ""],
    ]


def test_methods_are_compared_to_phase_1_at_the_defaults(tables):
    records = [
        *(record(seed, nll) for seed, nll in enumerate([0.20, 0.21, 0.22])),
        *(record(seed, 0.1, kind="diagonal") for seed in range(3)),
    ]
    lines = tables["methods_table"](records).split("\n")
    assert "| phase-1 model | 0.3000 ± 0.0000 |  |" in lines
    assert "| DSWAG | 0.2100 ± 0.0100 | **−0.0900 ± 0.0248** |" in lines  # 4.303 x 0.01 / sqrt(3)


def test_a_sweep_that_was_not_measured_is_named(tables):
    with pytest.raises(ValueError, match=r"no results of sweep rate: run tools/measure_phase2\.py --sweeps rate"):
        tables["updated"]("<!-- sweep rate --><!-- end -->", [record(0, 0.3)])


def test_a_shared_training_gives_the_posterior_of_one_made_for_it(measure, tmp_path):
    recipe = Recipe(clients=4, rounds=5, explorers=3, explore_epochs=6, cycles=2, snapshots_per_cycle=2, rank=4)
    experiment = build(recipe)
    few = [experiment.dataset.train[part[:50]] for part in experiment.parts]
    experiment = replace(experiment, engine=dswag.InProcess(experiment.model, few))
    training = measure["training_of"](recipe)
    theta = measure["phase_1"](experiment, training, tmp_path)  # goes on from the first round's
    everything = measure["trajectories"](experiment, theta, training)
    shared = measure["moments_of"](everything, theta, recipe, "last").posterior()
    own = dswag.train(experiment.model, [], recipe, engine=experiment.engine)
    assert torch.equal(theta, own.theta)
    for name, tensor in own.posterior.tensors().items():
        assert torch.equal(shared.tensors()[name], tensor)
