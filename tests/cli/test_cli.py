"""The commands as a user types them: settings, results, exit codes, and what Ctrl-C leaves."""

import csv
import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from patience import PATIENCE
from PIL import Image
from rich.console import Console

from dswag import GaussianPosterior
from dswag.cli import console, main
from dswag.data import datasets
from dswag.lab.experiments.recipe import Recipe, build, settings
from dswag.lab.experiments.run import execute
from dswag.runs import RunFolder
from dswag.runs.schema import RoundRecord

TINY = ["--clients", "3", "--rounds", "2", "--explore-epochs", "2", "--samples", "3", "--landscape-examples", "50"]
METHODS = ["phase-1 model", "mean model", "DSWAG", "DSWAG diagonal", "clients' ensemble"]


@pytest.fixture
def dswag(capsys):
    """Runs a command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A complete run."""
    path = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", *TINY, "--output", str(path), "--json"]) == 0
    return path


def test_help_names_every_setting_with_default_and_symbol(dswag, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = dswag("train", "--help")
    assert code == 0
    for setting in settings():
        assert re.search(f"--{setting.name.replace('_', '-')}[ ,]", out)
        assert setting.description[:100] in out  # longer ones go on in the next line
    for text in ("(η_l1). (default: ", "(W). (default: 10)", "(S). (default: 30)", "phase 1 options", "data and model"):
        assert text in out


def test_train_writes_a_whole_run_and_prints_its_table(dswag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = dswag("train", *TINY)
    folder = RunFolder.open("runs/mnist5k-mlp-1")
    assert code == 0
    assert all(method in out for method in METHODS)
    assert f"{folder.metrics().scores['DSWAG'].nll:.4f}" in out
    assert "report: runs/mnist5k-mlp-1/report.html" in out
    assert [line.split(":")[0] for line in err.splitlines() if line.startswith("phase 1")] == ["phase 1"] * 2
    assert folder.config(Recipe) == Recipe(clients=3, rounds=2, explore_epochs=2, samples=3, landscape_examples=50)
    assert len(folder.history()) == 2
    assert "mnist5k-mlp-1: mlp on mnist5k, 3 clients" in (folder.path / "report.html").read_text()


def test_flags_win_over_the_file_and_the_file_over_defaults(dswag, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("clients = 4\nrounds = 1\nexplore_epochs = 1\nsamples = 2\nstop_accuracy = 0.5\n")
    flags = ["--clients", 3, "--stop-accuracy", "None"]
    code, out, _ = dswag("train", "--config", file, *flags, "--output", tmp_path / "run", "--json", "--workers", 1)
    assert code == 0
    result = json.loads(out)
    assert list(result["methods"]) == METHODS
    assert RunFolder.open(result["run"]).config(Recipe) == Recipe(clients=3, rounds=1, explore_epochs=1, samples=2)


def test_the_same_settings_give_the_same_posterior_whatever_the_number_of_workers(dswag, run, tmp_path):
    first = GaussianPosterior.load(run / "posterior.safetensors").tensors()
    for workers in (1, 2):
        assert dswag("train", *TINY, "--workers", workers, "--output", tmp_path / str(workers))[0] == 0
        again = GaussianPosterior.load(tmp_path / str(workers) / "posterior.safetensors").tensors()
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("toml", "flags", "faults"),
    [
        ("colour = 1\nrounds = 0\n", [], ["unknown setting colour", "rounds must be at least 1, got 0"]),
        ("rank = 1\n", [], ["rank must be 0 or at least 2, got 1"]),
        ("rounds = \n", [], ["is no TOML file"]),
        ("", ["--rank", "1"], ["and overrides: rank must be 0 or at least 2"]),
        ("", ["--dataset", "imagenet"], ["data set must be one of"]),
        ("", ["--clients", "5000"], ["5000 clients for 4000 examples"]),
        ("", ["--model", "vgg16"], ["vgg16 takes images of 32 x 32"]),
    ],
)
def test_impossible_settings_are_refused_before_any_work(dswag, tmp_path, toml, flags, faults):
    file = tmp_path / "settings.toml"
    file.write_text(toml)
    code, out, err = dswag("train", "--config", file, *flags, "--output", tmp_path / "run")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == len(faults)
    for fault in faults:
        assert any(line.startswith("error: ") and fault in line for line in lines)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--rounds", "many"], ["--bogus"], ["--model", "resnet"]])
def test_flags_that_cannot_be_read_are_bad_usage(dswag, flags):
    code, out, err = dswag("train", *flags)
    assert (code, out) == (2, "")
    assert flags[-1] in err


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(dswag, tmp_path, place):
    (tmp_path / "file").write_text("")
    code, out, err = dswag("train", *TINY, "--output", tmp_path / place)
    assert (code, out) == (1, "")
    assert "cannot be written to" in err
    assert "round" not in err


def test_a_run_is_not_overwritten_unless_asked_to(dswag, run):
    code, _, err = dswag("train", *TINY, "--output", run)
    assert code == 1
    assert "holds a run already" in err
    assert "round" not in err


def test_a_diverging_run_says_who_failed_without_a_traceback(dswag, tmp_path, monkeypatch):
    arguments = ["train", *TINY, "--learning-rate", "1e30", "--output", tmp_path / "run"]
    code, _, err = dswag(*arguments)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: client ")
    assert "failed in round 1, epoch 1" in err
    assert "Traceback" not in err
    monkeypatch.setenv("DSWAG_DEBUG", "1")
    assert "Traceback" in dswag(*arguments, "--overwrite")[2]


def test_evaluate_gives_the_scores_of_training_again(dswag, run):
    code, out, _ = dswag("evaluate", run, "--json")
    assert code == 0
    scores = json.loads(out)["methods"]
    trained = RunFolder.open(run).metrics().scores
    assert list(scores) == METHODS
    assert {method: values["nll"] for method, values in scores.items()} == {m: s.nll for m, s in trained.items()}


def test_scores_are_not_saved_into_a_folder_that_a_training_holds(dswag, run):
    with RunFolder.open(run).held():
        assert dswag("evaluate", run)[0] == 0
        code, _, err = dswag("evaluate", run, "--save")
    assert code == 1
    assert "another process trains into" in err


def test_evaluate_takes_other_draws_and_saves_only_if_asked_to(dswag, run, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in run.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    command = ["evaluate", copy, "--kind", "low_rank", "--samples", 2, "--scale", 0.5]
    code, out, _ = dswag(*command)
    assert code == 0
    assert "DSWAG low rank" in out
    assert RunFolder.open(copy).metrics() == RunFolder.open(run).metrics()
    assert dswag(*command, "--save")[0] == 0
    saved = RunFolder.open(copy).metrics()
    assert list(saved.scores) == ["phase-1 model", "DSWAG low rank", "clients' ensemble"]
    assert (saved.samples, saved.scale) == (2, 0.5)
    assert "2 samples with scale 0.5, set after training" in (copy / "report.html").read_text()
    code, _, err = dswag("evaluate", copy, "--samples", 0)
    assert code == 2
    assert "flags: samples must be at least 1, got 0" in err


@pytest.mark.parametrize("damage", ["truncated", "foreign", "of another model"])
def test_a_damaged_or_foreign_posterior_is_one_clear_line(dswag, run, tmp_path, damage):
    folder = RunFolder.create(tmp_path / "run", RunFolder.open(run).config(Recipe))
    folder.save_checkpoint(RunFolder.open(run).checkpoint())
    good, path = (run / "posterior.safetensors").read_bytes(), folder.path / "posterior.safetensors"
    if damage == "of another model":
        folder.save_posterior(GaussianPosterior(torch.zeros(4), torch.ones(4), torch.ones(2, 4), count=2))
    else:
        path.write_bytes(good[:-100] if damage == "truncated" else (run / "checkpoint.safetensors").read_bytes())
    code, out, err = dswag("evaluate", folder.path)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    expected = {
        "truncated": "truncated, damaged or no posterior",
        "foreign": "is no dswag posterior",
        "of another model": "is of another model than its settings describe",
    }
    assert expected[damage] in err


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The first test images in every form that predict takes, and their labels."""
    folder = tmp_path_factory.mktemp("digits")
    test = datasets.load_test("mnist5k")
    images = test.inputs[:3, 0].numpy()
    np.save(folder / "digits.npy", images)
    np.savez(folder / "digits.npz", images=images[:, None])
    Image.fromarray(images[0]).save(folder / "digit.png")
    Image.fromarray(images[0]).resize((56, 56)).save(folder / "large.png")
    return folder


def test_predict_gives_the_same_for_every_form_of_input(dswag, run, digits):
    code, out, _ = dswag("predict", run, digits / "digits.npy", digits / "digits.npz", digits / "digit.png")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["input"] for row in rows] == [
        *(f"{name}[{index}]" for name in ("digits.npy", "digits.npz") for index in range(3)),
        "digit.png",
    ]
    for row in rows:
        row.pop("input")
    assert rows[:3] == rows[3:6]
    assert rows[0] == rows[6]


def test_predicted_probabilities_and_entropies_belong_together(dswag, run, digits):
    """Entropy computed anew from the probabilities that were printed; float32 gives it to about 1e-6."""
    code, out, _ = dswag("predict", run, digits / "digits.npy", "--json", "--samples", 5)
    assert code == 0
    for row in json.loads(out):
        shares = row["probabilities"]
        assert list(shares) == list("0123456789")
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(shares, key=shares.get)
        assert row["entropy"] == pytest.approx(-sum(p * math.log(p) for p in shares.values()), abs=1e-5)
        assert 0 <= row["mutual_information"] <= row["entropy"]


def test_predict_writes_files_by_their_ending(dswag, run, digits, tmp_path):
    assert dswag("predict", run, digits / "digit.png", "-o", tmp_path / "p.csv")[:2] == (0, "")
    assert dswag("predict", run, digits / "digit.png", "-o", tmp_path / "p.json")[:2] == (0, "")
    (from_json,) = json.loads((tmp_path / "p.json").read_text())
    (from_csv,) = csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text()))
    assert from_csv["class"] == from_json["class"]
    assert float(from_csv["p_3"]) == from_json["probabilities"]["3"]
    assert dswag("predict", run, digits / "digit.png", "-o", tmp_path / "p.txt")[0] == 2
    code, _, err = dswag("predict", run, digits / "digit.png", "-o", tmp_path / "absent" / "p.csv")
    assert code == 1
    assert f"error: {tmp_path}/absent/p.csv cannot be written" in err


def test_predict_refuses_other_sizes_unless_told_to_resize(dswag, run, digits):
    code, _, err = dswag("predict", run, digits / "large.png")
    assert code == 1
    assert "large.png must be 28 x 28 for this model, got 56 x 56" in err
    assert dswag("predict", run, digits / "large.png", "--resize", "--kind", "mean")[0] == 0


def test_commands_that_need_names_ask_for_them(dswag, run):
    assert dswag("predict", run)[0] == 2
    assert dswag("report")[0] == 2
    assert dswag("evaluate")[0] == 2


def test_report_is_written_over_two_runs_one_of_them_unfinished(dswag, run, tmp_path):
    unfinished = RunFolder.create(tmp_path / "second", Recipe(clients=7))
    code, out, _ = dswag("report", run, unfinished.path, "-o", tmp_path / "both.html", "--json")
    assert code == 0
    assert json.loads(out) == {"report": str(tmp_path / "both.html")}
    page = (tmp_path / "both.html").read_text()
    assert "first: mlp on mnist5k, 3 clients" in page
    assert "second: mlp on mnist5k, 7 clients" in page
    assert "The run was stopped before it had a posterior." in page
    code, _, err = dswag("report", run, tmp_path)
    assert code == 1
    assert "holds no run" in err


def interrupt(folder, when, *arguments):
    """Exit code and last lines of a training that gets SIGINT once it has written the line."""
    command = [sys.executable, "-m", "dswag", "train", *arguments, "--output", str(folder)]
    # A shell may have told its background jobs to ignore SIGINT, which a child would inherit.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    try:
        for line in process.stderr:
            if line.startswith(when):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    return process.returncode, err


def test_ctrl_c_in_phase_1_leaves_the_rounds_done_and_says_how_to_go_on(dswag, tmp_path):
    code, err = interrupt(tmp_path / "run", "phase 1: round 1/", "--rounds", "100000", "--clients", "3")
    assert code == 130
    folder = RunFolder.open(tmp_path / "run")
    rounds = len(folder.history())
    assert rounds >= 1
    assert folder.checkpoint().server.round in (rounds - 1, rounds)
    last = err.splitlines()[-1]
    assert last.startswith(f"interrupted: {rounds} round")
    assert last.endswith(f"saved in {folder.path}; go on with: dswag train --resume {folder.path}")
    assert "Traceback" not in err


def test_ctrl_c_in_phase_2_leaves_the_explorers_done(tmp_path):
    flags = ["--rounds", "1", "--clients", "30", "--explore-epochs", "200", "--explore-rounds", "1", "--samples", "2"]
    code, err = interrupt(tmp_path / "run", "phase 2: explorer 2/30", *flags)
    assert code == 130
    assert "Traceback" not in err
    folder = RunFolder.open(tmp_path / "run")
    count = len(list(folder.answers.iterdir()))
    assert 2 <= count < 30
    assert f"1 round and {count} explorers are saved in {folder.path}; go on with" in err
    assert not folder.has_posterior()


def stopped(recipe, path, rounds=1):
    """A run that was stopped after so many rounds."""
    folder = RunFolder.create(path, recipe)
    for event in execute(build(recipe), folder):
        if isinstance(event, RoundRecord) and event.round == rounds:
            break
    return folder


def test_resume_gives_the_posterior_of_the_run_that_was_not_stopped(dswag, run, tmp_path):
    folder = stopped(RunFolder.open(run).config(Recipe), tmp_path / "run")
    (folder.path / "report.html").write_text("of a run that had not ended")
    repeated = ["--clients", 3, "--data-dir", tmp_path, "--checkpoint-every", 7, "--workers", 1]
    code, out, err = dswag("train", "--resume", folder.path, *repeated, "--json")
    assert code == 0
    assert json.loads(out)["run"] == str(folder.path)
    assert [line.split(": ")[1] for line in err.splitlines() if line.startswith("phase 1")] == ["round 2/2"]
    tensors = folder.posterior().tensors()
    expected = GaussianPosterior.load(run / "posterior.safetensors").tensors()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert "<h1>run" in (folder.path / "report.html").read_text()


def test_a_complete_run_has_nothing_to_resume(dswag, run):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()}
    code, out, err = dswag("train", "--resume", run)
    assert code == 0
    assert err == f"{run} is complete: there is nothing to resume\n"
    assert all(method in out for method in METHODS)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()} == before


def test_a_run_that_was_killed_while_it_tidied_up_is_tidied_up(dswag, run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    (path / "report.html").unlink()
    for folder in ("explorers", ".report.html.x1"):
        (path / folder).mkdir()
    for left in ("checkpoint.before.safetensors", "explorers/00000.safetensors", ".report.html.x1/report.html"):
        (path / left).write_text("left")
    assert dswag("train", "--resume", path)[0] == 0
    assert {file.name for file in path.iterdir()} == {file.name for file in run.iterdir()}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--rounds", 5, "--seed", 1],
            r"keeps its settings, .* got other ones .* seed \(0, not 1\), rounds \(2, not 5",
        ),
        (["--clients-per-round", 3], r'clients_per_round \("all", not 3\)'),
        (["--config", "FILE"], r"rounds \(2, not 20\), .*samples \(3, not 30\)"),  # the file is silent on them
        (["--output", "elsewhere"], "goes on in the folder of the run: leave --output and --overwrite out"),
        (["--overwrite"], "leave --output and --overwrite out"),
        (["--rounds", 0], "flags: rounds must be at least 1"),
    ],
)
def test_a_resumed_run_keeps_its_settings(dswag, run, tmp_path, flags, words):
    (tmp_path / "run.toml").write_text("clients = 3\n")
    arguments = [tmp_path / "run.toml" if flag == "FILE" else flag for flag in flags]
    code, out, err = dswag("train", "--resume", run, *arguments)
    assert (code, out) == (2, "")
    assert re.search(words, err)


def test_settings_that_were_edited_after_the_start_are_refused(dswag, run, tmp_path):
    recipe = RunFolder.open(run).config(Recipe)
    folder = stopped(recipe, tmp_path / "run")
    replace(recipe, learning_rate=0.02, rounds=3).to_toml(folder.path / "config.toml")
    code, _, err = dswag("train", "--resume", folder.path)
    assert code == 1
    assert "round 1 is of a run with other settings: rounds (3, not 2), learning_rate (0.02, not 0.05)" in err


def test_a_damaged_checkpoint_is_told_and_two_damaged_ones_are_an_error(dswag, run, tmp_path):
    folder = stopped(RunFolder.open(run).config(Recipe), tmp_path / "run", rounds=2)
    newest, older = (folder.path / f"checkpoint{middle}.safetensors" for middle in ("", ".before"))
    first = older.read_bytes()
    for path in (newest, older):
        path.write_bytes(path.read_bytes()[:-1])
    code, _, err = dswag("train", "--resume", folder.path)
    assert code == 1
    assert re.search(r"error: no checkpoint can be read: .*truncated.*before.*truncated.*: train from the start", err)
    older.write_bytes(first)
    code, _, err = dswag("train", "--resume", folder.path)
    assert code == 0
    assert f"going on from the checkpoint before, of round 1: {newest} is truncated, damaged or no checkpoint" in err
    assert folder.metrics().scores == RunFolder.open(run).metrics().scores


def test_a_run_without_a_checkpoint_starts_from_the_beginning(dswag, run, tmp_path):
    folder = RunFolder.create(tmp_path / "run", RunFolder.open(run).config(Recipe))
    assert dswag("train", "--resume", folder.path)[0] == 0
    assert folder.metrics().scores == RunFolder.open(run).metrics().scores
    code, _, err = dswag("train", "--resume", tmp_path)
    assert code == 1
    assert "holds no run" in err


def test_too_few_clients_are_one_clear_line(dswag, tmp_path):
    flags = ["--on-failure", "skip", "--min-clients", 1, "--client-time-limit", "1e-9"]
    code, _, err = dswag("train", *TINY, *flags, "--output", tmp_path / "run")
    assert code == 1
    assert re.search(r"error: round 1 needs the results of at least 1 clients, got 0 of 3: client \d: it took lon", err)


def test_a_run_that_has_diverged_is_one_clear_line(dswag, tmp_path):
    flags = ["--server-optimizer", "momentum", "--server-learning-rate", "1e5"]
    code, _, err = dswag("train", *TINY, *flags, "--output", tmp_path / "run")
    assert code == 1
    assert re.search(r"(?m)^error: round 2 diverged: .* lower server_learning_rate", err)


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "dswag.cli", "--help"], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in ("train", "evaluate", "predict", "report"))
    assert done.stderr == ""


def test_bars_show_round_details_and_time_left():
    screen = io.StringIO()
    with console.Bars(Console(file=screen, force_terminal=True, width=100)) as bars:
        bars.begin("phase 1: round", 2)
        bars.advance("loss 1.5000, accuracy 0.7500")
    assert "phase 1: round" in screen.getvalue()
    assert "loss 1.5000, accuracy 0.7500" in screen.getvalue()
    assert "1/2" in screen.getvalue()


def test_a_long_step_tells_how_far_it_is(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr(console, "monotonic", lambda: now)
    with console.Lines() as lines:
        lines.begin("fig8", 2)
        for now in (105.0, 111.0, 119.0, 122.0):
            lines.tell(f"at {now:g}")
        lines.advance("done")
        for now in (131.0, 133.0):
            lines.tell(f"at {now:g}")
    told = ["fig8 0/2, now at 111", "fig8 0/2, now at 122", "fig8 1/2: done", "fig8 1/2, now at 133"]
    assert capsys.readouterr().err.splitlines() == told
    screen = io.StringIO()
    with console.Bars(Console(file=screen, force_terminal=True, width=100)) as bars:
        bars.begin("fig8", 2)
        bars.tell("round 3 of at most 50")
    assert "round 3 of at most 50" in screen.getvalue()
    assert "0/2" in screen.getvalue()


def test_lines_are_one_a_step_and_few_where_there_are_many_steps(capsys):
    with console.Lines() as lines:
        lines.begin("round", 3)
        for _ in range(3):
            lines.advance("loss 1")
        assert capsys.readouterr().err.splitlines() == [f"round {number}/3: loss 1" for number in (1, 2, 3)]
        lines.begin("round", 1000)
        for _ in range(1000):
            lines.advance()
    few = capsys.readouterr().err.splitlines()
    assert few[0] == "round 1/1000"
    assert few[-1] == "round 1000/1000"
    assert len(few) < 10
