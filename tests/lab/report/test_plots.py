"""What the figures show and say, read back from the SVG."""

import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from dswag.data.class_counts import ClassCounts
from dswag.evaluation.bootstrap import ReliabilityBand
from dswag.evaluation.reliability import Reliability
from dswag.lab.report.plots import examples_of_clients, reliability_diagram, training_curve
from dswag.lab.report.svg import PALETTE

SVG = "{http://www.w3.org/2000/svg}"
HISTORY = [
    {"round": 1, "loss": 2.0, "seconds": 0.4, "test_accuracy": 0.5},
    {"round": 2, "loss": 1.0, "seconds": 0.4, "test_accuracy": None},
    {"round": 3, "loss": 0.5, "seconds": 0.4, "test_accuracy": 0.9},
]


def curve(confidence, gap):
    accuracy = tuple(c - g for c, g in zip(confidence, gap, strict=True))
    return Reliability("equal-mass", tuple(confidence), accuracy, (5,) * len(accuracy))


def words(svg):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def points(svg, color=PALETTE[0]):
    """(x, y) of the markers of a color in the order drawn; a legend's marker comes last."""
    uses = [use for use in ElementTree.fromstring(svg).iter(f"{SVG}use") if f"fill: {color}" in use.get("style", "")]
    return [(float(use.get("x")), float(use.get("y"))) for use in uses]


def tick(svg, text):
    found = [node for node in ElementTree.fromstring(svg).iter(f"{SVG}text") if "".join(node.itertext()) == text]
    return float(found[0].get("x"))


def test_each_further_nine_of_confidence_has_the_same_width():
    svg = reliability_diagram({"DSWAG": curve((0.5, 0.9, 0.99, 0.999), (0.0, 0.0, 0.0, 0.0))})
    half, first, second, third = (x for x, _ in points(svg)[:4])
    assert second - first == pytest.approx(third - second, rel=1e-6)
    assert (first - half) / (second - first) == pytest.approx(0.69897, rel=1e-4)  # log10(0.5 / 0.1)
    assert [tick(svg, label) for label in ("0.5", "0.9", "0.99", "0.999")] == pytest.approx(
        [half, first, second, third]
    )


def test_where_there_are_bands_only_curves_that_have_one_are_drawn():
    curves = {name: curve((0.6, 0.7, 0.8), (0.1, 0.0, -0.1)) for name in ("DSWAG", "mean model", "ensemble")}
    banded = ReliabilityBand(curves["DSWAG"], (0.0, -0.1, -0.2), (0.2, 0.1, 0.0))
    svg = reliability_diagram(curves, {"DSWAG": banded})
    assert "DSWAG" in words(svg)
    assert not {"mean model", "ensemble"} & set(words(svg))
    assert "fill-opacity: 0.2" in svg
    assert "fill-opacity: 0.2" not in reliability_diagram(curves)
    assert {"mean model", "ensemble"} <= set(words(reliability_diagram(curves)))


def test_overconfident_bins_lie_above_the_zero_line_and_the_axis_says_so():
    svg = reliability_diagram({"DSWAG": curve((0.6, 0.7, 0.8), (0.1, 0.0, -0.1))})
    over, zero, under = (y for _, y in points(svg)[:3])
    assert over < zero < under  # y grows downwards
    assert zero - over == pytest.approx(under - zero, rel=1e-6)
    assert {"confidence − accuracy", "(above 0: overconfident)", "confidence"} <= set(words(svg))


def test_bins_nearer_to_one_than_the_axis_reaches_stand_at_its_last_tick():
    svg = reliability_diagram({"DSWAG": curve((0.9, 0.9999, 0.999999, 1.0), (0.0, 0.0, 0.0, 0.0))})
    assert {x for x, _ in points(svg)[1:4]} == {tick(svg, "≥ 0.9999")}
    assert "0.9999" in words(reliability_diagram({"DSWAG": curve((0.9, 0.9999), (0.0, 0.0))}))


def test_low_confidences_get_ticks_of_their_own():
    svg = reliability_diagram({"DSWAG": curve((0.2, 0.5, 0.85), (0.0, 0.0, 0.0))})
    assert {"0.2", "0.4", "0.6", "0.8"} <= set(words(svg))


def test_every_curve_is_named_as_given_and_described_in_words():
    names = ["phase-1 model", "clients' ensemble", "<b> & $x_1$", "_private"]
    svg = reliability_diagram({name: curve((0.6, 0.9), (0.1 * i, -0.2)) for i, name in enumerate(names)})
    assert [word for word in words(svg) if word in names] == names
    label = ElementTree.fromstring(svg).get("aria-label")
    assert "<b> & $x_1$: 2 equal-mass bins, largest gap -0.200 at confidence 0.900." in label


def test_curves_beyond_the_colors_differ_by_their_markers():
    svg = reliability_diagram({str(i): curve((0.6, 0.9), (0.1, 0.2)) for i in range(len(PALETTE) + 1)})
    uses = [use for use in ElementTree.fromstring(svg).iter(f"{SVG}use") if "#" in use.get("style", "")]
    assert len({(use.get("{http://www.w3.org/1999/xlink}href"), use.get("style")) for use in uses}) == len(PALETTE) + 1


def test_training_curve_shows_accuracy_in_the_rounds_that_have_one():
    svg = training_curve(HISTORY)
    assert {"training loss", "test accuracy", "global round"} <= set(words(svg))
    drawn = points(svg)
    assert len(drawn) == 3 + 2
    assert [x for x, _ in drawn[3:]] == [drawn[0][0], drawn[2][0]]
    assert ElementTree.fromstring(svg).get("aria-label") == (
        "Phase 1 against the global round: training loss 2 in round 1, 0.5 in round 3; "
        "test accuracy 0.5 in round 1, 0.9 in round 3."
    )


def test_training_curve_without_accuracy_shows_the_loss_alone():
    svg = training_curve([{"round": 1, "loss": 2.0}])
    assert "test accuracy" not in words(svg)
    assert len(points(svg)) == 1


def test_a_long_curve_drops_its_markers():
    assert points(training_curve([{"round": r, "loss": 1.0 / r} for r in range(1, 101)])) == []


def shapes(svg):
    """(left, top, right, bottom, opacity) of the shapes filled with the first color, in the order drawn."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        style = dict(part.split(": ") for part in path.get("style", "").split("; ") if part)
        if style.get("fill") == PALETTE[0] and path.get("clip-path"):
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d"))]
            xs, ys = numbers[::2], numbers[1::2]
            found.append((min(xs), min(ys), max(xs), max(ys), float(style.get("fill-opacity", 1))))
    return found


COUNTS = ClassCounts(("cat", "dog", "owl"), ((90, 0, 10), (40, 0, 0), (0, 90, 0), (0, 0, 1)))


def test_a_cell_stands_for_a_client_and_a_class_that_it_has_and_is_fuller_the_more_it_has():
    *cells, _, _, _, _ = shapes(examples_of_clients(COUNTS))
    assert len(cells) == sum(count > 0 for row in COUNTS.counts for count in row)
    columns, rows = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    placed = {(rows.index(top), columns.index(left)): opacity for left, top, _, _, opacity in cells}
    assert placed == {
        (client, label): pytest.approx(0.12 + 0.88 * math.sqrt(count / 90), abs=1e-5)
        for client, row in enumerate(COUNTS.counts)
        for label, count in enumerate(row)
        if count
    }


def test_a_bar_is_as_long_as_the_client_has_examples():
    *_, first, second, third, fourth = shapes(examples_of_clients(COUNTS))
    lengths = [right - left for left, _, right, _, _ in (first, second, third, fourth)]
    assert [length / lengths[0] for length in lengths] == pytest.approx([1, 0.4, 0.9, 0.01], abs=1e-4)
    assert first[1] < second[1] < third[1] < fourth[1]  # client 0 on top


def test_the_clients_figure_names_classes_clients_and_what_an_opacity_means():
    svg = examples_of_clients(COUNTS)
    assert {"cat", "dog", "owl", "0", "3", "class", "client", "examples"} <= set(words(svg))
    assert words(svg)[-4:] == ["1", "10", "40", "90 examples"]
    assert ElementTree.fromstring(svg).get("aria-label") == (
        "Heat map of the examples of each client by class, and bars of all it has: "
        "1 to 100 examples of 1 to 2 of 3 classes for each of 4 clients."
    )


def test_many_clients_are_shown_by_how_many_have_how_many():
    """60 clients with 2 classes and 3 examples, 20 with one of each: bars of 20 and 60 clients in either panel."""
    svg = examples_of_clients(ClassCounts(("cat", "dog"), ((1, 2),) * 60 + ((1, 0),) * 20))
    heights = [bottom - top for _, top, _, bottom, _ in shapes(svg) if bottom > top]
    assert [height / max(heights) for height in heights] == pytest.approx([1 / 3, 1, 1 / 3, 1])
    assert {"clients", "examples of a client", "classes of a client"} <= set(words(svg))
    assert "1 to 3 examples of 1 to 2 of 2 classes for each of 80 clients." in ElementTree.fromstring(svg).get(
        "aria-label"
    )


@pytest.mark.parametrize(("clients", "classes", "kind"), [(50, 50, "Heat map"), (51, 2, "Histo"), (2, 51, "Histo")])
def test_cells_are_drawn_while_they_can_be_told_apart(clients, classes, kind):
    table = ClassCounts(tuple(map(str, range(classes))), ((7,) * classes,) * clients)
    assert ElementTree.fromstring(examples_of_clients(table)).get("aria-label").startswith(kind)


@pytest.mark.parametrize("entry", [{"round": 1}, {"loss": 0.5}, {"round": 1, "loss": "low"}])
def test_a_round_without_its_numbers_is_refused(entry):
    with pytest.raises(ValueError, match=r"every round of a history must have a number as '(loss|round)', got"):
        training_curve([entry])


def test_figures_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one curve, got none"):
        reliability_diagram({})
    with pytest.raises(ValueError, match="at least one round, got none"):
        training_curve([])


FIGURES = [
    lambda: reliability_diagram({"DSWAG": curve((0.5, 0.95), (0.1, -0.02))}),
    lambda: training_curve(HISTORY),
    lambda: examples_of_clients(COUNTS),
]


@pytest.mark.parametrize("draw", FIGURES)
def test_the_same_figure_has_the_same_bytes_whatever_the_settings_of_matplotlib(draw):
    expected = draw()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        assert draw() == expected
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("draw", FIGURES)
def test_figures_take_the_page_s_text_color_and_leave_the_page_alone(draw):
    svg = draw()
    assert "#000000" not in svg
    assert "#ffffff" not in svg
    assert "fill: currentColor" in svg
    assert "<style" not in svg
    assert "<metadata" not in svg
    assert "DejaVu" not in svg


def test_different_figures_share_no_identifier():
    ids = [
        {element.get("id") for element in ElementTree.fromstring(draw()).iter() if element.get("id")}
        for draw in FIGURES
    ]
    assert all(ids)
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_drawing_needs_no_pyplot_and_scoring_no_matplotlib():
    program = (
        "import sys, dswag.evaluation.metrics; assert 'matplotlib' not in sys.modules;"
        "from dswag.lab.report.plots import training_curve; training_curve([{'round': 1, 'loss': 1.0}]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
