"""VGG16 with BatchNorm for 32 x 32 images (the paper's reference 21, in the form common for CIFAR)."""

from torch import nn

_VGG16: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 3x3 convolutions in each block; every block ends in 2x2 max pooling."""


def vgg16(input_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Logits from images [b, channels, 32, 32]; 15,253,578 parameters for CIFAR-10.

    Raises:
        ValueError: images that are not 32 x 32.
    """
    channels, height, width = input_shape
    if (height, width) != (32, 32):
        raise ValueError(f"vgg16 takes images of 32 x 32, got {height} x {width}: use mlp or cnn")
    layers: list[nn.Module] = []
    for block in _VGG16:
        for width in block:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        nn.Linear(512, num_classes),
    )
