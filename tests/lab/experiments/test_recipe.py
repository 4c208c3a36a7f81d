"""What a recipe accepts, and that it stands for the same data, model and clients every time."""

from typing import get_args, get_type_hints

import pytest
import torch

from dswag.config import Config, ConfigError
from dswag.core.randomness import derive_seed
from dswag.data.partition import PARTITIONS
from dswag.lab.experiments.recipe import PartitionSettings, Recipe, build, settings


def test_a_recipe_comes_back_from_its_file(tmp_path):
    recipe = Recipe(clients=3, model="cnn", data_dir="somewhere", clients_per_round=2, explorers="50%")
    recipe.to_toml(tmp_path / "recipe.toml")
    assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe


def test_a_recipe_knows_what_a_config_knows_and_checks_it():
    with pytest.raises(ConfigError, match="flags: unknown setting colour"):
        Recipe.checked({"colour": "red"}, source="flags")
    with pytest.raises(ConfigError, match="model must be 'mlp', 'cnn' or 'vgg16', got 'resnet'"):
        Recipe.checked({"model": "resnet"}, source="flags")
    with pytest.raises(ConfigError, match="rank must be 0 or at least 2"):
        Recipe.checked({"rank": 1}, source="flags")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "imagenet"}, "data set must be one of mnist5k, .*, got 'imagenet'"),
        ({"clients": 4001}, "4001 clients for 4000 examples"),
        ({"model": "vgg16"}, "vgg16 takes images of 32 x 32, got 28 x 28"),
        ({"device": "cuda:99"}, "this machine has no device cuda:99: use cpu"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Recipe(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "tpu"}, "device must be cpu, cuda, or one of several such as cuda:1, got 'tpu'"),
        ({"partition": "dirichlet"}, "flags: partition dirichlet needs concentration: set it, such as 0.3"),
        ({"partition": "quantity"}, "flags: partition quantity needs concentration"),
        ({"partition": "shards"}, "flags: partition shards needs shards_per_client: set it, such as 2"),
        ({"concentration": 1.0}, "concentration is a setting of partition dirichlet and quantity, got partition iid"),
        (
            {"partition": "dirichlet", "shards_per_client": 2},
            "dirichlet needs concentration: .*\nflags: shards_per_client is a setting of partition shards, got .*: "
            "change it, or leave shards_per_client out",
        ),
        ({"partition": "dirichlet", "concentration": 0.0}, "concentration must be above 0, got 0"),
        ({"partition": "shards", "shards_per_client": 0}, "shards_per_client must be at least 1"),
        ({"min_examples": 0}, "min_examples must be at least 1, got 0"),
        ({"partition": "even"}, "partition must be 'iid', 'dirichlet', 'shards' or 'quantity', got 'even'"),
    ],
)
def test_settings_of_a_partition_are_checked_together(values, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.checked(values, source="flags")


def test_a_recipe_names_every_partition():
    assert get_args(get_type_hints(PartitionSettings)["kind"]) == tuple(PARTITIONS)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"partition": "dirichlet", "concentration": 0.3, "min_examples": 50},
        {"partition": "shards", "shards_per_client": 3},
        {"partition": "quantity", "concentration": 0.5, "min_examples": 200},
    ],
)
def test_clients_have_the_examples_of_the_partition_that_the_recipe_names(values):
    recipe = Recipe(clients=7, seed=3, **values)
    experiment = build(recipe)
    train = experiment.dataset.train
    own = {name: value for name, value in values.items() if name != "partition"}
    expected = PARTITIONS[recipe.partition](train.targets, 7, derive_seed(3, 0, 1), **{"min_examples": 2, **own})
    for client, part, wanted in zip(experiment.engine._clients, experiment.parts, expected, strict=True):
        assert torch.equal(part, wanted)
        assert torch.equal(client.inputs, train.inputs[wanted])


def test_a_partition_that_cannot_give_all_enough_is_refused_before_any_work():
    with pytest.raises(
        ConfigError, match=r"best of 100 draws with concentration 0\.01 leaves one of 40 clients with 0"
    ):
        build(Recipe(clients=40, partition="dirichlet", concentration=0.01))


def test_a_number_of_workers_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="workers must be at least 1, got 0"):
        build(Recipe(clients=3), workers=0)


def test_the_same_recipe_gives_the_same_experiment():
    first, again, other = (build(Recipe(clients=3, seed=seed)) for seed in (4, 4, 5))
    weights = [torch.cat([p.flatten() for p in e.model.parameters()]) for e in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    parts = [[client.inputs for client in e.engine._clients] for e in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(parts[0], parts[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(parts[0], parts[2], strict=True))


def test_names_of_data_sets_are_read_as_the_loader_reads_them():
    assert build(Recipe(clients=3, dataset="MNIST_5k")).dataset.name == "mnist5k"


def test_every_setting_is_described_once_with_its_default():
    described = {setting.name: setting for setting in settings()}
    assert len(described) == len(settings())
    assert {name: setting.default for name, setting in described.items()} == Recipe().flat()
    assert all(setting.description[0].isupper() or setting.description[0] == '"' for setting in settings())
    assert described["learning_rate"].group == "Phase 1"
    assert "η_l1" in described["learning_rate"].description
    assert described["clients"].group == "General"


def test_settings_of_data_and_model_come_before_those_of_the_algorithms():
    names = [setting.name for setting in settings()]
    own = [name for name in names if name not in Config().flat()]
    assert own == names[: len(own)] != []
