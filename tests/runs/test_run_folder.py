"""A run folder gives back what it was given, and says what is wrong with what is not its own."""

import errno
import json
import os
from dataclasses import replace

import pytest
import torch
from samples import LANDSCAPE, LAYOUT, METRICS, POSTERIOR

from dswag import PosteriorFileError
from dswag.algorithms.server_update import Server
from dswag.config import Config
from dswag.core import atomic_files
from dswag.core.atomic_files import SaveError
from dswag.data.class_counts import ClassCounts
from dswag.federation.round_trip import Missing
from dswag.runs import FILES, MANIFEST, RunFolder, RunFolderError, Unwritten
from dswag.runs.checkpoint import Checkpoint, CheckpointError
from dswag.runs.schema import ExploreRecord, RoundRecord

PARTITION = ClassCounts(("cat", "dog"), ((3, 0), (1, 2)))
HISTORY = [
    RoundRecord(1, 2.5, 0.1, (2, 0), 0.5),
    RoundRecord(2, 1.25, 0.2, (1, 2), None, (Missing(2, 'it said {"phase": 2}'),), 800, 200),
]
EXPLORATION = ExploreRecord(0.5, (2, 1), (Missing(1, "vanished"),), 300, 100)
CHECKPOINT = Checkpoint(Server(torch.arange(8.0), 2), LAYOUT)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "deep" / "run", Config(clients=3))


@pytest.fixture
def full(folder):
    folder.save_partition(PARTITION)
    folder.save_history(HISTORY, EXPLORATION)
    folder.save_checkpoint(CHECKPOINT)
    folder.save_posterior(POSTERIOR)
    folder.save_landscape(LANDSCAPE)
    folder.save_metrics(METRICS)
    folder.save_report("<!doctype html>")
    return folder


def test_every_part_comes_back(full):
    opened = RunFolder.open(full.path)
    assert opened.config(Config) == Config(clients=3)
    assert opened.partition() == PARTITION
    assert opened.history() == tuple(HISTORY)
    assert opened.exploration() == EXPLORATION
    checkpoint = opened.checkpoint()
    assert (checkpoint.server.round, checkpoint.layout) == (2, LAYOUT)
    assert torch.equal(checkpoint.server.theta, CHECKPOINT.server.theta)
    assert opened.posterior().layout == LAYOUT
    assert opened.landscape() == LANDSCAPE
    assert opened.metrics() == METRICS
    assert sorted(path.name for path in full.path.iterdir()) == sorted(FILES)


def test_parts_that_are_not_there_yet(folder):
    assert folder.partition() is None
    assert folder.history() == ()
    assert folder.exploration() is None
    assert folder.latest_checkpoint() == (None, ())
    assert folder.landscape() is None
    assert folder.metrics() is None
    assert not folder.has_posterior()
    with pytest.raises(RunFolderError, match=r"has no checkpoint.safetensors: no round of phase 1 was completed"):
        folder.checkpoint()
    with pytest.raises(RunFolderError, match=r"has no posterior.safetensors: the run was stopped too early"):
        folder.posterior()


def test_a_run_is_not_overwritten_unless_asked_to(full):
    with pytest.raises(
        RunFolderError, match=r"holds a run already \(config.toml, partition.json, history.jsonl, .*overwrite"
    ):
        RunFolder.create(full.path, Config())
    assert full.history() == tuple(HISTORY)
    (full.path / "notes.txt").write_text("mine")
    again = RunFolder.create(full.path, Config(clients=4), overwrite=True)
    assert again.config(Config).clients == 4
    assert sorted(path.name for path in again.path.iterdir()) == ["config.toml", "notes.txt"]


def test_new_folders_are_numbered(tmp_path):
    first, second = (RunFolder.create_next(tmp_path / "runs", "mnist-mlp", Config()) for _ in range(2))
    assert [first.path.name, second.path.name] == ["mnist-mlp-1", "mnist-mlp-2"]


@pytest.mark.parametrize("place", ["file/run", "file", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot be written to \(.*\): choose another folder"):
        RunFolder.create(tmp_path / place, Config())
    with pytest.raises(RunFolderError, match="cannot be written to"):
        RunFolder.create_next(tmp_path / place, "run", Config())


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunFolderError, match="is no folder"):
        RunFolder.open(tmp_path / "absent")


def test_damaged_settings_are_refused(folder):
    (folder.path / "config.toml").write_text('colour = "red"\n')
    with pytest.raises(RunFolderError, match=r"settings of the run are damaged.*unknown setting colour"):
        folder.config(Config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"round": 1, "loss": 2', "line 4 is cut off, damaged or foreign: Invalid JSON"),
        ('{"epoch": 1}', "line 4 is cut off, damaged or foreign: round: Field required"),
        ('{"round": 1, "loss": "low", "seconds": 1, "clients": []}', "line 4 .*: loss: "),
        ("\x00\xff", "line 4 is cut off"),
    ],
)
def test_a_damaged_line_of_the_history_is_named(full, text, message):
    with (full.path / "history.jsonl").open("a", encoding="latin-1") as file:
        file.write(text)
    with pytest.raises(RunFolderError, match=message):
        full.history()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"class_names": ["cat"], "cou', "Invalid JSON"),
        ('{"class_names": ["cat"]}', "counts: Field required"),
        ('{"class_names": ["cat"], "counts": [["many"]]}', "counts.0.0: Input should be a valid integer"),
        ('{"class_names": ["cat"], "counts": [[1], [1, 2]]}', "client 1 must have a count for each of 1 classes"),
    ],
)
def test_a_damaged_partition_is_refused(full, text, message):
    (full.path / "partition.json").write_text(text)
    with pytest.raises(RunFolderError, match=f"partition.json is cut off, damaged or foreign: .*{message}"):
        full.partition()


def test_damaged_metrics_are_refused(full):
    path = full.path / "metrics.json"
    text = path.read_text()
    path.write_text(text[:100])
    with pytest.raises(RunFolderError, match=r"metrics.json is cut off, damaged or foreign"):
        full.metrics()
    values = json.loads(text)
    del values["scores"]["DSWAG"]["nll"]
    path.write_text(json.dumps(values))
    with pytest.raises(RunFolderError, match=r"scores.DSWAG.nll: Field required"):
        full.metrics()


def test_a_landscape_goes_with_the_posterior_that_it_is_of(full):
    full.save_posterior(POSTERIOR)
    assert full.landscape() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("num_examples"), "num_examples: Field required"),
        (lambda values: values["surroundings"].update(at=[-2.0, 2.0, 0.0]), "surroundings: .*must ascend, got"),
        (lambda values: values["surroundings"].update(at=[]), "surroundings: .*must ascend, got"),
        (lambda values: values["surroundings"].update(eigenvalues=[4.0, 0.0]), "variances must be above 0"),
        (lambda values: values["surroundings"].update(total_variance=0.0), "variances must be above 0"),
        (lambda values: values["surroundings"].update(eigenvalues=[4.0]), "losses must be 1 rows of 3 finite|planes"),
        (
            lambda values: values["surroundings"]["planes"][0].update(axes=[1, 3]),
            "planes must be of eigenvectors 1 to 2",
        ),
        (lambda values: values["surroundings"]["planes"][0]["loss"].pop(), "losses must be 3 rows of 3 finite numbers"),
        (lambda values: values["surroundings"]["lines"]["train"][1].pop(), "losses must be 2 rows of 3 finite numbers"),
        (lambda values: values["surroundings"].update(lines={}), "has lines of the train loss, got \\[\\]"),
        (lambda values: values["places"].update(mean=[[0.0]]), "places of mean must have a number for each of 2"),
    ],
)
def test_a_damaged_landscape_is_refused(full, change, message):
    path = full.path / "landscape.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(RunFolderError, match=f"landscape.json is cut off, damaged or foreign: .*({message})"):
        full.landscape()


def test_numbers_that_are_none_are_not_written(folder):
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.save_history([replace(HISTORY[0], loss=float("nan"))])
    assert folder.history() == ()


@pytest.mark.parametrize("name", ["checkpoint", "posterior"])
def test_truncated_tensors_are_refused(full, name):
    path = full.path / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises((CheckpointError, PosteriorFileError), match=f"{name}.safetensors is truncated, damaged or no"):
        getattr(full, name)()


def test_a_process_that_does_not_write_changes_nothing(full):
    full.answers.mkdir()
    (full.path / ".metrics.json.x").mkdir()  # it may be the other's, at work
    before = {path: path.read_bytes() for path in full.path.rglob("*") if path.is_file()}
    other = Unwritten(full.path)
    with other.held(), Unwritten(full.path).held():
        other.save_partition(ClassCounts(("cat",), ((1,),)))
        other.save_history(HISTORY[:1])
        other.save_checkpoint(Checkpoint(Server(torch.arange(8.0), 1), LAYOUT))
        other.save_posterior(POSTERIOR)
        other.save_landscape(LANDSCAPE)
        other.save_metrics(METRICS)
        other.save_report("<p>")
        other.remove_leftovers()
        other.remove_answers()
    assert {path: path.read_bytes() for path in full.path.rglob("*") if path.is_file()} == before
    assert full.answers.is_dir()
    assert (full.path / ".metrics.json.x").is_dir()
    assert other.history() == tuple(HISTORY)


def test_a_history_that_is_ahead_of_the_checkpoint_is_cut_and_one_behind_it_is_refused(full):
    first = Checkpoint(Server(torch.arange(8.0), 1), LAYOUT)
    assert full.rounds_before(None) == ()
    assert full.rounds_before(first) == tuple(HISTORY[:1])
    assert full.rounds_before(CHECKPOINT) == tuple(HISTORY)
    full.save_history(HISTORY[:1])
    with pytest.raises(RunFolderError, match="tells of 1 rounds, the checkpoint is of round 2: put back"):
        full.rounds_before(CHECKPOINT)


def test_a_new_run_in_an_old_folder_finds_nothing_of_the_old_one(full):
    full.save_checkpoint(CHECKPOINT)
    full.answers.mkdir()
    (full.answers / "00000.safetensors").write_text("old")
    (full.path / ".checkpoint.safetensors.x").mkdir()  # left by a process that was killed
    (full.path / ".checkpoint.safetensors.x" / "checkpoint.safetensors").write_text("half")
    (full.path / "notes.txt").write_text("mine")
    new = RunFolder.create(full.path, Config(), overwrite=True)
    assert sorted(path.name for path in new.path.iterdir()) == ["config.toml", "notes.txt"]


@pytest.mark.parametrize("name", ["history", "checkpoint", "posterior", "landscape", "metrics", "report"])
def test_a_disk_that_is_full_is_one_error_with_advice_and_leaves_what_was_there(full, name, monkeypatch):
    """Expected of every file: the old content, no temporary, and how to go on."""
    parts = {
        "history": lambda: full.save_history(HISTORY),
        "checkpoint": lambda: full.save_checkpoint(CHECKPOINT),
        "posterior": lambda: full.save_posterior(POSTERIOR),
        "landscape": lambda: full.save_landscape(LANDSCAPE),
        "metrics": lambda: full.save_metrics(METRICS),
        "report": lambda: full.save_report("<p>"),
    }
    (full.path / MANIFEST).unlink()  # it is lifted before anything changes
    before = {path: path.read_bytes() for path in full.path.iterdir()}

    def full_disk(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_files.os, "fsync", full_disk)
    with pytest.raises(SaveError, match=rf"{name}\..* cannot be written \(No space left on device\): free .*--resume"):
        parts[name]()
    assert {path: path.read_bytes() for path in full.path.iterdir()} == before


def test_a_folder_that_has_become_read_only_is_one_error_with_advice(full, monkeypatch):
    def read_only(**options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(atomic_files.tempfile, "mkdtemp", read_only)
    with pytest.raises(SaveError, match=r"history.jsonl cannot be written \(Read-only file system\): free the disk or"):
        full.save_history(HISTORY)
