"""What the report says for given numbers, and that the page is whole, accessible and safe."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from samples import LANDSCAPE

from dswag.data.class_counts import ClassCounts
from dswag.evaluation.bootstrap import Interval
from dswag.evaluation.inspection import ClassScores, Inspection, Telling
from dswag.evaluation.metrics import Scores
from dswag.evaluation.reliability import Reliability
from dswag.lab.report.answer import answer, next_steps
from dswag.lab.report.page import RunReport, render
from dswag.lab.report.svg import PALETTE

PHASE_1 = Scores(0.9790, 0.0690, 0.0330, 0.0043, 0.0040, 1000)
DSWAG = Scores(0.9805, 0.0640, 0.0310, 0.0034, 0.0041, 1000)
ENSEMBLE = Scores(0.9798, 0.0636, 0.0312, 0.0035, 0.0038, 1000)
COUNTS = ClassCounts(("cat", "dog"), ((1000, 3000), (5, 0)))
PNG = "data:image/png;base64,iVBORw0KGgo="
INSPECTION = Inspection(
    (ClassScores("four", 1200, 0.975, 0.5, 0.25, "nine"), ClassScores("nine", 0, None, None, None, None)),
    most_uncertain=(Telling(7, "four", "four", 0.513, PNG),),
    most_wrong=(Telling(9, "nine", "four", 0.987, PNG), Telling(3, "nine", "four", 0.9)),
)
CURVE = Reliability("equal-mass", (0.6, 0.99), (0.5, 1.0), (10, 10))


def scores(accuracy=0.9, nll=0.3, ece=0.02, n=1000):
    return Scores(accuracy, nll, 0.1, ece, ece, n)


def full_run(title="ten clients", **settings):
    return RunReport(
        title=title,
        settings={"seed": 3, "phase 1": {"rounds": 15, "stop": None, "rates": (0.1, 0.01), **settings}},
        scores={"phase-1 model": PHASE_1, "DSWAG": DSWAG, "clients' ensemble": ENSEMBLE},
        reliability={"DSWAG": CURVE},
        history=[{"round": 1, "loss": 2.0, "seconds": 0.5}, {"round": 2, "loss": 1.0, "seconds": 0.75}],
        environment={"torch": "2.13.0"},
        notes=["Phase 1 stopped early."],
        inspection={"DSWAG": INSPECTION},
        partition=COUNTS,
        landscape=LANDSCAPE,
    )


OTHER_RUN = replace(full_run("two", clients=5), reliability={"mean model": CURVE}, history=[{"round": 1, "loss": 3.0}])
PAGES = [[full_run("one")], [full_run("one"), OTHER_RUN]]


class Page(HTMLParser):
    """Elements with their attributes in document order, and the text of table cells; fails on tags that do not pair."""

    VOID = frozenset({"meta", "br", "img", "path", "use"})

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.cells = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if {"th", "td"} & set(self.open):
            self.cells[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_better_dswag_is_called_better_with_its_numbers():
    assert answer({"phase-1 model": PHASE_1, "DSWAG": DSWAG}) == (
        "DSWAG gives better probabilities than the phase-1 model: its negative log-likelihood is 0.0640 against 0.0690 "
        "(7.2 % lower), its calibration error 0.0034 against 0.0043 (21 % lower) and its accuracy 98.05 % against "
        "97.90 % (about the same: less than one standard error apart)."
    )


def test_a_worse_dswag_is_called_worse():
    said = answer({"phase-1 model": scores(0.9, 0.1, 0.01), "DSWAG": scores(0.8, 0.125, 0.03)})
    assert said == (
        "DSWAG gives worse probabilities than the phase-1 model: its negative log-likelihood is 0.1250 against 0.1000 "
        "(25 % higher), its calibration error 0.0300 against 0.0100 (200 % higher) and its accuracy 80.00 % against "
        "90.00 % (10.00 points lower)."
    )


def test_numbers_that_print_alike_are_called_equal():
    said = answer({"phase-1 model": scores(nll=0.30001), "DSWAG": scores(nll=0.30002)})
    assert "DSWAG gives probabilities as good as those of the phase-1 model" in said
    assert "0.3000 against 0.3000 (equal)" in said
    assert "90.00 % against 90.00 % (equal)" in said


@pytest.mark.parametrize(
    ("low", "high", "verdict", "remark"),
    [
        (-0.008, -0.002, "better probabilities than", "lower)"),
        (-0.011, 0.001, "probabilities as good as those of", "lower, which may be chance)"),
        (0.001, 0.004, "worse probabilities than", "higher)"),
        (-0.001, 0.004, "probabilities as good as those of", "higher, which may be chance)"),
    ],
)
def test_what_may_be_chance_is_called_neither_better_nor_worse(low, high, verdict, remark):
    worse = "higher" in remark
    methods = {"phase-1 model": DSWAG if worse else PHASE_1, "DSWAG": PHASE_1 if worse else DSWAG}
    said = answer(methods, Interval((low + high) / 2, low, high))
    assert said.startswith(f"DSWAG gives {verdict} the phase-1 model: its negative log-likelihood is ")
    assert said.partition(", its calibration error")[0].endswith(remark)


def test_differences_have_a_column_with_their_intervals():
    run = replace(full_run(), nll_differences={"DSWAG": Interval(-0.005, -0.0081, -0.0019)})
    cells = Page(render([run])).cells
    assert "-0.0050 (-0.0081 to -0.0019)" in cells
    assert "NLL differenceto phase-1 model, 95 % interval" in cells
    assert not any("NLL difference" in cell for cell in Page(render([full_run()])).cells)


def test_a_method_better_than_both_is_named():
    said = answer({"phase-1 model": PHASE_1, "DSWAG": DSWAG, "clients' ensemble": ENSEMBLE})
    assert said.endswith("; the lowest negative log-likelihood of all is 0.0636 (clients' ensemble).")
    assert "of all" not in answer({"phase-1 model": DSWAG, "DSWAG": PHASE_1})


def test_a_calibration_error_of_zero_is_no_divisor():
    said = answer({"phase-1 model": scores(ece=0.0), "DSWAG": scores(ece=0.01)})
    assert "its calibration error 0.0100 against 0.0000 (higher)" in said


@pytest.mark.parametrize(
    ("nll", "ece", "verdict"),
    [
        (0.29, 0.036, "has a lower negative log-likelihood than {}, but is worse calibrated: "),
        (0.29, 0.021, "gives better probabilities than {}: "),
        (0.3, 0.036, "has about the negative log-likelihood of {}, but is worse calibrated: "),
        (0.3, 0.004, "has about the negative log-likelihood of {}, and is better calibrated: "),
        (0.31, 0.004, "has a higher negative log-likelihood than {}, but is better calibrated: "),
        (0.31, 0.036, "gives worse probabilities than {}: "),
    ],
)
def test_calibration_has_a_say_beyond_two_standard_errors(nll, ece, verdict):
    """0.002 on 10,000 examples, so 0.0063 on 1,000."""
    methods = {"phase-1 model": scores(), "FedAvg, same budget": scores(), "DSWAG": scores(nll=nll, ece=ece)}
    assert answer(methods).startswith(f"DSWAG {verdict.format('the phase-1 model')}")
    said = answer(methods, baseline="FedAvg, same budget")
    assert said.startswith(f"DSWAG {verdict.format('FedAvg on the same budget')}")


SURE, CHANCE = Interval(0.02, 0.01, 0.03), Interval(0.01, -0.01, 0.03)
BETTER = Interval(-0.02, -0.03, -0.01)


@pytest.mark.parametrize(
    ("difference", "baseline", "skewed", "tuned", "ece", "words"),
    [
        (SURE, "FedAvg, same budget", True, False, 0.02, ["drifted apart", "--holdout 0.1 --calibrate"]),
        (SURE, "FedAvg, same budget", True, True, 0.05, ["make it shorter (--explore-epochs 2)."]),
        (SURE, "FedAvg, same budget", False, False, 0.02, ["--scale 0.3"]),
        (CHANCE, "FedAvg, same budget", True, False, 0.02, ["may be chance: several seeds"]),
        (BETTER, "FedAvg, same budget", True, False, 0.02, []),
        (BETTER, "FedAvg, same budget", False, False, 0.05, ["fit a temperature"]),
        (BETTER, "phase-1 model", False, False, 0.02, ["--equal-budget"]),
    ],
)
def test_a_reader_is_told_what_to_do_next(difference, baseline, skewed, tuned, ece, words):
    methods = {baseline: scores(), "DSWAG": scores(ece=ece)}
    steps = next_steps(methods, difference, baseline, skewed=skewed, tuned=tuned)
    assert len(steps) == (1 if words else 0)
    assert all(word in steps[0] for word in words)
    html = render([RunReport("a", scores=methods, next_steps=steps)])
    assert ("What to do next." in html) == bool(words)


def test_of_a_run_without_dswag_there_is_nothing_to_do():
    assert next_steps({"mean model": scores()}, None, "phase-1 model", skewed=True, tuned=False) == []


def test_without_dswag_the_best_method_is_named():
    assert answer({"mean model": scores(), "phase-1 model": scores(0.95, 0.2)}) == (
        "By negative log-likelihood the best method here is phase-1 model, with 0.2000 and an accuracy of 95.00 %."
    )
    assert answer({}) == "No method has been evaluated yet."


def test_the_table_holds_every_score_and_marks_the_best_of_each_column():
    html = render([full_run()])
    rows = [["97.90", "0.0690", "0.0043", "0.0040", "0.0330"], ["98.05", "0.0640", "0.0034", "0.0041", "0.0310"]]
    cells = Page(html).cells
    for name, row in zip(["phase-1 model", "DSWAG"], rows, strict=True):
        start = cells.index(name)
        assert cells[start + 1 : start + 6] == row
    best = re.findall(r'<td class="best">(.*?)</td>', html)
    assert best == ["98.05", "0.0034", "0.0310", "0.0636", "0.0038"]
    assert "1,000 test examples" in html


def test_classes_have_a_row_and_examples_a_picture_with_words():
    page = Page(render([full_run()]))
    start = page.cells.index("four")
    assert page.cells[start : start + 6] == ["four", "1,200", "97.50", "50.00", "0.2500", "nine"]
    start = page.cells.index("nine", start + 6)
    assert page.cells[start : start + 6] == ["nine", "0", "–", "–", "–", "–"]
    assert [image["alt"] for image in page.all("img")] == [
        "Test image 7: four, correctly predicted as four with probability 0.51",
        "Test image 9: nine, wrongly predicted as four with probability 0.99",
    ]
    assert "Most often mistaken for" not in render([RunReport("r")])


def test_scores_that_print_alike_are_marked_alike_and_a_lone_method_is_not_marked():
    both = {"DSWAG": scores(nll=0.30001), "mean model": scores(nll=0.30002)}
    assert render([RunReport("r", scores=both)]).count('class="best"') == 2 * 5
    assert 'class="best"' not in render([RunReport("r", scores={"DSWAG": scores()})])


def test_settings_are_grouped_and_their_values_read_as_words():
    run = RunReport(
        "r", settings={"seed": 3, "phase 2": {"rates": (0.1, [1e-5]), "stop": None, "augment": True, "factors": ()}}
    )
    page = Page(render([run]))
    cells = dict(zip(page.cells[::2], page.cells[1::2], strict=True))
    assert cells == {"seed": "3", "rates": "0.1, 1e-05", "stop": "none", "augment": "yes", "factors": "none"}
    assert len(page.all("caption")) == 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [((0.5, 0.75), "1.25 s"), ((60.0, 60.0), "2.0 min"), ((7200.0, 1800.0), "2.5 h")],
)
def test_the_time_of_phase_1_is_told_in_a_fitting_unit(seconds, words):
    history = [{"round": i, "loss": 1.0, "seconds": value} for i, value in enumerate(seconds, start=1)]
    assert f"the posterior, {words}." in render([RunReport("r", history=history)])


def test_a_time_that_a_round_does_not_tell_is_not_made_up():
    history = [{"round": 1, "loss": 1.0, "seconds": 2.0}, {"round": 2, "loss": 1.0}]
    assert "the posterior." in render([RunReport("r", history=history)])


def test_the_clients_are_shown_with_what_they_have():
    """Counts by hand: 4,000 and 5 examples, two and one class, 75 % and all of the most frequent one."""
    html = render([RunReport("r", partition=COUNTS)])
    cells = Page(html).cells
    assert "How the 4,005 training examples are spread over\n2 clients." in html
    for name, row in {
        "Examples": ["5", "2,002", "4,000"],
        "Classes": ["1", "2", "2"],
        "Share of its most frequent class": ["75.0 %", "87.5 %", "100.0 %"],
    }.items():
        assert cells[cells.index(name) + 1 :][:3] == row
    assert cells[-12:-8] == ["Client", "cat", "dog", "All"]
    assert cells[-8:] == ["0", "1,000", "3,000", "4,000", "1", "5", "0", "5"]


def test_many_clients_are_summed_up_without_a_row_for_each():
    table = ClassCounts(("cat", "dog"), ((1, 2),) * 51)
    page = Page(render([RunReport("r", partition=table)]))
    assert "Examples" in page.cells
    assert "Client" not in page.cells
    assert not page.all("details")


def test_a_run_without_a_partition_has_no_word_of_clients():
    assert "Clients" not in render([RunReport("r", scores={"DSWAG": DSWAG})])


def test_the_landscape_comes_between_the_clients_and_the_classes():
    html = render([full_run()])
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == [
        "Calibration",
        "Phase 1",
        "Clients",
        "Landscape",
        "Classes and examples",
        "Settings",
        "Environment",
    ]
    assert "Loss on 1,200 training examples" in html
    assert "along the 2 leading eigenvectors of its covariance, with 25 % of" in html
    cells = Page(html).cells
    start = cells.index("Eigenvector")
    assert cells[start + 6 : start + 12] == ["1", "20.0 %", "2", "0.5000", "0.2500", "0.3750"]


def test_a_run_without_a_landscape_has_no_word_of_it():
    html = render([replace(full_run(), landscape=None)])
    assert "Landscape" not in html
    assert "Eigenvector" not in html


def test_several_runs_are_compared_first_with_the_settings_in_which_they_differ():
    worse = RunReport(
        "fifty", {"seed": 3, "phase 1": {"rounds": 15, "clients": 50}}, {"phase-1 model": DSWAG, "DSWAG": PHASE_1}
    )
    html = render([full_run("ten", clients=10), worse])
    page = Page(html)
    assert "<h1>2 runs compared</h1>" in html
    said = "DSWAG has a lower negative log-likelihood than the phase-1 model in 1 of the 2 runs that have both, and is"
    assert f"{said} worse calibrated in 0." in html
    start = page.cells.index("clients")
    assert page.cells[start + 1 : start + 3] == ["10", "50"]
    assert "rounds" not in page.cells[start - 2 : start + 3]
    assert page.cells[page.cells.index("fifty") :][1:4] == ["0.0640", "0.0690", "–"]
    targets = {attributes["id"] for attributes in page.all("section")}
    assert {attributes["href"] for attributes in page.all("a")} == {f"#{target}" for target in targets}
    assert html.index("Settings in which the runs differ") < html.index('<section id="run-1">')


def test_runs_that_cannot_be_compared_say_so():
    assert "No run compares DSWAG with the phase-1 model." in render([RunReport("a"), RunReport("b")])


@pytest.mark.parametrize("runs", PAGES)
def test_the_page_is_whole_and_accessible(runs):
    page = Page(render(runs))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(page.all("svg")) == 5 * len(runs)
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes["scope"] in ("col", "row", "rowgroup") for attributes in page.all("th"))
    assert len(page.all("h1")) == 1


@pytest.mark.parametrize("runs", PAGES)
def test_the_page_needs_no_other_file_and_runs_no_script(runs):
    html = render(runs)
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert all(
        a.get("xlink:href", "#").startswith("#") and a.get("href", "#").startswith("#") for _, a in page.elements
    )
    assert set(re.findall(r"https?://[^\"]+", html)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]+)\)", html))
    assert "@import" not in html


def test_whatever_a_user_writes_stays_text():
    bad = "<script>alert(1)</script>\"'&"
    run = RunReport(
        title=bad,
        settings={bad: bad, f"group {bad}": {bad: [bad]}},
        scores={bad: scores(), "other": scores()},
        reliability={bad: CURVE},
        environment={bad: bad},
        notes=[bad],
        partition=ClassCounts((bad,), ((1,),)),
    )
    for runs in ([run], [run, RunReport("second", scores={bad: scores()})]):
        html = render(runs)
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        assert not [tag for tag, _ in Page(html).elements if tag == "script"]


def contrast(one, other):
    """WCAG 2 contrast ratio of two #rrggbb colors."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_curves_stand_out_in_light_and_dark():
    schemes = re.findall(r"--page: (#\w+); --ink: (#\w+); --soft: (#\w+);.*?--mark: (#\w+);", render([RunReport("r")]))
    assert len(schemes) == 2
    for page, ink, soft, mark in schemes:
        assert contrast(ink, page) >= 7
        assert contrast(ink, mark) >= 7
        assert contrast(soft, page) >= 4.5
        assert all(contrast(color, page) >= 3 for color in PALETTE)


def test_the_same_runs_give_the_same_bytes():
    assert render([full_run()]) == render([full_run()])


def test_a_report_of_nothing_is_refused():
    with pytest.raises(ValueError, match="a report needs at least one run, got none"):
        render([])


def test_methods_scored_on_different_examples_are_refused():
    with pytest.raises(ValueError, match=r"same examples, got num_examples \{'DSWAG': 1000, 'mean model': 999\}"):
        RunReport("r", scores={"DSWAG": scores(), "mean model": scores(n=999)})
