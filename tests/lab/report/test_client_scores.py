"""What the page says of clients and conformal sets, for given numbers."""

import pytest

from dswag.evaluation.by_client import ClientScores
from dswag.lab.report.client_scores import clients_chart, sets_section
from dswag.lab.report.page import RunReport, render
from dswag.runs.schema import ConformalSets

CLIENTS = {
    "phase-1 model": [ClientScores(0, 40, 0.5, 1.5, 0.2), ClientScores(3, 60, 0.75, 0.5, 0.1)],
    "DSWAG": [ClientScores(0, 40, 0.625, 1.25, 0.15), ClientScores(3, 60, 0.875, 0.25, 0.05)],
}
SETS = ConformalSets(
    alpha=0.1,
    resolution=0.25,
    counts=((0, 90), (2, 110)),
    coverage=0.913,
    sizes=(0, 60, 40),
    classes={"cat": 0.95, "dog": None, "a heron": 0.8},
    clients=(0.85, None, 0.97),
)


def test_the_worst_and_the_best_client_are_in_the_table():
    html = render([RunReport("r", client_scores=CLIENTS)])
    row = html[html.index("NLL, DSWAG") :][:120]
    assert "1.250" in row
    assert "0.250" in row
    assert "62.5 %" in html
    assert "Scores of 2 clients on their own test examples." in html


def test_methods_of_different_clients_are_no_chart():
    with pytest.raises(ValueError, match="methods of the same clients, got 2 kinds"):
        clients_chart({"a": CLIENTS["DSWAG"], "b": CLIENTS["DSWAG"][:1]})


def test_sets_are_told_in_words():
    words = sets_section(SETS, 0)["words"]
    assert words == (
        "Sets of classes that should hold the right one for 90 % of the examples, from 200 examples that the clients "
        "held out, hold it for 91.3 % of the test examples, with 1.40 classes on average. From client to client that "
        "is 85 to 97 %."
    )
    html = render([RunReport("r", sets=SETS)])
    assert "91.3 % cover; by class: cat 95 %, a heron 80 %." in html
