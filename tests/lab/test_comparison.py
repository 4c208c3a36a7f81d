"""Comparisons: each outcome is saved, found again, and averaged; folders of other settings are refused."""

import errno
import json
import math
import os
from dataclasses import replace

import pytest
import torch

from dswag.config import ConfigError
from dswag.core.atomic_files import SaveError
from dswag.core.randomness import derive_seed
from dswag.data import holdout
from dswag.evaluation.metrics import Scores, score
from dswag.evaluation.out_of_distribution import Detection
from dswag.evaluation.temperature import fit_temperature, temper
from dswag.lab import comparison
from dswag.lab.baselines import METHODS
from dswag.lab.baselines.costs import Cost
from dswag.lab.baselines.method import Method, Problem, complete
from dswag.lab.comparison import (
    MEASURES,
    ComparisonError,
    ComparisonFolder,
    Failure,
    Outcome,
    chosen,
    compare_methods,
    summary,
)
from dswag.lab.experiments import foreign
from dswag.lab.experiments.recipe import Recipe, build

TINY = Recipe(clients=3, rounds=1, explore_epochs=2, samples=2, holdout=0.1, seed=4)


def outcome(method="dswag", seed=0, nll=0.5):
    detection = {"entropy": Detection(0.9, 0.3)}
    return Outcome(
        method,
        seed,
        Scores(0.9, nll, 0.1, 0.02, 0.03, 10),
        Scores(0.9, nll - 0.1, 0.1, 0.01, 0.02, 10),
        detection,
        3.0,
        Cost(1, 2, 3, 4.0, 5),
        0.5,
    )


def test_methods_are_scored_saved_and_not_run_again(tmp_path, monkeypatch):
    folder = ComparisonFolder.open(tmp_path / "new" / "folder", TINY)
    methods = chosen(["dswag", "ensemble"], TINY)
    first = list(compare_methods(TINY, methods, [4, 5], folder))
    assert [(o.method, o.seed) for o in first] == [("dswag", 4), ("ensemble", 4), ("dswag", 5), ("ensemble", 5)]
    assert all(o.scores.num_examples == 1000 and o.epochs == 3.0 for o in first)
    assert {o.cost.examples for o in first} == {3 * 3601}  # of 4,000, a tenth of each client held out

    monkeypatch.setattr(comparison, "build", lambda *_, **__: pytest.fail("built again"))
    again = ComparisonFolder.open(folder.path, replace(TINY, seed=5))
    assert list(compare_methods(TINY, methods, [4, 5], again)) == first


def test_what_was_interrupted_is_run_and_the_rest_is_kept(tmp_path):
    folder = ComparisonFolder.open(tmp_path, TINY)
    folder.save(outcome("dswag", 4, nll=123.0))
    both = list(compare_methods(TINY, chosen(["dswag", "dswag-mean"], TINY), [4], folder))
    assert both[0].scores.nll == 123.0
    assert both[1].scores.nll < 3


def test_the_second_scores_of_a_method_are_after_the_temperature_that_fits_what_was_held_out():
    experiment = build(TINY)
    clients = [experiment.dataset.train[part] for part in experiment.parts]
    problem, method, test = Problem(experiment.model, clients, TINY), METHODS["dswag-mean"], experiment.dataset.test
    found = comparison.measure(method, experiment, problem)

    predictor, _ = complete(method, problem)
    seeds = [derive_seed(TINY.seed, client) for client in range(len(clients))]
    kept = [holdout.split(data, 0.1, seed)[1] for data, seed in zip(clients, seeds, strict=True)]
    inputs, targets = (torch.cat([getattr(data, name) for data in kept]) for name in ("inputs", "targets"))
    temperature = fit_temperature(predictor(inputs).probabilities, targets)
    assert found.tempered == score(temper(predictor(test.inputs).probabilities, temperature), test.targets)
    assert found.tempered != found.scores


def test_a_method_that_fails_does_not_stop_the_others_and_is_tried_again(tmp_path):
    def run(trial):
        raise RuntimeError("no convergence")

    folder = ComparisonFolder.open(tmp_path, TINY)
    methods = [Method("broken", "fails", run), METHODS["dswag-mean"]]
    first, again = (list(compare_methods(TINY, methods, [4], folder)) for _ in range(2))
    assert first[0] == Failure("broken", 4, "no convergence")
    assert first[1].method == "dswag-mean"
    assert again == first


def test_folder_of_other_settings_is_refused_unless_overwritten(tmp_path):
    ComparisonFolder.open(tmp_path, TINY).save(outcome())
    other = replace(TINY, rounds=2, batch_size=7)
    with pytest.raises(ComparisonError, match=r"other settings: rounds \(1, not 2\), batch_size \(50, not 7\); choose"):
        ComparisonFolder.open(tmp_path, other)
    assert ComparisonFolder.open(tmp_path, other, overwrite=True).outcome("dswag", 0) is None
    assert ComparisonFolder.open(tmp_path, other).outcome("dswag", 0) is None


def test_where_the_data_lie_makes_no_other_settings(tmp_path):
    ComparisonFolder.open(tmp_path, TINY).save(outcome())
    moved = replace(TINY, data_dir="elsewhere")
    assert ComparisonFolder.open(tmp_path, moved).outcome("dswag", 0) == outcome()


def test_what_a_killed_process_left_of_an_outcome_goes_when_it_is_saved(tmp_path):
    folder = ComparisonFolder.open(tmp_path, TINY)
    (tmp_path / ".dswag-seed-0.json.x").mkdir()
    folder.save(outcome())
    assert {path.name for path in tmp_path.iterdir()} == {"config.toml", "dswag-seed-0.json"}


def test_a_disk_that_is_full_is_one_error_with_advice(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = ComparisonFolder.open(tmp_path, TINY)
    monkeypatch.setattr(comparison, "write_text", full_disk)
    with pytest.raises(SaveError, match=r"dswag-seed-0.json cannot be written \(No space left on device\): make room"):
        folder.save(outcome())


def test_damaged_outcomes_are_named(tmp_path):
    folder = ComparisonFolder.open(tmp_path, TINY)
    folder.save(outcome())
    (tmp_path / "dswag-seed-0.json").write_text('{"method": "dswag"}')
    with pytest.raises(ComparisonError, match=r"dswag-seed-0.json is damaged or foreign: delete it"):
        folder.outcome("dswag", 0)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ComparisonError, match="cannot be written to"):
        ComparisonFolder.open(tmp_path / "file" / "folder", TINY)


@pytest.mark.parametrize(
    ("names", "settings", "fault"),
    [
        (["dswag", "nonsense"], {}, "methods must be some of dswag, .*, got nonsense"),
        ([], {}, "got none"),
        (["dswag"], {"stop_accuracy": 0.9}, "leave stop_accuracy out"),
        (["fedavg"], {"explore_final_learning_rate": 0.5}, "explore_final_learning_rate must be the smaller one"),
        (["dswag", "noise"], {"holdout": 0.0}, "noise are tuned on held-out examples: set holdout"),
    ],
)
def test_what_cannot_be_compared_is_refused(names, settings, fault):
    with pytest.raises(ConfigError, match=fault):
        chosen(names, replace(TINY, **settings))


def test_names_given_twice_are_run_once():
    assert chosen(["swa", "dswag", "swa"], TINY) == [METHODS["swa"], METHODS["dswag"]]


def test_summary_is_of_means_and_standard_deviations():
    found = summary([outcome(nll=0.2), outcome("swa", nll=0.4), outcome(seed=1, nll=0.3), outcome(seed=2, nll=0.7)])
    assert list(found) == ["dswag", "swa"]
    assert found["dswag"]["nll"].mean == pytest.approx(0.4)
    assert found["dswag"]["nll"].std == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert found["swa"]["nll"].std is None
    assert MEASURES["nll"].text(found["dswag"]["nll"]) == "0.4000 ± 0.2646"
    assert MEASURES["accuracy"].text(found["swa"]["accuracy"]) == "90.00"


def test_inputs_out_of_distribution_keep_every_pixel_of_the_digits():
    experiment = build(TINY)
    moved, digits = foreign.inputs(experiment.dataset, None), experiment.dataset.test.inputs
    assert torch.equal(moved.flatten(1).sort(1).values, digits.flatten(1).sort(1).values)
    assert torch.equal(moved[..., :14, :14], digits[..., 14:, 14:])


def test_outcomes_are_plain_json(tmp_path):
    folder = ComparisonFolder.open(tmp_path, TINY)
    folder.save(outcome())
    assert json.loads((tmp_path / "dswag-seed-0.json").read_text())["scores"]["nll"] == 0.5
    assert folder.outcome("dswag", 0) == outcome()
