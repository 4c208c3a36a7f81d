"""What happens in a run, sent to TensorBoard or MLflow as it happens: each takes numbers by name, and a step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from dswag.core.extras import required

Log = Callable[[Mapping[str, float], int], None]
"""Takes numbers by name, and the step, such as the round, that they are of."""


@contextmanager
def tensorboard(folder: str | Path) -> Iterator[Log]:
    """Writes event files, which `tensorboard --logdir FOLDER` shows.

    Raises:
        ImportError: tensorboard is not installed.
    """
    required("tensorboard", "the log", extra="tensorboard")
    summary = required("torch.utils.tensorboard", "the log", extra="tensorboard")
    with summary.SummaryWriter(str(folder)) as writer:

        def log(values: Mapping[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield log


@contextmanager
def mlflow(folder: str | Path) -> Iterator[Log]:
    """Writes a run into an SQLite file, which `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db` shows.

    The run is marked as failed if an exception ends it.

    Raises:
        ImportError: mlflow is not installed.
    """
    tracking = required("mlflow.tracking", "the log", extra="mlflow")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name("dswag")
    experiment = client.create_experiment("dswag") if found is None else found.experiment_id
    run = client.create_run(experiment).info.run_id

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            client.log_metric(run, name, value, step=step)

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    finally:
        client.set_terminated(run, status)


LOGGERS: Mapping[str, Callable[[str | Path], AbstractContextManager[Log]]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
}
"""Each by its name on the command line; each makes a context, which ends the log."""
