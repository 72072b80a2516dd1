"""AlexNet: torchvision's for large images, one with the same five convolutions for small ones.

Shapes: N images, C channels, H height, W width, F features.
"""

import torch
from torch import nn

from ray_ltdd.errors import InputError
from ray_ltdd.models.config import NormalizationKind
from ray_ltdd.models.encoder import Encoder
from ray_ltdd.models.normalization import build_normalization

LARGEST_SMALL_IMAGE = 64
SMALLEST_IMAGE = 8


class AlexNet(Encoder):
    """Five convolutions of 64, 192, 384, 256 and 256 channels.

    Up to 64 px the first is 5x5 with stride 1 (stride 2 above 32 px) instead of 11x11 with stride 4, the poolings are
    2x2, and the flattened map is the feature (F = 4096 at 32 and 64 px); the two hidden layers, nine tenths of the
    parameters, are left out. Above, torchvision's network up to its last hidden layer: F = 4096, with its dropout.

    Args:
        image_size: height and width in pixels.
        channels: channels of the image.
        normalization: what follows each convolution; AlexNet itself has none.

    Raises:
        InputError: `image_size` is below 8 px, so that nothing would be left after three poolings.
    """

    def __init__(self, image_size: int, channels: int, normalization: NormalizationKind) -> None:
        if image_size < SMALLEST_IMAGE:
            raise InputError(
                f"AlexNet needs images of at least {SMALLEST_IMAGE} px, but they have {image_size} px: use larger "
                "images or another model.architecture, such as convnet."
            )
        if image_size <= LARGEST_SMALL_IMAGE:
            stride = 1 if image_size <= 32 else 2
            super().__init__(256 * (-(-image_size // stride) // 8) ** 2)
            self.network: nn.Module = _small(channels, stride, normalization)
        else:
            super().__init__(4096)
            self.network = _large(channels, normalization)

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return feature_NF of normalised floating-point images."""
        feature_NF: torch.Tensor = self.network(image_NCHW)
        return feature_NF


def _small(channels: int, stride: int, normalization: NormalizationKind) -> nn.Sequential:
    return nn.Sequential(
        *_unit(nn.Conv2d(channels, 64, 5, stride, padding=2), normalization),
        nn.MaxPool2d(2),
        *_unit(nn.Conv2d(64, 192, 5, padding=2), normalization),
        nn.MaxPool2d(2),
        *_unit(nn.Conv2d(192, 384, 3, padding=1), normalization),
        *_unit(nn.Conv2d(384, 256, 3, padding=1), normalization),
        *_unit(nn.Conv2d(256, 256, 3, padding=1), normalization),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


def _unit(conv: nn.Conv2d, normalization: NormalizationKind) -> tuple[nn.Module, ...]:
    return conv, build_normalization(normalization, conv.out_channels), nn.ReLU()


def _large(channels: int, normalization: NormalizationKind) -> nn.Module:
    # torchvision imports torch's compiler, seconds that most runs need not wait for
    import torchvision

    network = torchvision.models.alexnet(weights=None)
    layers: list[nn.Module] = []
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels == 3 and channels != 3:
                layer = nn.Conv2d(channels, layer.out_channels, 11, stride=4, padding=2)
            layers += [layer, build_normalization(normalization, layer.out_channels)]
        else:
            layers.append(layer)
    network.features = nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))
    network.classifier = network.classifier[:-1]
    return network
