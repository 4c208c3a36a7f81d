"""`dswag calibrate` fits a run's posterior to what its clients held out, and says so."""

import json

import pytest

from dswag.cli import main
from dswag.evaluation.principal import total_variance
from dswag.runs import RunFolder

TINY = ["--clients", "3", "--rounds", "2", "--explore-epochs", "2", "--samples", "3", "--snapshots-per-cycle", "2"]
TINY += ["--landscape-examples", "50"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *TINY, "--holdout", "0.1", "--output", str(folder)]) == 0
    return folder


def test_the_fit_is_saved_and_scored(run, capsys):
    before = RunFolder.open(run).metrics()
    assert main(["calibrate", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    posterior = RunFolder.open(run).posterior()
    for name in ("within_scale", "between_scale", "temperature"):
        assert printed[name] == getattr(posterior, name)
    landscape = RunFolder.open(run).landscape()
    assert (landscape is None) == posterior.is_point  # of the posterior that was fitted
    if landscape is not None:
        assert landscape.surroundings.total_variance == total_variance(*posterior.factors("swag"))
    after = RunFolder.open(run).metrics()
    assert list(after.scores) == list(before.scores)
    unchanged = {name for name in after.scores if after.scores[name] == before.scores[name]}
    assert {"phase-1 model", "clients' ensemble"} <= unchanged


def test_training_may_calibrate_by_itself(run, tmp_path):
    assert main(["train", *TINY, "--holdout", "0.1", "--calibrate", "--output", str(tmp_path / "run")]) == 0
    main(["calibrate", str(run)])
    one, two = (RunFolder.open(path).posterior() for path in (run, tmp_path / "run"))
    assert (one.within_scale, one.between_scale, one.temperature) == (
        two.within_scale,
        two.between_scale,
        two.temperature,
    )


def test_a_run_that_held_nothing_out_is_refused(tmp_path, capsys):
    assert main(["train", *TINY, "--output", str(tmp_path / "run")]) == 0
    assert main(["calibrate", str(tmp_path / "run")]) == 1
    assert "train with holdout, such as 0.1" in capsys.readouterr().err
    assert main(["train", *TINY, "--calibrate", "--output", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
