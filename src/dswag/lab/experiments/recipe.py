"""A run on a known data set: its settings, and the data, the model and the clients that they describe."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

import torch
from jaxtyping import Int64
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from dswag.config import Config, ConfigError
from dswag.config.parts import Count, Rate, Switch
from dswag.core.randomness import derive_seed
from dswag.core.validation import Setting, described, paths, validated
from dswag.data import datasets
from dswag.data.formats import DataFormatError
from dswag.data.partition import PARTITIONS, needed_settings, partition
from dswag.engines.in_process import InProcess
from dswag.federation.contract import Engine
from dswag.lab import models

_EXAMPLES = {"concentration": 0.3, "shards_per_client": 2}
"""Settings that some partitions need, each with a value to try."""
INDIFFERENT = ("data_dir", "checkpoint_every", "equal_budget", "landscape_examples")
"""Settings that a run's outcome does not depend on, so that a resumed one may change them."""


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError("must be cpu, cuda, or one of several such as cuda:1")
    return name


@validated
class DataSettings:
    """Data and model: what is trained on what."""

    dataset: str = "mnist5k"
    """Data set, one of mnist5k (inside the package), mnist, fashion-mnist and cifar10."""
    data_dir: str | None = None
    """Folder with the data set's files, searched before DSWAG_DATA_DIR, the cache and the network."""
    model: Literal["mlp", "cnn", "vgg16"] = "mlp"
    """The network; vgg16 takes images of 32 x 32."""
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    """Where model and training data are: cpu, cuda or cuda:1."""


@validated
class PartitionSettings:
    """Partition: which examples each client has."""

    FLAT: ClassVar = {"kind": "partition"}

    kind: Literal["iid", "dirichlet", "shards", "quantity"] = "iid"
    """Clients differ in nothing, in their shares of each class, in the few classes they have, or in size."""
    concentration: Rate | None = None
    """For dirichlet and quantity, α of the distribution of shares; smaller means more skew."""
    shards_per_client: Count | None = None
    """For shards, pieces of the data sorted by class that each client gets; usually 2."""
    min_examples: Count = 2
    """Training examples that each client has at least; with 2, one of them can be held out."""

    @model_validator(mode="after")
    def _check_needs(self) -> Self:
        faults = []
        for name, example in _EXAMPLES.items():
            users = [kind for kind in PARTITIONS if name in needed_settings(kind)]
            if self.kind in users and getattr(self, name) is None:
                faults.append(f"partition {self.kind} needs {name}: set it, such as {example}")
            if self.kind not in users and getattr(self, name) is not None:
                faults.append(
                    f"{name} is a setting of partition {' and '.join(users)}, got partition {self.kind}: "
                    f"change it, or leave {name} out"
                )
        if faults:
            raise ValueError("\n".join(faults))
        return self


@validated
class ReportSettings:
    """Report: what is saved and measured beside the run."""

    checkpoint_every: Count = 1
    """Rounds of phase 1 between two checkpoints; a killed run loses the rounds since the last one."""
    equal_budget: Switch = False
    """Spend the epochs of phase 2 on more rounds of phase 1 as well, and compare with that model."""
    landscape_examples: Annotated[int, Field(ge=0, strict=True)] | None = None
    """Training examples for the loss around the posterior; if not given, 1000, or 0 above a million weights."""


@validated
class Recipe(Config):
    """General: all settings of a run on a known data set, those of `Config` and those of data and model."""

    data: DataSettings = DataSettings()
    split: PartitionSettings = PartitionSettings()
    report: ReportSettings = ReportSettings()

    if TYPE_CHECKING:

        def __init__(self, **settings: Any) -> None:
            """Parts, and settings by their own names."""

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        first, last = self.explore_learning_rates
        if self.report.equal_budget and last > first:
            raise ValueError(
                "equal_budget goes on at falling rates: explore_final_learning_rate must be the smaller one"
            )
        return self

    def decisive(self) -> dict[str, object]:
        """The settings that a run's outcome depends on: all but where the data lie and how it is saved and reported."""
        return {name: value for name, value in super().decisive().items() if name not in INDIFFERENT}


class MakeEngine(Protocol):
    """An engine's class, or what stands for it."""

    def __call__(self, model: nn.Module, clients: Sequence[Any], *, workers: int | None) -> Engine:
        """The engine of the model and each client's data."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a recipe stands for."""

    recipe: Recipe
    dataset: datasets.ImageDataset
    model: nn.Module
    """With its initial weights."""
    engine: Engine
    """Where the clients are."""
    parts: Sequence[Int64[Tensor, "_"]]
    """Which of the training examples each client has."""


def build(
    recipe: Recipe, *, make_engine: MakeEngine = InProcess, workers: int | None = None, progress: bool = False
) -> Experiment:
    """The experiment that a recipe describes; the same for the same recipe, wherever the clients run.

    Args:
        recipe: the settings.
        make_engine: where the clients run.
        workers: clients at a time, in each process; as many as PyTorch uses threads if None.
        progress: whether a download shows a bar on standard error.

    Raises:
        ConfigError: a device that is not there, an unknown data set, a model that does not take its images, a
            partition that leaves clients with too few examples, or fewer than one worker.
        DataNotFoundError, DataFormatError, CacheNotWritableError: from `dswag.data.datasets.load`.
    """
    if not has_device(recipe.data.device):
        raise ConfigError(f"this machine has no device {recipe.data.device}: use cpu")
    try:
        dataset = datasets.load(recipe.data.dataset, recipe.data.data_dir, progress=progress)
        _, *shape = dataset.train.inputs.shape
        model = models.build(
            recipe.data.model,
            (shape[0], shape[1], shape[2]),
            len(dataset.class_names),
            mean=dataset.mean,
            std=dataset.std,
            seed=derive_seed(recipe.seed, 0, 0),
        ).to(recipe.data.device)
        parts = _partition(recipe, dataset.train.targets)
        dataset = replace(dataset, train=dataset.train.to(recipe.data.device))
        engine = make_engine(model, [dataset.train[part] for part in parts], workers=workers)
    except DataFormatError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Experiment(recipe, dataset, model, engine, parts)


def has_device(name: str) -> bool:
    """Whether this machine has the device."""
    device = torch.device(name)
    there = {"cpu": 1, "cuda": torch.cuda.device_count()}[device.type]
    return (device.index or 0) < there


def _partition(recipe: Recipe, targets: Int64[Tensor, "n"]) -> list[Int64[Tensor, "_"]]:
    own = {name: getattr(recipe, name) for name in needed_settings(recipe.split.kind)}
    seed = derive_seed(recipe.seed, 0, 1)
    return partition(recipe.split.kind, targets, recipe.clients, seed, min_examples=recipe.split.min_examples, **own)


@cache
def settings() -> tuple[Setting, ...]:
    """Every setting of a recipe, data and model first."""
    found = described(Recipe)
    general = paths(Config)
    return tuple(sorted(found, key=lambda setting: setting.name in general))
