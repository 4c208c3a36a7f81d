"""Pictures of results: each says what it shows, and needs nothing else."""

import html
import re

import pytest

from dswag.experiments.measurements import MEASURES
from dswag.experiments.plan import NAMES, load
from dswag.experiments.recipe import Recipe, build
from dswag.experiments.trained import train
from dswag.report.figures import draw
from dswag.report.reproduced import by_value, case_label, spread

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

SMALL = {
    "distances": {"at": [0, 10]},
    "surroundings": {"points": 3, "examples": 100},
    "calibration": {"methods": ["phase-1", "dswag"], "resamples": 10},
    "methods": {"methods": ["phase-1", "dswag", "dswag-mean"]},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By measure, the results of two runs."""
    work = tmp_path_factory.mktemp("work")
    found = {measure: [] for measure in MEASURES}
    for clients in (6, 8):
        recipe = Recipe(clients=clients, rounds=1, explore_epochs=1, samples=2)
        trained = train(build(recipe), work)
        config = {"clients": clients, "seed": 0, "model": "mlp", "partition": "iid", "explore_epochs": 1}
        for measure, results in found.items():
            measured = MEASURES[measure](trained, **SMALL.get(measure, {}))
            results.append({"case": {"clients": clients}, "config": config, "measured": measured})
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_drawn_with_words_for_those_who_do_not_see_it(name, results):
    plan = load(name)
    svg = draw(name, plan.title, results[plan.measure])
    assert svg.startswith("<svg ")
    label = html.unescape(re.search(r'aria-label="(.*?)"', svg).group(1))
    assert label.startswith(plan.title.split(":")[0])
    assert label.endswith("2 runs, 1 seed.")
    assert "$" not in svg  # mathematical text that was not drawn
    assert svg == draw(name, plan.title, results[plan.measure])


def test_lines_are_named(results):
    svg = draw("fig7", "NLL", results["methods"])
    assert all(f">{method}<" in svg for method in ("phase-1", "dswag", "dswag-mean"))
    assert ">W = 6<" in draw("fig6", "distance", results["distances"])


def test_nothing_cannot_be_drawn(results):
    with pytest.raises(ValueError, match="fig7 has no results to draw: run dswag reproduce fig7"):
        draw("fig7", "NLL", [])
    with pytest.raises(ValueError, match="there is no picture 'fig9': choose one of fig4"):
        draw("fig9", "NLL", results["methods"])


def test_results_are_grouped_by_what_they_are_of():
    results = [{"config": {"clients": w, "seed": s}, "case": {"kind": s % 2}} for w in (5, 1) for s in (0, 1, 2)]
    groups = by_value(results, "clients", "kind")
    assert list(groups) == [(5, 0), (5, 1), (1, 0), (1, 1)]
    assert [result["config"]["seed"] for result in groups[1, 0]] == [0, 2]


def test_spread_is_the_mean_and_the_standard_deviation_over_seeds():
    mean, deviation = spread([[1.0, 2.0], [3.0, 2.0]])
    assert mean.tolist() == [2.0, 2.0]
    assert deviation.tolist() == pytest.approx([2**0.5, 0.0])
    assert [float(value) for value in spread([4.0])] == [4.0, 0.0]


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"partition": "iid"}, "IID"),
        ({"partition": "dirichlet", "concentration": 0.3}, "Dirichlet 0.3"),
        ({"partition": "shards", "shards_per_client": 2}, "2 shards"),
        ({"partition": "quantity"}, "quantity"),
    ],
)
def test_partitions_have_short_names(config, label):
    assert case_label({"config": config}) == label
