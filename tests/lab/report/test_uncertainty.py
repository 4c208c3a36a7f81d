"""What the page says of uncertainty, for given numbers."""

from dswag.evaluation.inspection import Telling
from dswag.evaluation.uncertainty import Quantiles, Uncertainty
from dswag.lab.report.page import RunReport, render
from dswag.lab.report.uncertainty import quantile_bars, verdict
from dswag.runs.schema import Examined

FOUND = Uncertainty(
    groups={
        "right": Quantiles(90, (0.0, 0.01, 0.05, 0.2, 0.8), (0.0, 0.001, 0.005, 0.01, 0.02)),
        "wrong": Quantiles(10, (0.1, 0.5, 0.8, 1.0, 1.5), (0.01, 0.02, 0.2, 0.3, 0.4)),
        "foreign": Quantiles(50, (0.2, 0.9, 1.6, 1.9, 2.1), (0.01, 0.1, 0.8, 0.9, 1.0)),
    },
    auroc={"entropy": {"foreign": 0.95, "wrong": 0.9}, "mutual information": {"foreign": 0.9, "wrong": 0.8}},
)
PNG = "data:image/png;base64,iVBORw0KGgo="
EXAMINED = Examined(
    FOUND,
    "letters",
    (Telling(3, "four", "nine", 0.5, PNG),),
    (Telling(8, "", "four", 0.99, PNG), Telling(9, "", "a", 0.9)),
)


def test_the_words_are_those_of_the_medians():
    assert verdict(EXAMINED) == (
        "The median entropy of a prediction is 0.05 for right predictions, 0.8 for wrong ones, 1.6 for foreign inputs "
        "(letters). It tells wrong predictions from right ones with an AUROC of 0.900 and foreign inputs from test "
        "inputs with an AUROC of 0.950; 0.5 would be chance. The model's own part, the draws' disagreement, is 10 % of "
        "it for right predictions, 25 % of it for wrong ones, 50 % of it for foreign inputs."
    )


def test_a_group_that_is_not_there_has_no_word_and_no_bar():
    right = Uncertainty({"right": FOUND.groups["right"]}, {"entropy": {}, "mutual information": {}})
    assert "wrong" not in quantile_bars(right)
    assert "entropy, test, right: median 0.05;" in quantile_bars(right)


def test_quantiles_of_zero_have_a_place_on_the_logarithmic_scale():
    svg = quantile_bars(FOUND)
    assert "mutual information, foreign: median 0.8." in svg
    assert "nan" not in svg
    assert "inf" not in svg.replace("information", "")


def test_the_inputs_that_stand_out_are_shown_with_words():
    html = render([RunReport("a", uncertainty=EXAMINED)])
    assert "<b>The draws disagree most</b>: true class → predicted class, and its probability." in html
    assert "<b>Foreign, and yet confident</b>: predicted class, and its probability." in html
    assert 'alt="Test image 3: four, wrongly predicted as nine with probability 0.50"' in html
    assert 'alt="Foreign image 8, predicted as four with probability 0.99"' in html
    assert "Foreign image 9" not in html  # it has no picture
    assert "Foreign inputs: letters." in html
