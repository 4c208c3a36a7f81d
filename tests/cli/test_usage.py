"""Usage that cannot be meant is refused in one line."""

import re
from importlib.metadata import version

import pytest

from dswag.cli import main
from dswag.cli.parsing import parse


def test_overwriting_needs_the_folder_that_is_meant(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--overwrite"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --overwrite needs --output: without it every run goes into a new folder"
    ]
    assert [*tmp_path.iterdir()] == []


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dswag {version('dswag')}\n"


def test_a_share_of_clients_is_a_number_or_a_percentage(capsys):
    assert parse(["train", "--explorers", "2"]).recipe().explore.explorers == 2
    assert parse(["train", "--explorers", "50%", "--min-clients", "1"]).recipe().explore.explorers == "50%"
    assert main(["train", "--explorers", "0.5"]) == 2
    assert 'explorers must be a number of clients such as 3, a share such as "30%"' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert len(re.findall(r"--\S+ NUMBER\|PERCENTAGE\|all", capsys.readouterr().out)) == 4


@pytest.mark.parametrize(("name", "words"), [("absent.toml", "No such file or directory"), (".", "Is a directory")])
def test_a_settings_file_that_cannot_be_read_is_bad_usage(capsys, tmp_path, name, words):
    assert main(["train", "--config", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {tmp_path / name} cannot be read: {words}"]


def test_a_setting_that_is_on_or_off_can_be_put_either_way_over_a_file(tmp_path):
    (tmp_path / "on.toml").write_text("holdout = 0.1\ncalibrate = true\n")
    on = ["train", "--config", str(tmp_path / "on.toml")]
    assert parse(["train", "--holdout", "0.1", "--calibrate"]).recipe().calibrate
    assert parse(on).recipe().calibrate
    assert not parse([*on, "--no-calibrate"]).recipe().calibrate


def test_a_value_in_a_file_is_taken_back_by_the_default_that_the_help_names(tmp_path, capsys):
    (tmp_path / "clipped.toml").write_text("clip_gradient = 1.0\n")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    (default,) = re.findall(r"a minibatch's gradient is shortened; no limit if not given\. \(default: (\S+)\)", words)
    arguments = ["train", "--config", str(tmp_path / "clipped.toml")]
    assert parse(arguments).recipe().clip_gradient == 1.0
    assert parse([*arguments, "--clip-gradient", default]).recipe().clip_gradient is None
