"""The models of the paper, by name."""

from collections.abc import Sequence

from torch import nn

from dswag.core.randomness import DrawFrom, generator_for
from dswag.lab.models.cnn import cnn
from dswag.lab.models.mlp import mlp
from dswag.lab.models.normalize import Normalize
from dswag.lab.models.vgg import vgg16

MODELS = {"mlp": mlp, "cnn": cnn, "vgg16": vgg16}


def build(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
) -> nn.Sequential:
    """A model for uint8 images of shape (channels, height, width): normalization, then the named network.

    Its initial weights are a function of the seed alone.

    Raises:
        ValueError: an unknown name, or images that the network does not take.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    with DrawFrom(generator_for(seed)):
        network = MODELS[name](input_shape, num_classes)
    return nn.Sequential(Normalize(mean, std), network)
