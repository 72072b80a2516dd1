"""Residual networks: He et al.'s ResNet-32 for CIFAR, Page's ResNet-9, and torchvision's with a stem for small images.

Shapes: N images, C channels, H height, W width, F features.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ray_ltdd.errors import InputError
from ray_ltdd.models.config import NormalizationKind
from ray_ltdd.models.encoder import Encoder
from ray_ltdd.models.normalization import build_normalization, norm_relu

RESNET32_BLOCKS_PER_STAGE = 5
_TORCHVISION_NAMES = {"resnet18": "resnet18", "resnet50": "resnet50", "resnext50": "resnext50_32x4d"}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (He et al.'s option A).

    Where the block halves the map, the shortcut takes every second pixel and fills the new channels with zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, normalization: NormalizationKind) -> None:
        super().__init__()
        bias = normalization == "none"
        self.stride = stride
        self.n_new_channels = out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.norm1 = build_normalization(normalization, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = build_normalization(normalization, out_channels)

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the block's output, [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        out_NCHW = self.norm2(self.conv2(norm_relu(self.norm1, self.conv1(map_NCHW))))
        return F.relu(out_NCHW + self._shortcut(map_NCHW))

    def _shortcut(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        if self.stride == 1 and self.n_new_channels == 0:
            return map_NCHW
        n_before = self.n_new_channels // 2
        return F.pad(map_NCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, n_before, self.n_new_channels - n_before))


class CifarResNet32(Encoder):
    """ResNet-32: a 3x3 stem and three stages of five blocks, `width`, 2 and 4 times `width` channels wide.

    The stem keeps the image's resolution at every image size. F = 4 * width.
    """

    def __init__(self, channels: int, width: int, normalization: NormalizationKind) -> None:
        super().__init__(4 * width)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=normalization == "none")
        self.norm1 = build_normalization(normalization, width)
        self.stages = nn.Sequential(
            _stage(width, width, 1, normalization),
            _stage(width, 2 * width, 2, normalization),
            _stage(2 * width, 4 * width, 2, normalization),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return feature_NF of normalised floating-point images."""
        map_NCHW: torch.Tensor = self.stages(norm_relu(self.norm1, self.conv1(image_NCHW)))
        return map_NCHW.mean(dim=(2, 3))


def _stage(in_channels: int, out_channels: int, stride: int, normalization: NormalizationKind) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, normalization)
    rest = (BasicBlock(out_channels, out_channels, 1, normalization) for _ in range(RESNET32_BLOCKS_PER_STAGE - 1))
    return nn.Sequential(first, *rest)


class ResNet9(Encoder):
    """ResNet-9 (Page's DAWNBench entry): wide, shallow, and trained in few epochs.

    Eight 3x3 convolutions, `width`, 2, 4 and 8 times `width` channels wide; a 2x2 maximum pooling follows the second, fifth and sixth, a residual of
    two more convolutions the first and the last of these poolings. The maximum over the map follows; F = 8 * width.

    Args:
        image_size: height and width in pixels, at least 8.
        channels: channels of the image.
        width: channels of the first convolution.
        normalization: what follows each convolution.

    Raises:
        InputError: `image_size` is below 8, so that nothing would be left after the last pooling.
    """

    def __init__(self, image_size: int, channels: int, width: int, normalization: NormalizationKind) -> None:
        if image_size < 8:
            raise InputError(f"ResNet-9 halves the image three times and needs at least 8 px, but the images have {image_size} px: use larger ones.")
        super().__init__(8 * width)
        self.blocks = nn.Sequential(
            _ConvNormRelu(channels, width, normalization),
            _ConvNormRelu(width, 2 * width, normalization),
            nn.MaxPool2d(2),
            _Residual(2 * width, normalization),
            _ConvNormRelu(2 * width, 4 * width, normalization),
            nn.MaxPool2d(2),
            _ConvNormRelu(4 * width, 8 * width, normalization),
            nn.MaxPool2d(2),
            _Residual(8 * width, normalization),
        )

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return feature_NF of normalised floating-point images."""
        map_NCHW: torch.Tensor = self.blocks(image_NCHW)
        return map_NCHW.amax(dim=(2, 3))


class _Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, width: int, normalization: NormalizationKind) -> None:
        super().__init__()
        self.branch = nn.Sequential(_ConvNormRelu(width, width, normalization), _ConvNormRelu(width, width, normalization))

    def forward(self, map_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the block's output, of the input's shape."""
        out_NCHW: torch.Tensor = map_NCHW + self.branch(map_NCHW)
        return out_NCHW


class _ConvNormRelu(nn.Sequential):
    """3x3 convolution, normalisation, ReLU; the last two in one pass over the map where the kernels have it."""

    def __init__(self, in_channels: int, out_channels: int, normalization: NormalizationKind) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=normalization == "none")
        super().__init__(conv, build_normalization(normalization, out_channels))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the block's output, [N, out_channels, H, W]."""
        conv, norm = self
        return norm_relu(norm, conv(input))


class TorchvisionResNet(Encoder):
    """torchvision's ResNet-18, ResNet-50 or ResNeXt-50 32x4d without its classifier.

    Stem: up to 32 px a 3x3 convolution of stride 1 and no pooling, so that a CIFAR image keeps a 4x4 map at the end;
    up to 64 px the same convolution and torchvision's stride-2 pooling (again 4x4); above, torchvision's own.

    Args:
        architecture: "resnet18", "resnet50" or "resnext50".
        image_size: height and width in pixels.
        channels: channels of the image.
        normalization: replaces torchvision's BatchNorm unless "batch".
    """

    def __init__(self, architecture: str, image_size: int, channels: int, normalization: NormalizationKind) -> None:
        # torchvision imports torch's compiler, seconds that most runs need not wait for
        import torchvision

        network = torchvision.models.get_model(_TORCHVISION_NAMES[architecture], weights=None, norm_layer=partial(build_normalization, normalization))
        super().__init__(network.fc.in_features)
        network.fc = nn.Identity()
        if image_size <= 64:
            network.conv1 = _he_conv(channels, 3, stride=1, padding=1)
        elif channels != 3:
            network.conv1 = _he_conv(channels, 7, stride=2, padding=3)
        if image_size <= 32:
            network.maxpool = nn.Identity()
        self.network = network

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return feature_NF of normalised floating-point images."""
        feature_NF: torch.Tensor = self.network(image_NCHW)
        return feature_NF


def _he_conv(channels: int, kernel_size: int, stride: int, padding: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, 64, kernel_size, stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
