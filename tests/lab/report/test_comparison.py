"""The page over a comparison says what it is given, marks what is best, and escapes names."""

import pytest

from dswag.lab.report.comparison import Cell, Column, render_comparison
from dswag.lab.report.plots import points_by_method

COLUMNS = [Column("NLL", "lower", plotted=True), Column("accuracy", "higher"), Column("epochs")]
ROWS = {
    "one": [Cell("0.20", 0.2, 0.01), Cell("90", 90), Cell("5", 5)],
    "two <b>": [Cell("0.30", 0.3, 0.01), Cell("91", 91), Cell("5", 5)],
}


def page(rows=ROWS, **options):
    return render_comparison("a title", COLUMNS, rows, described=dict.fromkeys(rows, "does things"), **options)


def test_the_best_of_each_column_is_marked_where_one_is_better():
    html = page()
    assert html.count('class="best"') == 2
    assert '<td class="best">0.20</td>' in html
    assert '<td class="best">91</td>' in html
    assert 'class="best"' not in page({"one": ROWS["one"]}).split("<tbody>")[1]


def test_what_leaves_out_what_the_others_count_is_not_the_best():
    rows = ROWS | {"three": [Cell("0.10", 0.1, contends=False), Cell("80", 80), Cell("5", 5)]}
    assert '<td class="best">0.20</td>' in page(rows)
    assert '<td class="best">0.10</td>' not in page(rows)


def test_names_notes_and_settings_are_shown_and_escaped():
    html = page(notes=["a note"], settings={"rounds": 3})
    for text in ("<h1>a title</h1>", "two &lt;b&gt;", "a note", "does things", "rounds", "lower is better"):
        assert text in html
    assert "two <b>" not in html.replace("<svg", "")
    assert "runs compared" not in html


def test_the_picture_describes_itself():
    svg = points_by_method({"NLL": {"one": (0.2, 0.01), "two": (0.3, None)}})
    assert 'aria-label="Methods compared. NLL: one 0.2, two 0.3."' in svg


def test_rows_and_panels_must_fit():
    with pytest.raises(ValueError, match=r"methods with 3 cells each, got \['one'\]"):
        page({"one": ROWS["one"][:2]})
    with pytest.raises(ValueError, match="got none"):
        page({})
    with pytest.raises(ValueError, match="every panel must have the same methods"):
        points_by_method({"a": {"one": (1.0, None)}, "b": {"two": (1.0, None)}})
    with pytest.raises(ValueError, match="got no panel"):
        points_by_method({})
