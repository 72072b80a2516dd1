"""The one table from an architecture's name to its encoder.

Shapes: N images, C channels, H height, W width, F features.
"""

import torch

from ray_ltdd.models.alexnet import AlexNet
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.convnet import ConvNet
from ray_ltdd.models.convolution import use_own_kernels
from ray_ltdd.models.encoder import Encoder
from ray_ltdd.models.resnet import CifarResNet32, ResNet9, TorchvisionResNet
from ray_ltdd.models.vgg import Vgg11


def build_encoder(config: ModelConfig, image_size: int, channels: int) -> Encoder:
    """Return a freshly initialised encoder for normalised float images [N, channels, image_size, image_size].

    The weights are drawn from torch's global generator; `expert.build_expert` and `expert.build_student` seed it.

    Args:
        config: which network.
        image_size: height and width in pixels.
        channels: channels of the image.

    Raises:
        InputError: the images are too small for the network or for its normalisation.
    """
    encoder = _construct(config, image_size, channels)
    use_own_kernels(encoder)
    encoder.label = config.label_at(image_size)
    _try_once(encoder, image_size, channels)
    return encoder


def _construct(config: ModelConfig, image_size: int, channels: int) -> Encoder:
    normalization = config.resolved_normalization
    if config.architecture == "convnet":
        width, depth = config.resolved_width, config.resolved_depth(image_size)
        assert width is not None and depth is not None  # the table of architectures gives both a default
        return ConvNet(image_size, channels, width, depth, normalization)
    if config.architecture == "resnet32":
        assert config.resolved_width is not None
        return CifarResNet32(channels, config.resolved_width, normalization)
    if config.architecture == "resnet9":
        assert config.resolved_width is not None
        return ResNet9(image_size, channels, config.resolved_width, normalization)
    if config.architecture == "vgg11":
        return Vgg11(image_size, channels, normalization)
    if config.architecture == "alexnet":
        return AlexNet(image_size, channels, normalization)
    return TorchvisionResNet(config.architecture, image_size, channels, normalization)


def _try_once(encoder: Encoder, image_size: int, channels: int) -> None:
    """Let a layer that cannot work at this image size say so now rather than hours into a run."""
    encoder.eval()
    with torch.no_grad():
        encoder(torch.zeros(1, channels, image_size, image_size))
    encoder.train()
