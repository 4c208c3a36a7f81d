"""`dswag reproduce` from its flags to files."""

import json

import pytest

from dswag.cli import main

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_says_what_is_left_and_runs_nothing(elsewhere, capsys):
    assert main(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[1].split(",")[0] == "fig5-left        0 of  20"
    assert "about" in lines[1]
    assert list(elsewhere.iterdir()) == []


def test_one_case_is_run_written_and_drawn_and_not_run_again(elsewhere, capsys):
    flags = ["reproduce", "fig6", "--quick", "--only", "clients-5", "--json"]
    assert main(flags) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["fig6"]["done"] == 1
    assert "fig6 1/1: model-mlp_clients-5_seed-0" in err
    folder = elsewhere / "runs" / "quick"
    assert sorted(path.name for path in folder.iterdir()) == ["fig6", "fig6.svg"]
    assert main(flags[:-1]) == 0
    out, err = capsys.readouterr()
    assert "fig6 1/1" not in err
    assert out.splitlines()[-1] == "figure: runs/quick/fig6.svg"


@pytest.mark.parametrize(
    ("names", "message", "code"),
    [
        ([], "reproduce needs a name: one of fig4, fig5-left", 2),
        (["fig9"], "there is no 'fig9' to reproduce: choose one of fig4", 1),
    ],
)
def test_what_cannot_be_reproduced_is_refused(names, message, code, capsys):
    assert main(["reproduce", *names]) == code
    assert message in capsys.readouterr().err
