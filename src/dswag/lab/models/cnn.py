"""The convolutional network of the paper's MNIST experiments (Section 6), after McMahan et al. 2016."""

from torch import nn


def cnn(input_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Logits from images [b, channels, height, width]: two 5x5 convolutions, each pooled 2x2, and a layer of 512.

    1,663,370 parameters for MNIST, as McMahan et al. count; the softmax is the loss's.

    Raises:
        ValueError: images smaller than 4 x 4, of which the pooling leaves nothing.
    """
    channels, height, width = input_shape
    if min(height, width) < 4:
        raise ValueError(f"cnn takes images of at least 4 x 4, got {height} x {width}: use mlp")
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),  # after the pooling, where it gives the same for a quarter of the values
        nn.Conv2d(32, 64, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, num_classes),
    )
