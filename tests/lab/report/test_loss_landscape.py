"""What the report says of the loss around the mean, by hand from a few numbers, and that its pictures are whole."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from samples import LANDSCAPE

from dswag.lab.report.loss_landscape import landscape_section, loss_along_lines, loss_on_plane, verdict
from dswag.lab.report.svg import INK
from dswag.runs.schema import Landscape


def of(*lines, at=(-2.0, 0.0, 2.0)):
    """A landscape of these lines, without a plane."""
    around = replace(LANDSCAPE.surroundings, at=at, eigenvalues=(1.0,) * len(lines), lines={"train": lines}, planes=())
    return Landscape(100, around, {})


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (0.25 - math.log(0.96), "by which the probability of the true class falls by 4.0 %. Over this distance the "
         "loss is flat: weights there fit the training data nearly as well as the mean."),
        (0.25 - math.log(0.94), "falls by 6.0 %. Over this distance the loss is curved: "),
        (0.25 - math.log(0.51), "falls by 49.0 %. Over this distance the loss is curved: "),
        (0.25 - math.log(0.49), "falls by 51.0 %. Over this distance the loss is steep: "),
    ],
)  # fmt: skip
def test_a_loss_is_flat_as_long_as_the_probability_of_the_true_class_hardly_falls(end, words):
    """The loss is higher by -ln p where the probability is p times as large."""
    assert words in verdict(of((0.25, 0.25, end)))


def test_the_numbers_are_told():
    assert verdict(of((0.26, 0.25, 0.27), (0.255, 0.25, 0.29))) == (
        "The training loss is 0.2500 at the posterior's mean, and 0.2550 to 0.2900 two standard deviations from it "
        "along the 2 leading eigenvectors: up to 0.0400 more, by which the probability of the true class falls by "
        "3.9 %. Over this distance the loss is flat: weights there fit the training data nearly as well as the mean."
    )


def test_two_standard_deviations_are_found_between_other_distances():
    """On the way from 0.25 to 0.75 in four, so 0.5 in two."""
    assert "and 0.2500 to 0.5000 two standard" in verdict(of((0.25, 0.25, 0.75), at=(-4.0, 0.0, 4.0)))


def test_a_loss_that_is_lower_elsewhere_is_told():
    said = verdict(of((0.3, 0.25, 0.24), (0.26, 0.25, 0.22)))
    assert said.endswith("The lowest loss on these lines, 0.2200, is at +2 along eigenvector 2.")
    assert "0.2400, is at −2 along eigenvector 1." in verdict(of((0.24, 0.25, 0.3)))
    assert "lowest" not in verdict(of((0.3, 0.25, 0.24999)))
    assert "lowest" not in verdict(of((10.5, 9.5, 11.0)))
    assert "along the leading eigenvector: nowhere more. Over this distance the loss does not rise: " in verdict(
        of((0.2, 0.25, 0.2))
    )


def test_the_table_has_a_row_for_each_eigenvector():
    """Of a variance of 20, eigenvalues of 4 and 1 are a fifth and a twentieth; their roots are 2 and 1."""
    section = landscape_section(LANDSCAPE, 0)
    assert section["rows"] == [
        ("20.0 %", "2", "0.5000", "0.2500", "0.3750"),
        ("5.0 %", "1", "0.3000", "0.2500", "0.2600"),
    ]
    assert section["together"] == "25 %"
    assert section["plane"]


def test_one_direction_has_a_line_and_no_plane():
    section = landscape_section(of((0.3, 0.25, 0.3)), 0)
    assert section["lines"]
    assert section["plane"] == ""


@pytest.mark.parametrize("picture", [loss_along_lines, lambda run: loss_on_plane(run, run.surroundings.planes[0])])
def test_pictures_take_the_color_of_the_text_and_are_the_same_every_time(picture):
    svg = picture(LANDSCAPE)
    ElementTree.fromstring(svg)
    assert "currentColor" in svg
    assert INK not in svg
    assert "<image" not in svg
    assert svg == picture(LANDSCAPE)


def test_the_plane_tells_where_weights_are_and_how_many_are_outside():
    svg = loss_on_plane(LANDSCAPE, LANDSCAPE.surroundings.planes[0])
    assert "phase-1 model (0.5, -1); snapshots (1, 1.5), (-3, 0)." in svg
    assert re.findall(r">(snapshots[^<]*|phase-1[^<]*)<", svg) == ["phase-1 model", "snapshots (1 outside)"]
    assert "0.25 to 0.7" in svg


@pytest.mark.parametrize("loss", [0.0, 0.3, 87.0])
def test_a_plane_without_any_slope_is_drawn(loss):
    around = LANDSCAPE.surroundings
    plane = replace(around.planes[0], loss=((loss,) * 3,) * 3)
    ElementTree.fromstring(loss_on_plane(replace(LANDSCAPE, surroundings=replace(around, planes=(plane,))), plane))
