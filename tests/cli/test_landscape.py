"""The landscape in the run folder and the report: of a new run, of an old one, of none."""

import shutil

import pytest

from dswag.cli import main
from dswag.runs import RunFolder

TINY = ["--clients", "3", "--rounds", "1", "--explore-epochs", "1", "--samples", "2"]


def train(path, *flags):
    assert main(["train", *TINY, *flags, "--output", str(path)]) == 0
    return RunFolder.open(path)


def shown(folder):
    return "<h2>Landscape</h2>" in (folder.path / "report.html").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copy(run, tmp_path):
    """A run that a test may change."""
    return RunFolder(shutil.copytree(run.path, tmp_path / "copy"))


def test_a_small_model_has_one_unless_it_is_left_out(run, tmp_path):
    assert run.landscape().num_examples == 1000
    assert shown(run)
    without = train(tmp_path / "without", "--landscape-examples", "0")
    assert without.landscape() is None
    assert not shown(without)


def test_evaluating_again_may_take_another_number_of_examples(copy):
    assert main(["evaluate", str(copy.path), "--kind", "mean", "--landscape-examples", "5", "--save"]) == 0
    assert copy.landscape().num_examples == 5
    assert "Loss on 5 training examples" in (copy.path / "report.html").read_text()


def test_an_old_run_is_read_without_one_and_gets_the_same_when_it_is_evaluated(copy, run):
    (copy.path / "landscape.json").unlink()
    assert main(["report", str(copy.path)]) == 0
    assert not shown(copy)
    assert main(["evaluate", str(copy.path), "--kind", "mean"]) == 0
    assert copy.landscape() is None
    assert main(["evaluate", str(copy.path), "--kind", "mean", "--save"]) == 0
    assert copy.landscape() == run.landscape()
    assert shown(copy)


def test_one_that_is_not_measured_again_stays(copy, run):
    assert main(["evaluate", str(copy.path), "--kind", "mean", "--landscape-examples", "0", "--save"]) == 0
    assert copy.landscape() == run.landscape()


def test_two_runs_on_a_page_have_one_each(run, copy, tmp_path):
    assert main(["report", str(run.path), str(copy.path), "--output", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").read_text().count("<h3>Landscape</h3>") == 2


def test_a_damaged_one_is_one_clear_line(copy, capsys):
    (copy.path / "landscape.json").write_text("{}")
    assert main(["report", str(copy.path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {copy.path}/landscape.json is cut off, damaged or foreign")
