"""A checkpoint gives back all that the next round needs, and a damaged one is told from a whole one."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from samples import LAYOUT, cut, flip

from dswag import Config, Server
from dswag.core.checksums import fingerprint
from dswag.lab.experiments.recipe import Recipe
from dswag.runs.checkpoint import Checkpoint, CheckpointError, before

THETA = torch.tensor([0.1, -0.0, 1e-45, 3e38, -2.5, 1 / 3, 7.0, 8.0])
SERVER = Server(THETA, 3, momentum=-THETA, second_moment=THETA.square(), first_loss=0.1 + 0.2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def same(one, other):
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("theta", "momentum", "second_moment")]
    tensors = all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)
    return tensors and (one.round, one.first_loss) == (other.round, other.first_loss)


@pytest.mark.parametrize(
    "server", [Server(THETA), SERVER, replace(SERVER, second_moment=None), Server(THETA.double(), 1, first_loss=2.0)]
)
def test_a_server_comes_back_bit_for_bit(path, server):
    Checkpoint(server, LAYOUT, Config(clients=3).decisive()).save(path)
    found = Checkpoint.load(path)
    assert same(found.server, server)
    assert found.server.theta.dtype == server.theta.dtype
    assert found.layout == LAYOUT
    found.check(Config(clients=3))


def test_the_newest_is_taken_and_the_one_before_is_kept(path):
    assert Checkpoint.latest(path) == (None, ())
    for round in (1, 2, 3):
        Checkpoint(Server(THETA + round, round)).save(path)
        found, faults = Checkpoint.latest(path)
        assert (found.server.round, faults) == (round, ())
        assert before(path).exists() == (round > 1)
    assert Checkpoint.load(before(path)).server.round == 2
    assert len(list(path.parent.iterdir())) == 2


DAMAGES = {
    "truncated": cut,
    "empty": lambda path: path.write_bytes(b""),
    "one bit of θ": lambda path: flip(path, -1),
    "one bit of the metadata": lambda path: flip(path, path.read_bytes().index(b'\\"round\\"') + 3),
    "of another kind": lambda path: save_file({"theta": THETA}, path),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_where_the_newest_is_damaged_the_one_before_is_taken_and_it_says_so(path, damage):
    for round in (1, 2):
        Checkpoint(Server(THETA, round)).save(path)
    damage(path)
    found, (fault,) = Checkpoint.latest(path)
    assert found.server.round == 1
    assert fault.startswith(f"{path} is ")
    damage(before(path))
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read: .*before.* train from the start again"):
        Checkpoint.latest(path)


def test_a_process_that_died_between_two_renames_left_the_one_before(path):
    Checkpoint(Server(THETA, 1)).save(path)
    path.replace(before(path))
    found, faults = Checkpoint.latest(path)
    assert (found.server.round, faults) == (1, ())


def test_a_foreign_or_newer_file_is_refused_by_name(path):
    described = {"format": "dswag-posterior", "format_version": "1"}
    save_file({"theta": THETA}, path, described)
    with pytest.raises(CheckpointError, match="is no dswag checkpoint: expected format dswag-checkpoint, got dswag-po"):
        Checkpoint.load(path)
    save_file({"theta": THETA}, path, {"format": "dswag-checkpoint", "format_version": "99", "dswag": "7.0"})
    with pytest.raises(
        CheckpointError, match=r"format version 99, this dswag reads up to 1: install dswag 7.0 or newer"
    ):
        Checkpoint.load(path)
    with pytest.raises(FileNotFoundError):
        Checkpoint.load(path.with_name("absent"))


@pytest.mark.parametrize(
    "described", ["[" * 100_000, '{"round": -1, "first_loss": null, "layout": null, "settings": {}}']
)
def test_a_description_that_no_save_makes_is_refused(path, described):
    metadata = {"format": "dswag-checkpoint", "format_version": "1", "described": described}
    save_file({"theta": THETA}, path, {**metadata, "fingerprint": fingerprint({"theta": THETA}, described)})
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors is truncated, damaged or no checkpoint"):
        Checkpoint.load(path)


def test_a_checkpoint_of_other_settings_is_refused_with_those_that_differ(path):
    recipe = Recipe(clients=3, clients_per_round=1, data_dir="here", checkpoint_every=2)
    Checkpoint(SERVER, LAYOUT, recipe.decisive()).save(path)
    found = Checkpoint.load(path)
    found.check(replace(recipe, data_dir="there", checkpoint_every=5))  # the outcome does not depend on these
    with pytest.raises(
        CheckpointError,
        match=r'the checkpoint of round 3 is of a run with other settings: clients_per_round \("all", not 1\), '
        r"learning_rate \(0.1, not 0.05\)$",
    ):
        found.check(replace(recipe, learning_rate=0.1, clients_per_round="all"))
    with pytest.raises(CheckpointError, match=r"dataset \(null, not \"mnist5k\"\)"):
        found.check(Config(clients=3))


def test_nothing_in_the_file_is_more_than_tensors_and_text(path):
    Checkpoint(SERVER, LAYOUT, Config().decisive()).save(path)
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["momentum", "second_moment", "theta"]
        assert json.loads(file.metadata()["described"])["round"] == 3
