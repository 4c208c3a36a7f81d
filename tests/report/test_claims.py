"""What is concluded from results that are made up, and the page that the repository's own results give."""

import subprocess
import sys
from pathlib import Path

import pytest

from dswag.report.claims import CLAIMS, STANDARDS, Standard, direction, findings, with_error
from dswag.report.results_page import markdown_table, results_page

ROOT = Path(__file__).resolve().parents[2]


def run(clients, seed=0, model="mlp", **measured):
    return {
        "config": {"clients": clients, "seed": seed, "model": model, "partition": "iid"},
        "case": {},
        "measured": measured,
        "seconds": 1800.0,
    }


def course(clients, accuracies, seed=0, model="mlp"):
    return run(clients, seed, model, rounds=[{"test_accuracy": accuracy} for accuracy in accuracies])


def scores(nll, ece):
    return {"nll": nll, "ece_equal_mass": ece, "accuracy": 0.9}


def verdicts(**results):
    by_figure = {name.replace("_", "-"): runs for name, runs in results.items()}
    return {(found.claim, found.figure): found for found in findings(by_figure, STANDARDS["mnist"])}


def test_without_results_no_claim_has_run():
    assert {found.verdict for found in findings({}, STANDARDS["mnist"])} == {"has not run"}
    assert len(findings({}, STANDARDS["mnist"])) == len(CLAIMS)


def test_rounds_are_counted_to_the_first_that_is_good_enough():
    slow, fast = course(50, [0.9, 0.95, 0.97, 0.981]), course(1, [0.98, 0.97])
    found = verdicts(fig5_left=[slow, fast])[CLAIMS[0][0], "fig5-left"]
    assert found.verdict == "holds (one seed)"
    assert found.numbers == "rounds to a test accuracy of 98%: W = 1: 1.0; W = 50: 4.0"
    never = verdicts(fig5_left=[course(50, [0.9]), fast])[CLAIMS[0][0], "fig5-left"]
    assert never.numbers.endswith("W = 50: not within the rounds")
    assert never.verdict == "holds (one seed)"


def test_results_against_the_claim_are_called_so():
    runs = [course(1, [0.97]), course(50, [0.99]), course(50, [0.0], model="cnn")]
    assert (
        verdicts(fig5_left=runs)[CLAIMS[1][0], "fig5-left"].verdict == "does not hold: the other way round (one seed)"
    )
    runs = [course(1, [0.980]), course(50, [0.981])]
    found = verdicts(fig5_left=runs)[CLAIMS[1][0], "fig5-left"]
    assert found.verdict == "no difference between W = 1 and 50 (one seed)"


def test_seeds_give_the_error_that_a_difference_is_held_against():
    others = {"swag-global": scores(0.5, 0.2), "swag-local": scores(0.5, 0.05)}

    def runs(one, fifty):
        return [
            run(clients, seed, dswag=scores(nll, 0.1), **others)
            for clients, values in ((1, one), (50, fifty))
            for seed, nll in enumerate(values)
        ]

    noisy, sharp = runs((0.1, 0.3), (0.2, 0.4)), runs((0.1, 0.11), (0.2, 0.21))
    assert verdicts(fig7=noisy)[CLAIMS[6][0], "fig7"].verdict == "no difference between W = 1 and 50"
    found = verdicts(fig7=sharp)
    assert found[CLAIMS[6][0], "fig7"].verdict == "holds"
    assert found[CLAIMS[7][0], "fig7"].verdict == "holds"
    assert found[CLAIMS[9][0], "fig7"].verdict == "does not hold"
    assert "W = 1: 0.1050 ± 0.0071" in found[CLAIMS[6][0], "fig7"].numbers


def test_flatness_is_what_is_lost_on_the_way():
    def line(accuracies):
        return {"at": [0, 50, 100], "directions": {"every element": {"accuracy": accuracies}}}

    flat = [run(5, **line([0.98, 0.98, 0.97])), run(50, **line([0.98, 0.97, 0.969]))]
    steep = [run(5, **line([0.98, 0.9, 0.5])), run(50, **line([0.98, 0.7, 0.3]))]
    assert verdicts(fig6=flat)[CLAIMS[4][0], "fig6"].verdict == "holds"
    found = verdicts(fig6=steep)
    assert found[CLAIMS[4][0], "fig6"].verdict == "does not hold"
    assert found[CLAIMS[5][0], "fig6"].verdict == "holds (one seed)"


def test_skew_that_hurts_is_named_with_what_calibration_gives_back():
    def skewed(partition, plain, calibrated):
        measured = {
            "phase-1": scores(0.1, 0.01),
            "dswag": scores(plain, 0.01),
            "dswag-calibrated": scores(calibrated, 0.01),
        }
        made = run(10, **measured)
        return {**made, "config": {**made["config"], **partition}}

    runs = [
        skewed({"partition": "iid"}, 0.09, 0.09),
        skewed({"partition": "dirichlet", "concentration": 0.3}, 0.12, 0.1),
        skewed({"partition": "shards", "shards_per_client": 2}, 0.5, 0.09),
    ]
    found = verdicts(fig8=runs)[CLAIMS[-1][0], "fig8"]
    assert found.verdict == "does not hold for Dirichlet 0.3, 2 shards"
    assert "IID: -0.0100, calibrated -0.0100; Dirichlet 0.3: +0.0200, calibrated +0.0000" in found.numbers
    assert verdicts(fig8=runs[:1])[CLAIMS[-1][0], "fig8"].verdict == "holds"


def test_confidence_is_weighted_by_the_examples_of_each_bin():
    def curve(confidence):
        band = {"curve": {"count": [1, 3], "confidence": [0.6, confidence], "accuracy": [0.5, 0.9]}}
        return {"dswag": {"band": band, "ece_equal_mass": 0.1}}

    runs = [run(1, **curve(0.9)), run(50, **curve(1.0))]
    found = verdicts(fig5_right=runs)[CLAIMS[3][0], "fig5-right"]
    assert "W = 1: 0.0250; W = 50: 0.1000" in found.numbers  # (0.1 + 3 · 0) / 4, (0.1 + 3 · 0.1) / 4
    assert found.verdict == "holds (one seed)"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0], [1.2], 1),
        ([1.0], [0.8], -1),
        ([1.0], [1.05], 0),
        ([1.0, 1.4], [1.3, 1.7], 0),
        ([1.0, 1.01], [1.3, 1.31], 1),
    ],
)
def test_a_difference_must_be_more_than_chance(first, second, expected):
    assert direction(first, second, 0.1) == expected


def test_numbers_are_told_with_their_error_where_there_is_one():
    assert with_error([0.5]) == "0.5000"
    assert with_error([0.4, 0.6], 2) == "0.50 ± 0.14"


def test_the_page_has_every_figure_and_says_what_has_not_run():
    planned = {"fig7": ("NLL", 4), "table-cifar10": ("VGG16", 2), "fig8": ("skew", 1)}
    measured = {name: scores(0.1, 0.01) for name in ("dswag", "swag-global", "swag-local")}
    small = {"fig7": [run(1, 3, **measured)]}
    measured["swag-local"]["nll_difference"] = {"to": "dswag", "estimate": 0.25, "low": -0.5, "high": 1.0}
    full = {"fig7": [run(1, **measured), run(5, **measured), run(5, 1, **measured)]}
    text = results_page("# Results", planned, {"mnist": full, "mnist5k": small})
    assert "| fig7 | NLL | 3 of 4, seeds 0, 1, 1.5 h | 1 of 4, seeds 3, 0.5 h |" in text
    assert "| fig8 | skew | – | – |" in text
    assert "| 1 | dswag | 0.9000 | 0.1000 | 0.0100 |" in text
    assert "needs a GPU, and none was at hand" in text
    assert text.count("| 5 | swag-local | +0.2500 [-0.5000, +1.0000] |") == 1  # of the lowest seed
    assert "NLL less that of dswag [95 %]" in text
    assert text.count("Has not run.") == 1
    assert "![NLL](../results/fig7.svg)" in text
    assert "![NLL](../results/mnist5k/fig7.svg)" in text


def test_fewer_test_examples_need_larger_differences():
    assert Standard(10_000, 0.98).least("NLL") == 0.003
    assert Standard(100, 0.98).least("NLL") == pytest.approx(0.03)
    assert Standard(100, 0.98).least("rounds") == 1.0


def test_no_cell_breaks_its_table():
    assert markdown_table(["a"], [["b|c"]]).splitlines() == ["| a |", "| --- |", "| b¦c |"]


def test_the_repository_s_page_is_what_its_results_give():
    """Regenerate with python tools/write_results.py."""
    done = subprocess.run([sys.executable, ROOT / "tools" / "write_results.py", "--check"], check=False)
    assert done.returncode == 0
