"""Pictures of results: each says what it shows, and needs nothing else."""

import html
import re

import pytest
from lab.report.made_results import course, run, scores

from dswag.lab.experiments.measurements import MEASURES
from dswag.lab.experiments.plan import NAMES, load
from dswag.lab.experiments.recipe import Recipe, build
from dswag.lab.experiments.trained import train
from dswag.lab.report.figures import draw
from dswag.lab.report.reproduced import by_value, partition_label, spread
from dswag.lab.report.svg import PALETTE

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


def test_words_are_light_where_the_page_is_dark(results):
    svg = draw("fig7", "NLL", results["methods"])
    assert re.search(
        r"<style>:root\{color:#\w{6}\}@media\(prefers-color-scheme:dark\)\{:root\{color:#\w{6}\}\}</style>", svg
    )
    assert "fill: currentColor" in svg


def words(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_each_model_has_a_row_of_its_own_and_workers_keep_their_color():
    runs = [course(w, [0.8, 0.9], model=model) for model in ("mlp", "cnn") for w in (1, 5)]
    svg = draw("fig5-left", "course", runs)
    assert {"test accuracy, MLP", "test accuracy, CNN"} <= set(words(svg))
    assert [word for word in words(svg) if word.startswith("W = ")] == ["W = 1", "W = 5"]
    lines = re.findall(r'<path[^>]*clip-path[^>]*style="fill: none; stroke: (#\w+)', svg)
    assert lines.count(PALETTE[0]) == lines.count(PALETTE[1]) == 6  # two rows of three panels


def test_skew_has_a_panel_for_each_number_of_workers_and_length_in_the_order_of_skew():
    runs = [
        run(w, partition=partition, epochs=epochs, dswag=scores(0.1), far=scores(5.0 if w == 50 else 0.1))
        for w in (10, 50)
        for epochs in (2, 20)
        for partition in (("shards", 2), ("iid", None), ("dirichlet", 0.3))
    ]
    svg = draw("fig8", "skew", runs)
    assert {"2 epochs alone", "20 epochs alone", "test NLL, W = 10", "test NLL, W = 50"} <= set(words(svg))
    assert [word for word in words(svg) if word in ("IID", "Dirichlet 0.3", "2 shards")][:3] == [
        "IID",
        "Dirichlet 0.3",
        "2 shards",
    ]


def test_a_method_beyond_the_axis_has_an_arrow_at_its_edge():
    methods = {name: scores(0.1 + 0.01 * i) for i, name in enumerate(("phase-1", "dswag", "ensemble"))}
    near, far = ([run(10, **methods, other=scores(nll))] for nll in (0.2, 5.0))
    assert words(draw("fig8", "skew", far)).count("▲") == 1
    assert "above the axis" in words(draw("fig8", "skew", far))
    assert "▲" not in draw("fig8", "skew", near)


def test_tables_are_drawn_in_the_order_of_their_nll():
    methods = {name: scores(nll, calibrated_nll=nll) for name, nll in (("b", 0.3), ("c", 0.4), ("a", 0.2))}
    svg = draw("table-mnist", "methods", [run(10, **methods)])
    assert [word for word in words(svg) if word in methods] == ["a", "b", "c"]


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
    assert partition_label({"config": config}) == label
