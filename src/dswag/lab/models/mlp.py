"""The multilayer perceptron of the paper's MNIST experiments (Section 6): one hidden layer with ReLU."""

from torch import nn


def mlp(input_shape: tuple[int, int, int], num_classes: int, *, hidden: int = 200) -> nn.Sequential:
    """Logits from images [b, channels, height, width]; 784-200-10 for MNIST, as in McMahan et al. 2016."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
