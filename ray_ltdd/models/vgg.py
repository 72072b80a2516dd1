"""VGG-11 with a normalisation after each convolution.

Shapes: N images, C channels, H height, W width, F features.
"""

import torch
from torch import nn

from ray_ltdd.models.config import NormalizationKind
from ray_ltdd.models.encoder import Encoder
from ray_ltdd.models.normalization import build_normalization, norm_relu

# Channels of the convolutions of each of VGG-11's five groups; a 2x2 maximum pooling follows each group.
GROUPS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
LARGEST_SMALL_IMAGE = 64


class Vgg11(Encoder):
    """VGG-11: eight convolutions.

    Up to 64 px the convolutions end in a global mean, F = 512, and a pooling that would leave nothing of the map is
    left out (below 32 px). Above, torchvision's network up to its last hidden layer: F = 4096, with its dropout.

    Args:
        image_size: height and width in pixels.
        channels: channels of the image.
        normalization: what follows each convolution.
    """

    def __init__(self, image_size: int, channels: int, normalization: NormalizationKind) -> None:
        features = _features(image_size, channels, normalization)
        if image_size <= LARGEST_SMALL_IMAGE:
            super().__init__(512)
            self.network: nn.Module = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            for module in features:
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            super().__init__(4096)
            # torchvision imports torch's compiler, seconds that most runs need not wait for
            import torchvision

            network = torchvision.models.VGG(features)
            network.classifier = network.classifier[:-1]
            self.network = network

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return feature_NF of normalised floating-point images."""
        feature_NF: torch.Tensor = self.network(image_NCHW)
        return feature_NF


class _Features(nn.Sequential):
    """Layers one after the other; a normalisation and the ReLU that follows it in one pass over the map where the kernels have it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the last layer's map."""
        layers = list(self)
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(following, nn.ReLU):
                input = norm_relu(layer, input)
            elif not isinstance(layer, nn.ReLU):
                input = layer(input)
        return input


def _features(image_size: int, channels: int, normalization: NormalizationKind) -> nn.Sequential:
    layers: list[nn.Module] = []
    map_size = image_size
    for widths in GROUPS:
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), build_normalization(normalization, width), nn.ReLU()]
            channels = width
        if map_size > 1:
            layers.append(nn.MaxPool2d(2))
            map_size //= 2
    return _Features(*layers)
