"""Reproducing does what is left, and says what that is."""

import errno
import json
import os
from dataclasses import replace

import pytest

from dswag.core import atomic_files
from dswag.core.atomic_files import SaveError
from dswag.core.provenance import RESULTS_VERSION
from dswag.lab.experiments import reproduction, trained
from dswag.lab.experiments.plan import Case, Plan, load
from dswag.lab.experiments.reproduction import present, remaining, reproduce, seconds_left

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


@pytest.fixture
def plan(tiny_recipe):
    cases = [{"clients": clients, "seed": seed} for clients in (2, 3) for seed in (0, 1)]
    recipe = replace(tiny_recipe, rounds=1, explore_epochs=1)
    made = tuple(Case(settings, replace(recipe, **settings), {}) for settings in cases)
    return Plan("fig5-left", "Phase 1", "course", 100.0, made)


def run(plan, tmp_path, **options):
    return [case.name for case in reproduce(plan, tmp_path / "results", tmp_path / "work", **options)]


def test_seed_after_seed_is_done_and_nothing_twice(plan, tmp_path):
    assert run(plan, tmp_path) == ["clients-2_seed-0", "clients-3_seed-0", "clients-2_seed-1", "clients-3_seed-1"]
    assert run(plan, tmp_path) == []
    names = [(result["case"]["clients"], result["case"]["seed"]) for result in present(plan, tmp_path / "results")]
    assert names == [(2, 0), (2, 1), (3, 0), (3, 1)]


def test_stopped_in_between_it_goes_on_where_it_was(plan, tmp_path):
    cases = reproduce(plan, tmp_path / "results", tmp_path / "work")
    next(cases)
    cases.close()
    assert len(remaining(plan, tmp_path / "results")) == 3
    assert len(run(plan, tmp_path)) == 3


def test_what_a_process_left_that_was_killed_at_a_result_is_removed(plan, tmp_path):
    left = tmp_path / "results" / "fig5-left" / ".clients-2_seed-0.json.x"
    left.mkdir(parents=True)
    run(plan, tmp_path, only=("clients-2", "seed-0"))
    assert [path.name for path in left.parent.iterdir()] == ["clients-2_seed-0.json"]


def test_only_some_cases_are_done_where_that_is_asked(plan, tmp_path):
    assert run(plan, tmp_path, only=("clients-3", "seed-1")) == ["clients-3_seed-1"]
    assert run(plan, tmp_path, only=("seed-1",)) == ["clients-2_seed-1"]
    assert run(plan, tmp_path, only=("seed",)) == []


def test_settings_whose_names_have_underscores_can_be_asked_for(tmp_path):
    chosen = remaining(load("fig8"), tmp_path, only=("explore_epochs-6", "seed-0"))
    assert {(case.recipe.explore_epochs, case.recipe.seed) for case in chosen} == {(6, 0)}
    assert len(chosen) == 10  # five partitions, ten and fifty clients


def test_a_figure_of_phase_1_takes_no_phase_2(plan, tmp_path):
    run(plan, tmp_path, only=("clients-2", "seed-0"))
    (folder,) = (tmp_path / "work").iterdir()
    assert not list(folder.glob("phase-2*"))
    tables = replace(
        plan, measure="methods", cases=tuple(replace(c, options={"methods": ["phase-1"]}) for c in plan.cases)
    )
    run(tables, tmp_path / "again", only=("clients-2", "seed-0"))
    (folder,) = (tmp_path / "again" / "work").iterdir()
    assert list(folder.glob("phase-2*"))


def test_a_result_says_what_it_is_of(plan, tmp_path):
    run(plan, tmp_path, only=("clients-2", "seed-0"))
    result = json.loads((tmp_path / "results" / "fig5-left" / "clients-2_seed-0.json").read_text())
    assert result["config"]["clients"] == 2
    assert "data_dir" not in result["config"]
    assert {"dswag", "commit", "results_version", "torch", "python", "system", "processor"} <= set(
        result["environment"]
    )
    assert result["seconds"] > 0
    assert len(result["measured"]["rounds"]) == 1


def test_what_is_left_takes_as_long_as_what_is_done(plan, tmp_path):
    results = tmp_path / "results"
    assert seconds_left(plan, results) == 400.0
    run(plan, tmp_path, only=("clients-2",))
    done = [result["seconds"] for result in present(plan, results)]
    assert seconds_left(plan, results) == pytest.approx(sum(done))
    run(plan, tmp_path)
    assert seconds_left(plan, results) == 0


def edited(path, change):
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


def test_results_from_before_a_fix_are_measured_again(plan, tmp_path):
    run(plan, tmp_path, only=("seed-0",))
    results = tmp_path / "results"
    fixed = replace(plan, results_version=RESULTS_VERSION + 1)
    assert (len(remaining(plan, results)), len(remaining(fixed, results))) == (2, 4)
    path = results / "fig5-left" / "clients-2_seed-0.json"
    edited(path, lambda result: result["environment"].update(results_version=str(RESULTS_VERSION + 1)))
    assert (len(remaining(fixed, results)), len(present(fixed, results))) == (3, 1)
    edited(path, lambda result: result["environment"].pop("results_version"))  # older than versions of results
    assert (len(remaining(plan, results)), len(remaining(fixed, results))) == (2, 4)


def test_other_settings_or_options_make_a_result_old(plan, tmp_path):
    run(plan, tmp_path, only=("seed-0",))
    path = tmp_path / "results" / "fig5-left" / "clients-2_seed-0.json"
    assert len(remaining(plan, tmp_path / "results")) == 2
    edited(path, lambda result: result["config"].pop("nesterov"))  # written before there was such a setting
    assert len(remaining(plan, tmp_path / "results")) == 2
    edited(path, lambda result: result["config"].update(learning_rate=0.1))
    assert len(remaining(plan, tmp_path / "results")) == 3
    changed = replace(plan, cases=tuple(replace(case, options={"more": 1}) for case in plan.cases))
    assert len(remaining(changed, tmp_path / "results")) == 4


@pytest.mark.parametrize(("name", "flag"), [("results", "--output"), ("work", "--work")])
def test_a_folder_that_cannot_be_written_to_is_named_before_any_work(plan, tmp_path, monkeypatch, name, flag):
    (tmp_path / name).write_text("a file in its place")
    monkeypatch.setattr(reproduction, "build", lambda recipe: pytest.fail("worked"))
    with pytest.raises(SaveError, match=rf"{name}.* cannot be written \(.+\): choose another {flag}$"):
        run(plan, tmp_path)


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_at_the_result_loses_nothing_of_the_training(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "write_text", full_disk)
    with pytest.raises(
        SaveError, match=r"clients-2_seed-0.json cannot be written \(No space left on device\): make room"
    ):
        run(plan, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(trained, "synchronize", lambda *_: pytest.fail("trained again"))
    assert run(plan, tmp_path, only=("clients-2", "seed-0")) == ["clients-2_seed-0"]


def test_a_disk_that_is_full_in_training_is_named(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_files.os, "fsync", full_disk)
    with pytest.raises(
        SaveError, match=r"work.* cannot be written \(No space left on device\): make room .* start again"
    ):
        run(plan, tmp_path)
