"""What the report says of bytes and of clients without an answer, for given records."""

import pytest

from dswag.cli.exchanges import communication, in_bytes, left_out
from dswag.cli.pages import page
from dswag.federation.round_trip import Missing
from dswag.lab.experiments.recipe import Recipe
from dswag.runs import RunFolder
from dswag.runs.schema import ExploreRecord, RoundRecord

SLOW, GONE = Missing(2, "it took longer than its time limit of 3 s"), Missing(2, "no answer came")
ROUNDS = [
    RoundRecord(1, 2.0, 0.1, (0, 2), None, (SLOW,), 2_000, 500),
    RoundRecord(2, 1.0, 0.1, (1, 2), None, (GONE,), 2_000, 500),
    RoundRecord(3, 0.5, 0.1, (0, 1), None, (), 2_000, 1_000),
]
EXPLORATION = ExploreRecord(0.1, (2, 0, 1), (Missing(0, "<b>out of memory</b>"), SLOW), 3_000, 4_000_000)


def test_bytes_are_told_by_phase_in_all_and_a_client():
    assert communication(ROUNDS, EXPLORATION) == {
        "phase 1, down": "6 kB, 1 kB per client each time",
        "phase 1, up": "2 kB, 500 B per client each time",  # of four answers
        "phase 2, down": "3 kB, 1 kB per client each time",
        "phase 2, up": "4 MB, 4 MB per client each time",
    }
    assert communication([], None) == {}


def test_clients_left_out_are_named_with_when_and_why():
    assert left_out(ROUNDS, EXPLORATION) == {
        "client 0": "phase 2: <b>out of memory</b>",
        "client 2": "round 1, phase 2: it took longer than its time limit of 3 s; round 2: no answer came",
    }
    assert left_out(ROUNDS[2:], None) == {}


def test_a_client_that_is_gone_for_long_takes_one_line():
    rounds = [RoundRecord(number, 1.0, 0.1, (2,), None, (GONE,), 10, 0) for number in range(1, 31)]
    assert left_out(rounds, None) == {
        "client 2": "round 1, round 2, round 3, round 4, round 5, round 6, round 7, round 8 and 22 more: no answer came"
    }


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (12_345, "12.3 kB"), (5e9, "5 GB"), (7e12, "7 TB")],
)
def test_bytes_are_told_in_units_of_a_thousand(number, text):
    assert in_bytes(number) == text


def test_the_page_has_both_and_escapes_what_clients_say(tmp_path):
    folder = RunFolder.create(tmp_path / "run", Recipe(clients=3, rounds=3))
    folder.save_history(ROUNDS, EXPLORATION)
    html = page([folder])
    assert "Phase 1 went on without 2 of 6 answers; the clients left out are listed below" in html
    for text in ("Bytes of training", "6 kB, 1 kB per client each time", "Clients left out", "round 2: no answer came"):
        assert text in html
    assert "&lt;b&gt;out of memory&lt;/b&gt;" in html
    folder.save_history([])
    assert "Exchanges with the clients" not in page([folder])
