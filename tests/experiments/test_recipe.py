"""What a recipe accepts, and that it stands for the same data, model and clients every time."""

import pytest
import torch

from dswag.config import Config, ConfigError
from dswag.experiments.recipe import Recipe, build, settings


def test_a_recipe_comes_back_from_its_file(tmp_path):
    recipe = Recipe(clients=3, model="cnn", data_dir="somewhere", clients_per_round=2, explorers=0.5)
    recipe.to_toml(tmp_path / "recipe.toml")
    assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe


def test_a_recipe_knows_what_a_config_knows_and_checks_it():
    with pytest.raises(ConfigError, match="flags: unknown setting colour"):
        Recipe.checked({"colour": "red"}, source="flags")
    with pytest.raises(ConfigError, match="model: Input should be 'mlp', 'cnn' or 'vgg16', got 'resnet'"):
        Recipe.checked({"model": "resnet"}, source="flags")
    with pytest.raises(ConfigError, match="rank must be 0 or at least 2"):
        Recipe.checked({"rank": 1}, source="flags")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "imagenet"}, "data set must be one of mnist5k, .*, got 'imagenet'"),
        ({"clients": 4001}, "4001 clients for 4000 examples"),
        ({"model": "vgg16"}, "vgg16 takes images of 32 x 32, got 28 x 28"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Recipe(**values))


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
    assert set(described) == set(Recipe().__dict__)
    assert {name: setting.default for name, setting in described.items()} == Recipe().__dict__
    assert all(setting.description[0].isupper() or setting.description[0] == '"' for setting in settings())
    assert described["learning_rate"].group == "Phase 1"
    assert "η_l1" in described["learning_rate"].description
    assert described["clients"].group == "General"


def test_settings_of_data_and_model_come_before_those_of_the_algorithms():
    names = [setting.name for setting in settings()]
    own = [name for name in names if not hasattr(Config, name)]
    assert own == names[: len(own)]
