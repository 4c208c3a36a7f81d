"""A run that was stopped, wherever, and resumed is bit for bit the run that was never stopped."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from dswag import DivergenceError, InProcess
from dswag.core.atomic_files import SaveError
from dswag.lab.experiments import run
from dswag.lab.experiments.recipe import Recipe, build
from dswag.lab.experiments.run import Starting, execute
from dswag.runs import FILES, MANIFEST, REPORT, RunFolder, RunFolderError
from dswag.runs.checkpoint import CheckpointError
from dswag.runs.schema import ExploreRecord, RoundRecord

RECIPE = Recipe(
    clients=4,
    equal_budget=True,
    rounds=4,
    clients_per_round=3,
    server_optimizer="adam",
    server_learning_rate=0.01,
    final_learning_rate=0.01,
    explorers=3,
    explore_epochs=4,
    cycles=2,
    rank=3,
    samples=2,
    checkpoint_every=3,
    landscape_examples=30,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small operations are slower on several threads, above all where several test processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(recipe):
    """The recipe on a few of its data set's examples."""
    whole = build(recipe, workers=1)
    parts = torch.arange(20 * recipe.clients).split(20)
    dataset = replace(whole.dataset, test=whole.dataset.test[torch.arange(60)])
    engine = InProcess(whole.model, [dataset.train[part] for part in parts], workers=1)
    return replace(whole, dataset=dataset, engine=engine)


@pytest.fixture(scope="module")
def experiment():
    return small(RECIPE)


def outcome(folder):
    """All that a run comes to, but for the seconds that it took."""
    server = folder.checkpoint().server
    records = [asdict(record) for record in (*folder.history(), folder.exploration())]
    metrics = asdict(folder.metrics())
    for part in (*records, metrics):
        part.pop("seconds")
    tensors = {**folder.posterior().tensors(), "θ": server.theta, "m": server.momentum, "v": server.second_moment}
    posterior = folder.posterior()
    scales = (posterior.within_scale, posterior.between_scale, posterior.temperature, posterior.count)
    return (
        records,
        metrics,
        folder.landscape(),
        scales,
        server.round,
        server.first_loss,
        {n: t.tolist() for n, t in tensors.items()},
    )


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """The outcome of a run that was never stopped."""
    folder = RunFolder.create(tmp_path_factory.mktemp("whole"), RECIPE)
    events = list(execute(experiment, folder))
    assert len(events) == 16
    return outcome(folder)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", RECIPE)


def finish(experiment, folder):
    """Goes on to the end; returns what happened on the way."""
    events = list(execute(experiment, folder))
    assert sorted(path.name for path in folder.path.iterdir()) == sorted(set(FILES) - {REPORT, MANIFEST})
    return events


@pytest.mark.parametrize("number", range(1, 17))
def test_left_after_any_event(experiment, folder, whole, number):
    for _ in zip(range(number), execute(experiment, folder), strict=False):
        pass
    rounds = folder.history()
    events = finish(experiment, folder)
    assert outcome(folder) == whole
    assert events[0].rounds == len(rounds) // 3 * 3 if number < 6 else 4
    assert [event.seconds for event in folder.history()[: events[0].rounds]] == [
        record.seconds for record in rounds[: events[0].rounds]
    ]


def test_while_a_run_is_under_way_no_other_trains_into_its_folder(experiment, folder):
    """Two that differ in their settings would leave the posterior of one with the settings of the other."""
    first = execute(experiment, folder)
    next(first)
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(RunFolderError, match=r"another process trains into .*run: let it come to its end, end it, or"):
        next(execute(experiment, folder))
    with pytest.raises(RunFolderError, match="another process trains into"):
        RunFolder.create(folder.path, replace(RECIPE, seed=5), overwrite=True)
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before
    first.close()
    assert RunFolder.create(folder.path, replace(RECIPE, seed=5), overwrite=True).config(Recipe).seed == 5


class Killed(BaseException):
    """Passes through everything."""


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_killed_at_any_write_before_or_after_it(experiment, folder, whole, monkeypatch, owner, name):
    """Each write is flushed once and then renamed, and the old checkpoint too."""
    real, left = getattr(owner, name), [0]

    def dying(*arguments):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(owner, name, dying)
    deaths = 0
    for at in (2, 1, 3, 4, 2, 1, 2, 3, 1, 2, 2, 1, 4):
        left[0] = at
        try:
            list(execute(experiment, folder))
        except Killed:
            deaths += 1
    monkeypatch.undo()
    assert deaths > 8
    if folder.metrics() is None:
        finish(experiment, folder)
    assert outcome(folder) == whole


@pytest.mark.parametrize("number", [1, 2, 3])
def test_stopped_in_phase_2_it_asks_only_the_explorers_left(experiment, folder, whole, number):
    def explored():
        done.append(None)
        if len(done) == number:
            raise KeyboardInterrupt

    done = []
    with pytest.raises(KeyboardInterrupt):
        list(execute(experiment, folder, advance=explored))
    assert len(list(folder.answers.iterdir())) == number
    assert not folder.has_posterior()
    asked = []
    counting = replace(experiment, engine=Counting(experiment.engine, asked))
    finish(counting, folder)
    assert len(asked) == 3 - number
    assert outcome(folder) == whole


class Counting:
    def __init__(self, engine, asked):
        self.engine, self.asked, self.num_clients = engine, asked, engine.num_clients
        self.batch_norm_layers = engine.batch_norm_layers

    def answers(self, payload, tasks):
        self.asked += [task for task in tasks if task.occasion == "phase 2"]
        return self.engine.answers(payload, tasks)

    def combine(self, fold, failure=None):
        pass


def test_what_was_fitted_is_not_fitted_again(experiment, folder, monkeypatch):
    fitted = []

    def calibrate(engine, posterior, config):
        fitted.append(None)
        return replace(posterior, temperature=1.5)

    monkeypatch.setattr(run, "calibrate", calibrate)
    recipe = replace(RECIPE, holdout=0.1, calibrate=True)
    for _ in zip(range(9), execute(replace(experiment, recipe=recipe), folder), strict=False):
        pass
    assert (len(fitted), folder.posterior().temperature) == (1, 1.5)
    finish(replace(experiment, recipe=recipe), folder)
    assert (len(fitted), folder.posterior().temperature) == (1, 1.5)


def test_a_posterior_that_was_damaged_is_made_again(experiment, folder, whole):
    for _ in zip(range(9), execute(experiment, folder), strict=False):
        pass
    path = folder.path / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    finish(experiment, folder)
    assert outcome(folder) == whole


def stop_after(experiment, folder, rounds):
    for event in execute(experiment, folder):
        if isinstance(event, RoundRecord) and event.round == rounds:
            return


def test_a_damaged_checkpoint_costs_the_rounds_since_the_one_before_and_is_told(tmp_path):
    recipe = replace(RECIPE, checkpoint_every=1)
    experiment = small(recipe)
    folders = [RunFolder.create(tmp_path / name, recipe) for name in ("whole", "damaged")]
    finish(experiment, folders[0])
    stop_after(experiment, folders[1], 3)
    newest = folders[1].path / "checkpoint.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    (started, *_) = finish(experiment, folders[1])
    assert isinstance(started, Starting)
    assert started.rounds == 2
    assert len(started.faults) == 1
    assert "checkpoint.safetensors is truncated, damaged or no checkpoint" in started.faults[0]
    assert outcome(folders[1]) == outcome(folders[0])


def test_a_checkpoint_of_other_settings_is_refused(experiment, folder):
    stop_after(experiment, folder, 3)
    other = replace(experiment, recipe=replace(RECIPE, learning_rate=0.02, explorers=2))
    with pytest.raises(CheckpointError, match=r"other settings: learning_rate .*, explorers \(2, not 3\)"):
        list(execute(other, folder))
    indifferent = replace(experiment, recipe=replace(RECIPE, checkpoint_every=1, data_dir="elsewhere"))
    assert next(execute(indifferent, folder)).rounds == 3


def test_a_history_that_was_lost_is_an_error(experiment, folder):
    stop_after(experiment, folder, 3)
    (folder.path / "history.jsonl").unlink()
    with pytest.raises(RunFolderError, match="tells of 0 rounds, the checkpoint is of round 3"):
        list(execute(experiment, folder))


def test_a_disk_that_is_full_ends_the_run_and_a_larger_one_goes_on(experiment, folder, whole):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the history fits, θ of 636 kB does not
    try:
        with pytest.raises(SaveError, match=r"checkpoint.safetensors cannot be written .*go on with: dswag train --"):
            list(execute(experiment, folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in folder.path.iterdir()} == {"config.toml", "partition.json", "history.jsonl"}
    finish(experiment, folder)
    assert outcome(folder) == whole


def test_a_run_that_stopped_early_does_not_train_on(tmp_path):
    recipe = replace(RECIPE, rounds=40, stop_accuracy=0.3, checkpoint_every=1)
    experiment = small(recipe)
    folders = [RunFolder.create(tmp_path / name, recipe) for name in ("whole", "stopped")]
    finish(experiment, folders[0])
    rounds = len(folders[0].history())
    assert 1 < rounds < 40
    stop_after(experiment, folders[1], rounds)
    finish(experiment, folders[1])
    assert outcome(folders[1]) == outcome(folders[0])


def test_a_run_without_a_client_tells_who_and_why(tmp_path, experiment):
    recipe = replace(RECIPE, on_failure="skip")
    clients = [experiment.dataset.train[part] for part in torch.arange(80).split(20)]
    clients[2] = replace(clients[2], targets=clients[2].targets + 20)
    failing = replace(experiment, recipe=recipe, engine=InProcess(experiment.model, clients, workers=1))
    folder = RunFolder.create(tmp_path / "run", recipe)
    events = finish(failing, folder)
    records = [event for event in events if isinstance(event, RoundRecord | ExploreRecord)]
    assert records == [*folder.history(), folder.exploration()]
    for record in records:
        assert [missing.client for missing in record.missing] == ([2] if 2 in record.clients else [])
        assert all("IndexError" in missing.cause for missing in record.missing)
    assert any(record.missing for record in records)
    d = experiment.engine._workspaces[0].layout.d
    sent = len(records[0].clients)
    assert records[0].bytes_down == pytest.approx(sent * 4 * d, rel=1e-3)
    assert records[0].bytes_up == pytest.approx((sent - len(records[0].missing)) * 4 * d, rel=1e-3)
    assert records[-1].bytes_up == pytest.approx((3 - len(records[-1].missing)) * 2 * 4 * d, rel=1e-3)


def test_divergence_leaves_the_rounds_before_it(experiment, folder):
    recipe = replace(RECIPE, server_optimizer="momentum", server_learning_rate=1e4, checkpoint_every=1)
    with pytest.raises(DivergenceError, match=r"round 2 diverged: .*lower server_learning_rate"):
        list(execute(replace(experiment, recipe=recipe), folder))
    assert [record.round for record in folder.history()] == [1]
