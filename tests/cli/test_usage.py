"""Usage that cannot be meant is refused in one line, and Ctrl-C leaves no traceback however early it comes."""

import os
import subprocess
import sys

import pytest

import dswag_command
from dswag.cli import main
from dswag.cli.options import parse


def test_overwriting_needs_the_folder_that_is_meant(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--overwrite"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --overwrite needs --output: without it every run goes into a new folder"
    ]
    assert [*tmp_path.iterdir()] == []


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


def test_ctrl_c_while_pytorch_is_imported_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    start = [sys.executable, "-c", "import sys, dswag_command; sys.exit(dswag_command.main())"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(start, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_the_command_is_that_of_the_package(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dswag", "report"])
    assert dswag_command.main() == 2
    assert capsys.readouterr().err.startswith("error: report needs runs")
