"""What every encoder is: images in, one feature vector per image out.

Shapes: N images, C channels, H height, W width, F features.
"""

import torch
from torch import nn


class Encoder(nn.Module):
    """A network without its classifier.

    Attributes:
        feature_dim: F, the length of a feature vector.
        label: the field's name for the network, such as "ConvNet-3".
    """

    feature_dim: int
    label: str

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.label = type(self).__name__

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return feature_NF of normalised floating-point images."""
        raise NotImplementedError
