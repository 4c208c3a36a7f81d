"""`dswag compare` as a user types it."""

import html
import json

import pytest

from dswag.cli import main
from dswag.lab.baselines import METHODS

TINY = ["--clients", "3", "--rounds", "1", "--explore-epochs", "2", "--samples", "2", "--seeds", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison")
    assert main(["compare", *TINY, "--methods", "dswag", "swa", "--output", str(path), "--json"]) == 0
    return path


def test_numbers_are_saved_with_what_they_depend_on(folder):
    saved = json.loads((folder / "comparison.json").read_text())
    assert list(saved["methods"]) == ["dswag", "swa"]
    assert saved["seeds"] == [0, 1]
    assert saved["settings"]["rounds"] == 1
    assert saved["settings"]["holdout"] == 0.1
    assert saved["methods"]["dswag"]["epochs"] == {"mean": 3.0, "std": 0.0}


def test_the_page_has_all_methods_and_needs_nothing_else(folder):
    page = html.unescape((folder / "comparison.html").read_text())
    assert "2 methods: mlp on mnist5k, 3 clients" in page
    for text in ("swa *", METHODS["dswag"].description, METHODS["swa"].description, "<svg", "NLL", "AUROC"):
        assert text in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_second_call_prints_a_table_of_what_is_there(folder, capsys):
    assert main(["compare", *TINY, "--methods", "swa", "--output", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "swa *" in out
    assert "dswag" not in out.replace("dswag-", "").split("report:")[0]
    assert "* needs all examples in one place" in out
    assert "Over 2 seeds (0 to 1); NLL in nats" in out
    assert "method 2/2: swa, seed 1, accuracy 0." in err


def test_one_method_and_one_seed_are_worded_as_such_and_values_that_are_not_set_are_none(folder, tmp_path, capsys):
    (tmp_path / "config.toml").write_bytes((folder / "config.toml").read_bytes())
    (tmp_path / "dswag-seed-0.json").write_bytes((folder / "dswag-seed-0.json").read_bytes())
    assert main(["compare", *TINY[:-1], "1", "--methods", "dswag", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Over 1 seed (0); NLL in nats" in out
    assert "* needs all examples" not in out
    page = html.unescape((tmp_path / "comparison.html").read_text())
    assert "1 method: mlp on mnist5k, 3 clients" in page
    assert "<caption>How good predictions are: values of one seed.</caption>" in page
    assert "None" not in page + out
    assert '<th scope="row">clip gradient</th><td>none</td>' in page


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--methods", "nonsense"], "error: methods must be some of dswag"),
        (["--seeds", "0"], "error: a comparison needs at least one seed, got 0"),
        (["--rounds", "0"], "error: flags: rounds must be at least 1, got 0"),
    ],
)
def test_bad_usage_is_exit_code_2(arguments, fault, tmp_path, capsys):
    assert main(["compare", *arguments, "--output", str(tmp_path)]) == 2
    assert fault in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_settings_in_the_same_folder_are_refused(folder, capsys):
    arguments = [*TINY[:-2], "--seeds", "1", "--batch-size", "9", "--output", str(folder)]
    assert main(["compare", *arguments]) == 1
    assert "results of other settings: batch_size (50, not 9)" in capsys.readouterr().err


def test_methods_that_diverge_are_named(tmp_path, capsys):
    arguments = [*TINY, "--learning-rate", "1e30", "--methods", "dswag", "--output", str(tmp_path)]
    assert main(["compare", *arguments]) == 1
    assert "no method came to an outcome: dswag, seed 0, failed: client" in capsys.readouterr().err
