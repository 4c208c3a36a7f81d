"""`dswag collect` writes the posterior of checkpoints, and refuses in one line what is none."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dswag import GaussianPosterior
from dswag.cli import main
from dswag.posterior.collectors.checkpoint_files import moments_from_files


@pytest.fixture
def collect(capsys):
    """Runs the command: exit code, standard output, standard error."""

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main(["collect", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def checkpoints(tmp_path):
    """A folder with eleven checkpoints of a model with BatchNorm."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for epoch in range(11):
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        torch.save(model.state_dict(), folder / f"epoch{epoch}.pt")
    return folder


def tensors(path):
    posterior = GaussianPosterior.load(path)
    return {**posterior.tensors(), "count": torch.tensor(posterior.count)}, posterior.layout


def assert_same(path, posterior):
    posterior.save(path.parent / "expected.safetensors")
    found, expected = tensors(path), tensors(path.parent / "expected.safetensors")
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    assert all(torch.equal(found[0][name], expected[0][name]) for name in found[0])


def test_the_posterior_of_a_folder_is_that_of_its_files_and_the_progress_is_told(collect, checkpoints, tmp_path):
    output = tmp_path / "posterior.safetensors"
    code, out, err = collect(checkpoints, "-o", output)
    assert code == 0
    assert out == f"posterior of 11 checkpoints, 15 parameters, 11 columns: {output}\n"
    assert err.splitlines() == [
        "left out: 1.running_mean, 1.running_var, 1.num_batches_tracked",
        *(f"checkpoint {epoch + 1}/11: epoch{epoch}.pt" for epoch in range(11)),
    ]
    assert_same(output, moments_from_files(checkpoints).posterior())


@pytest.mark.parametrize("columns", ["last", "svd"])
def test_files_are_taken_in_the_order_given_with_the_columns_asked_for(collect, checkpoints, tmp_path, columns):
    files = [checkpoints / f"epoch{epoch}.pt" for epoch in (3, 10, 2)]
    output = tmp_path / "posterior.safetensors"
    code, out, _ = collect(*files, "--output", output, "--rank", 2, "--columns", columns, "--json")
    assert code == 0
    assert json.loads(out) == {
        "posterior": str(output),
        "checkpoints": 3,
        "parameters": 15,
        "columns": 2,
        "left_out": ["1.running_mean", "1.running_var", "1.num_batches_tracked"],
    }
    assert_same(output, moments_from_files(files, rank=2, columns=columns).posterior())


def test_nested_checkpoints_are_collected_by_key_and_prefix(collect, tmp_path):
    for number in range(3):
        state = {"model.weight": torch.randn(4), "loss.weight": torch.ones(1)}
        torch.save({"epoch": number, "state_dict": state}, tmp_path / f"{number}.ckpt")
    output = tmp_path / "posterior.safetensors"
    files = [tmp_path / f"{number}.ckpt" for number in range(3)]
    code, out, err = collect(*files, "-o", output, "--key", "state_dict", "--prefix", "model.", "--json")
    assert code == 0
    assert json.loads(out)["left_out"] == ["loss.weight"]
    assert_same(output, moments_from_files(files, key="state_dict", prefix="model.").posterior())
    code, out, err = collect(*files, "-o", output)
    assert (code, out) == (1, "")
    assert err == f"error: {files[0]} holds weights further down: say which are meant with the key state_dict\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([".", "-o", "p.pt"], 2, "the output must end in .safetensors, got p.pt"),
        ([".", "-o", "p.safetensors", "--rank", "1"], 2, "rank must be 0 or at least 2 for --columns last, got 1"),
        (
            [".", "-o", "p.safetensors", "--rank", "0", "--columns", "svd"],
            2,
            "rank must be at least 2 for --columns svd, got 0",
        ),
        (["epoch1.pt", "-o", "p.safetensors"], 2, "a posterior needs at least 2 checkpoints, got 1"),
        (["none.pt", "-o", "p.safetensors"], 1, "none.pt does not exist"),
        ([".", "-o", "absent/p.safetensors"], 2, "absent/p.safetensors cannot be written: absent is no folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_any_work(
    collect, checkpoints, monkeypatch, arguments, code, words
):
    monkeypatch.chdir(checkpoints)
    found, out, err = collect(*arguments)
    assert (found, out) == (code, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {words}")


@pytest.mark.parametrize("arguments", [["a.pt"], ["-o", "p.safetensors"], ["a.pt", "-o", "p", "--columns", "first"]])
def test_flags_that_are_missing_or_cannot_be_read_are_bad_usage(collect, arguments):
    code, out, _ = collect(*arguments)
    assert (code, out) == (2, "")


def test_of_many_entries_left_out_the_first_are_named_and_json_has_all(collect, tmp_path):
    for number in range(2):
        names = {f"step{entry}": torch.tensor(entry) for entry in range(9)}
        torch.save({"weight": torch.ones(number + 1)[:1], **names}, tmp_path / f"{number}.pt")
    code, out, err = collect(tmp_path, "-o", tmp_path / "posterior.safetensors", "--json")
    assert code == 0
    assert err.splitlines()[0] == "left out: step0, step1, step2, step3, step4, step5 and 3 more"
    assert json.loads(out)["left_out"] == [*names]


def test_a_bad_checkpoint_leaves_the_posterior_that_stood(collect, checkpoints, tmp_path):
    output = tmp_path / "posterior.safetensors"
    output.write_text("what stood")
    (checkpoints / "epoch7.pt").write_bytes(b"cut off")
    code, out, err = collect(checkpoints, "-o", output)
    assert (code, out) == (1, "")
    assert f"error: {checkpoints / 'epoch7.pt'} is truncated, damaged" in err.splitlines()[-1]
    assert output.read_text() == "what stood"


def test_no_checkpoint_is_overwritten_by_its_posterior(collect, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        save_file({"weight": torch.ones(2)}, tmp_path / f"{number}.safetensors")
    code, _, err = collect(".", "-o", "1.safetensors")
    assert (code, err) == (2, "error: 1.safetensors is one of the checkpoints: choose another output\n")


def test_the_posterior_of_a_folder_is_not_collected_with_it_again(collect, checkpoints):
    output = checkpoints / "posterior.safetensors"
    assert collect(checkpoints, "-o", output)[0] == 0
    code, _, err = collect(checkpoints, "-o", checkpoints / "again.safetensors")
    assert code == 1
    assert "posterior.safetensors is a dswag-posterior file of dswag's own" in err


def test_a_process_that_is_told_to_end_while_it_writes_leaves_nothing(collect, checkpoints, tmp_path, monkeypatch):
    output = tmp_path / "posterior.safetensors"
    fsync = os.fsync

    def told(handle):
        fsync(handle)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(os, "fsync", told)
    assert collect(checkpoints, "-o", output)[0] == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_killed_process_left_is_gone_after_the_next(collect, checkpoints, tmp_path):
    left = tmp_path / ".posterior.safetensors.k1ll3d"
    left.mkdir()
    (left / "posterior.safetensors").write_text("half")
    assert collect(checkpoints, "-o", tmp_path / "posterior.safetensors")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "posterior.safetensors"]


def test_what_does_not_count_is_said(collect, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for epoch in range(3):
        state = {"weight": torch.full((2,), float(epoch)), "loss.weight": torch.ones(3)}
        torch.save(
            {"state_dict": state, "current_model_state": state, "averaging_state": {}}, folder / f"epoch={epoch}.ckpt"
        )
    shutil.copy(folder / "epoch=2.ckpt", folder / "last.ckpt")
    code, out, err = collect(folder, "-o", tmp_path / "posterior.safetensors", "--key", "state_dict")
    assert code == 0
    assert out.startswith("posterior of 3 checkpoints, 2 parameters, 3 columns")
    assert err.splitlines()[:3] == [
        "training averaged its weights: the current ones are taken, not the averages beside them",
        f"left out: {folder / 'last.ckpt'}, which holds the same weights as {folder / 'epoch=2.ckpt'}",
        "left out, as the same in all files, so frozen or no weights: loss.weight",
    ]
    assert [line.rpartition(" ")[2] for line in err.splitlines()[3:]] == [f"epoch={epoch}.ckpt" for epoch in range(3)]
