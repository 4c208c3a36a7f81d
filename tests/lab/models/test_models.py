"""The paper's models: their sizes, shapes and initial weights."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from dswag.core.parameters import Layout
from dswag.lab.models import MODELS, Normalize, build

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

MNIST = {"input_shape": (1, 28, 28), "num_classes": 10, "mean": (0.1307,), "std": (0.3081,)}
CIFAR10 = {
    "input_shape": (3, 32, 32),
    "num_classes": 10,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
}
SMALL = {"input_shape": (3, 32, 32), "num_classes": 5, "mean": (0.5,) * 3, "std": (0.25,) * 3}


@pytest.mark.parametrize(
    ("name", "images", "count"),
    [
        ("mlp", MNIST, 784 * 200 + 200 + 200 * 10 + 10),  # 159,010
        ("cnn", MNIST, 1_663_370),  # McMahan et al. 2016, Section 3
        ("vgg16", CIFAR10, 15_253_578),
    ],
)
def test_a_model_of_the_paper_has_as_many_parameters_as_in_print(name, images, count):
    assert Layout.of(build(name, **images, seed=0)).d == count


def test_vgg16_has_a_batch_norm_behind_each_of_its_thirteen_convolutions():
    layers = list(build("vgg16", **SMALL, seed=0)[1])
    behind = [after for layer, after in pairwise(layers) if isinstance(layer, nn.Conv2d)]
    assert len(behind) == 13
    assert all(isinstance(layer, nn.BatchNorm2d) for layer in behind)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (1, 28, 28)),
        ("mlp", (3, 5, 9)),
        ("cnn", (1, 28, 28)),
        ("cnn", (3, 32, 32)),
        ("cnn", (2, 4, 4)),
        ("cnn", (1, 29, 31)),
        ("vgg16", (3, 32, 32)),
        ("vgg16", (1, 32, 32)),
    ],
)
def test_logits_have_a_row_for_each_image_and_a_column_for_each_class(name, shape):
    model = build(name, shape, 7, mean=(0.5,) * shape[0], std=(0.25,) * shape[0], seed=0).eval()
    images = torch.randint(256, (2, *shape), dtype=torch.uint8)
    with torch.no_grad():
        assert model(images).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights_are_a_function_of_the_seed_alone(name):
    def theta(seed):
        model = build(name, **SMALL, seed=seed)
        return Layout.of(model).flatten(model)

    first = theta(3)
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(theta(3), first)
    assert not torch.equal(theta(4), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_weights_follow_pytorch_s_initializers():
    # uniform in ±1/sqrt(784) for each weight: 5 standard errors of the mean and of the mean square over 156,800 of them
    weight = build("mlp", **MNIST, seed=0)[1][1].weight.detach().double()
    bound, n = 784**-0.5, weight.numel()
    assert weight.abs().max() <= bound
    assert abs(weight.mean()) < 5 * bound * (1 / 3 / n) ** 0.5
    assert abs(weight.square().mean() / bound**2 - 1 / 3) < 5 * (4 / 45 / n) ** 0.5


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (32, 31)])
def test_vgg16_takes_no_other_size(size):
    with pytest.raises(ValueError, match=f"vgg16 takes images of 32 x 32, got {size[0]} x {size[1]}: use mlp or cnn"):
        build("vgg16", (3, *size), 10, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)


def test_cnn_takes_no_images_that_pooling_leaves_nothing_of():
    with pytest.raises(ValueError, match="cnn takes images of at least 4 x 4, got 3 x 8: use mlp"):
        build("cnn", (1, 3, 8), 10, mean=(0.5,), std=(0.25,), seed=0)


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'resnet': choose one of mlp, cnn, vgg16"):
        build("resnet", **MNIST, seed=0)


def test_normalize_equals_the_formula_in_float64():
    mean, std = CIFAR10["mean"], CIFAR10["std"]
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)  # every value in every channel
    normalized = Normalize(mean, std)(images)
    columns = torch.tensor([mean, std], dtype=torch.float64)[:, :, None, None]
    expected = (images.double() / 255 - columns[0]) / columns[1]
    assert normalized.dtype == torch.float32
    # scale, shift, product and difference round once each, on numbers of at most 1 / 0.2435 = 4.1
    torch.testing.assert_close(normalized.double(), expected, rtol=0, atol=4 * 4.2 * 2**-24)


def test_normalize_travels_with_the_weights_but_is_not_trained():
    model = build("mlp", **CIFAR10, seed=0)
    assert not list(model[0].parameters())
    assert {"0.scale", "0.shift"} <= set(model.state_dict())


def test_normalize_puts_channels_last_for_the_convolutions():
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    assert Normalize((0.5,) * 3, (0.25,) * 3)(images).is_contiguous(memory_format=torch.channels_last)
