"""ConvNet-D, the student of the dataset-distillation literature.

Shapes: N images, C channels, H height, W width, F features.
"""

import torch
from torch import nn

from ray_ltdd.errors import InputError
from ray_ltdd.kernels import ops, serving
from ray_ltdd.models.config import NormalizationKind
from ray_ltdd.models.encoder import Encoder
from ray_ltdd.models.normalization import InstanceNorm, build_normalization, norm_relu


class ConvNet(Encoder):
    """`depth` blocks of 3x3 convolution, normalisation, ReLU and 2x2 average pooling, then flattened.

    The convolutions keep their bias although a normalisation follows: the published networks have it (320,010
    parameters for ConvNet-3 with 10 classes).

    Args:
        image_size: height and width in pixels; F = width * (image_size // 2**depth)**2.
        channels: channels of the image.
        width: channels of every block.
        depth: number of blocks.
        normalization: what follows each convolution.

    Raises:
        InputError: `image_size` is smaller than 2**depth, so that nothing would be left after the last pooling.
    """

    def __init__(self, image_size: int, channels: int, width: int, depth: int, normalization: NormalizationKind) -> None:
        map_size = image_size >> depth
        if map_size == 0:
            raise InputError(
                f"ConvNet-{depth} halves the image {depth} times and needs at least {2**depth} px, but the images have "
                f"{image_size} px: set model.depth to {image_size.bit_length() - 1} or less, or use larger images."
            )
        super().__init__(width * map_size**2)
        self.blocks = nn.Sequential(*(ConvBlock(channels if i == 0 else width, width, normalization) for i in range(depth)), nn.Flatten())

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return feature_NF of normalised floating-point images."""
        feature_NF: torch.Tensor = self.blocks(image_NCHW)
        return feature_NF


class ConvBlock(nn.Sequential):
    """3x3 convolution, normalisation, ReLU, 2x2 average pooling; the last three in one pass over the map where the kernels have it."""

    def __init__(self, in_channels: int, width: int, normalization: NormalizationKind) -> None:
        conv = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        super().__init__(conv, build_normalization(normalization, width), nn.AvgPool2d(2))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the block's output, [N, width, H // 2, W // 2]."""
        conv, norm, pool = self
        assert isinstance(conv, nn.Conv2d)
        if isinstance(norm, InstanceNorm) and serving.suit(input) and conv.out_channels % serving.BLOCK == 0:
            affine = (norm.weight, norm.bias, norm.eps)
            # a watched layer's input has to be there to be seen
            watched = conv._forward_pre_hooks or norm._forward_pre_hooks
            if conv.in_channels <= serving.MOST_DIRECT_CHANNELS and not watched:
                return ops.first_block(input, conv.weight, conv.bias, *affine)
            map_NCHW = conv(input)
            for show in norm._forward_pre_hooks.values():
                show(norm, (map_NCHW,))
            return ops.norm_relu_pool(map_NCHW, *affine)
        pooled_NCHW: torch.Tensor = pool(norm_relu(norm, conv(input)))
        return pooled_NCHW
