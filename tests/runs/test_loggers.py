"""Logs are what TensorBoard and MLflow themselves read back."""

import pytest

from dswag.cli import main
from dswag.runs import RunFolder
from dswag.runs.loggers import mlflow, tensorboard

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own imports


def scalars(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_reads_what_was_logged(tmp_path):
    with tensorboard(tmp_path) as log:
        log({"phase 1/loss": 2.0, "phase 1/test accuracy": 0.5}, 1)
        log({"phase 1/loss": 1.0}, 2)
    found = scalars(tmp_path)
    assert found == {"phase 1/loss": [(1, 2.0), (2, 1.0)], "phase 1/test accuracy": [(1, 0.5)]}


def test_a_run_logs_its_rounds_and_scores(tmp_path):
    settings = ["--clients", "2", "--rounds", "2", "--explore-epochs", "2"]
    settings += ["--samples", "2", "--landscape-examples", "0"]
    run, logs = tmp_path / "run", tmp_path / "logs"
    assert main(["train", *settings, "--output", str(run), "--log", "tensorboard", str(logs), "--json"]) == 0
    folder, found = RunFolder.open(run), scalars(logs)
    losses = [(record.round, pytest.approx(record.loss)) for record in folder.history()]
    assert found["phase 1/loss"] == losses
    for method, scores in folder.metrics().scores.items():
        assert found[f"{method}/nll".replace("'", "")] == [(2, pytest.approx(scores.nll))]


def test_mlflow_reads_what_was_logged_and_knows_failures(tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    with mlflow(tmp_path) as log:
        log({"clients ensemble/nll": 2.0}, 1)
        log({"clients ensemble/nll": 1.0}, 2)
    with pytest.raises(KeyError), mlflow(tmp_path):
        raise KeyError("x")
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("dswag").experiment_id], order_by=["start_time"])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]
    (done,) = (run for run in runs if run.info.status == "FINISHED")
    history = client.get_metric_history(done.info.run_id, "clients ensemble/nll")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]
