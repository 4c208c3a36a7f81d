"""Tables show every method and every number whole, however wide the terminal is."""

import pytest

from dswag.cli import console

TITLES = {"accuracy (%)": "91.05 ± 0.35", "NLL": "0.3111 ± 0.0223", "ECE": "0.0275 ± 0.0063", "steps": "216"}
ROWS = {"fedbe-dirichlet *": TITLES, "vi": TITLES}


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard output a terminal of so many columns, that shows no colors."""

    def of(columns):
        for name, value in (("FORCE_COLOR", "1"), ("TERM", "dumb"), ("COLUMNS", str(columns)), ("LINES", "25")):
            monkeypatch.setenv(name, value)

    return of


def shown(capsys, rows=ROWS):
    console.show(rows)
    return capsys.readouterr().out.splitlines()


def assert_whole(lines):
    text = " ".join(lines)
    for title, value in TITLES.items():
        assert text.count(f" {title} ") == 1
        assert text.count(f" {value} ") == len(ROWS)


def test_without_a_terminal_all_is_one_table_however_wide(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = shown(capsys)
    assert_whole(lines)
    assert len(lines) == 3 + len(ROWS) + 1  # rules, titles, rows
    assert len(set(map(len, lines))) == 1


@pytest.mark.parametrize(("columns", "tables"), [(80, 1), (79, 2), (54, 2), (53, 3), (47, 3), (46, 4), (30, 4)])
def test_on_a_terminal_as_many_tables_as_it_takes(capsys, terminal, columns, tables):
    terminal(columns)
    lines = shown(capsys)
    assert sum("method" in line for line in lines) == tables
    if columns >= 39:  # room for the methods and one column
        assert max(map(len, lines)) <= columns
        assert_whole(lines)
    assert sum("│ vi" in line for line in lines) == tables


def test_a_title_that_is_wider_than_what_stands_below_it_is_whole(capsys):
    lines = shown(capsys, {"vi": {"steps in a row": "1"}})
    assert "┃ method ┃ steps in a row ┃" in lines
