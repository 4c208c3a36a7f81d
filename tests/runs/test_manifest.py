"""A folder from somebody else, or from yesterday: what was changed in it is told, and links in it are not followed."""

import json

import pytest
import torch
from samples import LANDSCAPE, LAYOUT, METRICS, POSTERIOR

from dswag.algorithms.server_update import Server
from dswag.cli import main
from dswag.data.class_counts import ClassCounts
from dswag.lab.experiments.recipe import Recipe
from dswag.posterior.gaussian import PosteriorFileError
from dswag.runs import FILES, MANIFEST, RunFolder, RunFolderError
from dswag.runs.checkpoint import Checkpoint, CheckpointError
from dswag.runs.schema import RoundRecord

READERS = {
    "config.toml": lambda folder: folder.config(Recipe),
    "partition.json": lambda folder: folder.partition(),
    "history.jsonl": lambda folder: folder.history(),
    "checkpoint.safetensors": lambda folder: folder.checkpoint(),
    "posterior.safetensors": lambda folder: folder.posterior(),
    "landscape.json": lambda folder: folder.landscape(),
    "metrics.json": lambda folder: folder.metrics(),
}


@pytest.fixture
def complete(tmp_path):
    recipe = Recipe(clients=3)
    folder = RunFolder.create(tmp_path / "run", recipe)
    folder.save_partition(ClassCounts(("cat", "dog"), ((3, 0), (1, 2), (4, 4))))
    folder.save_history([RoundRecord(1, 2.5, 0.1, (2, 0), 0.5)])
    folder.save_checkpoint(Checkpoint(Server(torch.arange(8.0), 1), LAYOUT, recipe.decisive()))
    folder.save_posterior(POSTERIOR)
    folder.save_landscape(LANDSCAPE)
    folder.save_metrics(METRICS)
    assert folder.manifest() is None
    folder.save_report("<!doctype html>")
    return folder


def test_a_complete_run_lists_all_its_files(complete, capsys):
    assert set(complete.manifest()) == {*FILES} - {MANIFEST}
    assert main(["check", str(complete.path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name:<24} as saved" for name in FILES if name != MANIFEST]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_bit_that_changed_is_told_wherever_it_is(complete, capsys, name, place):
    content = bytearray((complete.path / name).read_bytes())
    content[int(place * len(content))] ^= 1
    (complete.path / name).write_bytes(content)
    with pytest.raises((RunFolderError, CheckpointError, PosteriorFileError), match=f"{name}|the settings of the run"):
        READERS[name](RunFolder.open(complete.path))
    assert main(["check", str(complete.path), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["files"][name] == "changed or missing"
    assert err.endswith(f"is not as it was saved: {name}\n")


def test_a_change_that_leaves_a_good_file_is_told(complete):
    path = complete.path / "metrics.json"
    path.write_text(path.read_text().replace("0.9", "0.8"))
    with pytest.raises(
        RunFolderError, match=r"metrics\.json was changed after the run: put back what it was, or delete"
    ):
        RunFolder.open(complete.path).metrics()


def test_a_file_that_is_missing_is_told(complete, capsys):
    (complete.path / "partition.json").unlink()
    assert main(["check", str(complete.path)]) == 1
    assert "partition.json           changed or missing" in capsys.readouterr().out


def test_a_change_that_is_meant_lifts_the_manifest_until_the_report_is_there(complete, capsys):
    complete.save_posterior(POSTERIOR)
    assert complete.manifest() is None
    assert main(["check", str(complete.path)]) == 0
    assert "has no manifest.json: the run is not complete" in capsys.readouterr().err
    complete.save_report("<!doctype html>")
    assert "landscape.json" not in complete.manifest()  # it belonged to the posterior before


def test_check_reads_what_no_manifest_vouches_for(complete, capsys):
    (complete.path / MANIFEST).unlink()
    (complete.path / "metrics.json").write_text("{")
    assert main(["check", str(complete.path)]) == 1
    assert "metrics.json is cut off, damaged or foreign" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*FILES, "explorers"])
def test_links_are_not_followed(complete, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("somebody else's")
    (complete.path / name).unlink(missing_ok=True)
    (complete.path / name).symlink_to(elsewhere)
    for use in (
        lambda: RunFolder.open(complete.path),
        lambda: RunFolder.create(complete.path, Recipe(), overwrite=True),
    ):
        with pytest.raises(RunFolderError, match=rf"{name} is a link: a run folder has files of its own"):
            use()
    assert elsewhere.read_text() == "somebody else's"
