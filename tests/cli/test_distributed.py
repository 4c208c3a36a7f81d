"""`dswag train --engine distributed`: the same run folder, from several processes."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from engines.launch import torchrun

from dswag.cli import main, places
from dswag.core.serialization import as_bytes, as_text
from dswag.lab.experiments.recipe import Recipe
from dswag.runs import CHECKPOINT, CONFIG, FILES, PARTITION, POSTERIOR, RunFolder

TINY = ["--clients", "5", "--clients-per-round", "3", "--rounds", "3", "--explore-epochs", "2", "--samples", "2"]
TINY += ["--server-optimizer", "momentum", "--server-learning-rate", "0.5", "--landscape-examples", "50"]
KILLED = Path(__file__).with_name("killed_rank.py")


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """The run folder that two processes wrote."""
    folder = tmp_path_factory.mktemp("distributed") / "two"
    done = torchrun("-m", "dswag", "train", *TINY, "--engine", "distributed", "--output", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(folder)  # so nobody printed anything else
    assert done.stderr.count("phase 1: round 1/3") == 1
    return folder


def test_two_processes_write_the_run_folder_that_one_writes(there, tmp_path, capsys):
    here = tmp_path / "one"
    assert main(["train", *TINY, "--output", str(here), "--json"]) == 0
    assert {path.name for path in there.iterdir()} == {path.name for path in here.iterdir()} == set(FILES)
    two, one = RunFolder.open(there), RunFolder.open(here)
    assert two.config(Recipe) == one.config(Recipe)
    assert torch.equal(two.checkpoint().server.theta, one.checkpoint().server.theta)
    theirs, ours = two.posterior().tensors(), one.posterior().tensors()
    for name, tensor in ours.items():
        # The variance of weights that hardly move may lie halfway between two float32: the last bit of float64 decides.
        rtol, atol = (2**-23, 2**-126) if name == "variance" else (0, 0)  # below 2^-126 float32 has fewer digits
        torch.testing.assert_close(theirs[name], tensor, rtol=rtol, atol=atol)
    assert [(r.loss, r.clients, r.test_accuracy) for r in two.history()] == [
        (r.loss, r.clients, r.test_accuracy) for r in one.history()
    ]
    around = two.landscape().surroundings, one.landscape().surroundings
    assert around[0].at == around[1].at
    for theirs_along, ours_along in zip(*(each.lines["train"] for each in around), strict=True):
        assert theirs_along == pytest.approx(ours_along, rel=1e-4)
    for method, scores in one.metrics().scores.items():
        assert two.metrics().scores[method].nll == pytest.approx(scores.nll, rel=1e-5)


def without_seconds(folder):
    """What the texts of a run say, but for the seconds that it took."""
    records = [asdict(record) for record in (*folder.history(), folder.exploration(), folder.metrics())]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_killed_in_either_phase_and_resumed_it_is_the_run_that_was_never_killed(there, tmp_path):
    resumed = tmp_path / "resumed"
    training = ["train", "--engine", "distributed"]
    assert torchrun(KILLED, 1, 2, *training, *TINY, "--output", resumed).returncode != 0  # rank 1 dies in round 2
    assert RunFolder.open(resumed).checkpoint().server.round == 1
    assert torchrun(KILLED, 0, 3, *training, "--resume", resumed).returncode != 0  # the leader dies in phase 2
    assert RunFolder.open(resumed).checkpoint().server.round == 3
    done = torchrun("-m", "dswag", *training, "--resume", resumed)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in resumed.iterdir()} == set(FILES)
    for name in (CONFIG, PARTITION, CHECKPOINT, POSTERIOR):
        assert (resumed / name).read_bytes() == (there / name).read_bytes()
    assert without_seconds(RunFolder.open(resumed)) == without_seconds(RunFolder.open(there))


@pytest.mark.parametrize("engine", ["in-process", "flower"])
def test_processes_that_would_each_train_alone_are_refused(engine, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    output = tmp_path / "run"
    assert main(["train", *TINY, "--engine", engine, "--output", str(output)]) == 2
    assert "this is one of 2 processes: pass --engine distributed" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ([], 1, "a run over several processes is started by torchrun, which sets RANK, WORLD_SIZE"),
        (["--rank-timeout", "0"], 2, "--rank-timeout must be above 0 seconds, got 0"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(flags, code, words, tmp_path, capsys, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    output = tmp_path / "run"
    assert main(["train", *TINY, "--engine", "distributed", *flags, "--output", str(output)]) == code
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_ranks_that_were_started_with_other_settings_are_told_which(tmp_path, capsys, monkeypatch):
    class Apart:
        """Two ranks, the other of which has another learning rate."""

        rank = 0

        def tell(self, tensors):
            theirs = json.loads(as_text(tensors["settings"])) | {"learning_rate": 0.3}
            return [tensors, {"settings": as_bytes(json.dumps(theirs))}]

    monkeypatch.setattr(places, "joined", lambda timeout: nullcontext(Apart()))
    output = tmp_path / "run"
    assert main(["train", *TINY, "--engine", "distributed", "--output", str(output)]) == 2
    words = "rank 1 has other settings than rank 0: learning_rate (0.05, not 0.3)"
    assert words in capsys.readouterr().err
    assert not output.exists()
