"""`dswag reproduce` from its flags to files."""

import json
from dataclasses import replace

import pytest

from dswag.cli import main, reproducing
from dswag.data.sources import DataNotFoundError
from dswag.lab.experiments import plan as plans

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


@pytest.fixture
def on_another_device(monkeypatch):
    """The plans are Figure 6's small one, and the table of CIFAR-10 for a GPU that no machine has."""

    def loaded(name, **_):
        whole = load(name, quick=True)
        if name == "table-cifar10":
            return replace(
                whole, cases=tuple(replace(c, recipe=replace(c.recipe, device="cuda:99")) for c in whole.cases)
            )
        return replace(whole, cases=whole.cases[:1] if name == "fig6" else ())

    load = plans.load
    monkeypatch.setattr(reproducing.plans, "load", loaded)


@pytest.mark.usefixtures("on_another_device")
def test_of_all_what_this_machine_cannot_run_is_left_out_and_the_rest_is_run(capsys):
    assert main(["reproduce", "all", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "left out: table-cifar10 cannot run here: it needs device cuda:99; run it where that is, or try" in err
    state = json.loads(out)
    assert state["fig6"]["done"] == 1
    assert state["table-cifar10"]["done"] == 0


@pytest.mark.usefixtures("on_another_device")
def test_what_this_machine_cannot_run_is_refused_before_the_work_where_it_is_named(elsewhere, capsys):
    assert main(["reproduce", "fig6", "table-cifar10"]) == 2
    assert "error: table-cifar10 cannot run here: it needs device cuda:99; run it" in capsys.readouterr().err
    assert list(elsewhere.iterdir()) == []


def test_of_all_what_has_no_data_is_left_out(monkeypatch, capsys):
    def missing(plan, results, options):
        if plan.name == "fig7":
            raise DataNotFoundError("data set mnist was not found")
        ran.append(plan.name)

    ran = []
    monkeypatch.setattr(reproducing, "_run", missing)
    assert main(["reproduce", "all", "--quick"]) == 0
    assert ran == [name for name in plans.NAMES if name != "fig7"]
    assert "left out: fig7 has no data: data set mnist was not found" in capsys.readouterr().err
    assert main(["reproduce", "fig7", "--quick"]) == 1
