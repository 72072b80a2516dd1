"""Experts (observer, teacher) and students: an encoder, linear heads, and the constants that normalise its pixels.

Shapes: N images, C channels, H height, W width, F features, K classes, P projection.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from ray_ltdd.errors import InputError
from ray_ltdd.models.build import build_encoder
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.encoder import Encoder

DEFAULT_PROJECTION_DIM = 128


class ExpertOutput(NamedTuple):
    """All that the expert's training losses read; float32 for float32 weights, under autocast too."""

    plain_logit_NK: torch.Tensor
    debiased_logit_NK: torch.Tensor
    projection_NP: torch.Tensor
    prediction_NP: torch.Tensor


class PixelNetwork(nn.Module):
    """An encoder that takes float pixels in [0, 1] and normalises them itself, so that its constants travel with it.

    Args:
        encoder: takes normalised images.
        image_size: the height and width in pixels that the encoder is for.
        mean_C, std_C: the training set's mean and standard deviation per channel, on the scale of [0, 1]; float32.

    Raises:
        InputError: the constants differ in number, or a standard deviation is not positive.
    """

    mean_C: torch.Tensor
    std_C: torch.Tensor

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        mean_C: Sequence[float] | torch.Tensor,
        std_C: Sequence[float] | torch.Tensor,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_size = image_size
        self.register_buffer("mean_C", _constants(mean_C))
        self.register_buffer("std_C", _constants(std_C))
        if self.mean_C.shape != self.std_C.shape:
            raise InputError(
                f"there are {self.mean_C.numel()} channel means but {self.std_C.numel()} standard deviations: give one of each per image channel."
            )
        if not bool((self.std_C > 0).all()):
            raise InputError(
                f"the channels' standard deviations are {self.std_C.tolist()} but must be above 0: drop a channel "
                "that never varies, or give it the standard deviation 1."
            )

    @property
    def label(self) -> str:
        """Return the field's name for the network, such as "ConvNet-3"."""
        return self.encoder.label

    def normalized(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return (image - mean) / std per channel.

        Raises:
            InputError: the images are not floating-point, or not of the size and channels the network was built for.
        """
        expected = (self.mean_C.numel(), self.image_size, self.image_size)
        if not image_NCHW.is_floating_point() or image_NCHW.ndim != 4 or image_NCHW.shape[1:] != expected:
            raise InputError(
                f"{self.label} was built for float images [N, {', '.join(map(str, expected))}] in [0, 1] but got "
                f"{image_NCHW.dtype} {list(image_NCHW.shape)}: convert and resize them first."
            )
        return (image_NCHW - self.mean_C[:, None, None]) / self.std_C[:, None, None]

    def features(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return feature_NF of pixels in [0, 1]."""
        feature_NF: torch.Tensor = self.encoder(self.normalized(image_NCHW))
        return feature_NF


class Expert(PixelNetwork):
    """Encoder with a plain and a debiased classifier (Eq. 6) and a projector and predictor (Eq. 5), all four linear.

    Args:
        encoder, image_size, mean_C, std_C: see `PixelNetwork`.
        n_classes: K.
        projection_dim: P.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        n_classes: int,
        mean_C: Sequence[float] | torch.Tensor,
        std_C: Sequence[float] | torch.Tensor,
        projection_dim: int = DEFAULT_PROJECTION_DIM,
    ) -> None:
        super().__init__(encoder, image_size, mean_C, std_C)
        self.plain_head = nn.Linear(encoder.feature_dim, n_classes)
        self.debiased_head = nn.Linear(encoder.feature_dim, n_classes)
        self.projector = nn.Linear(encoder.feature_dim, projection_dim)
        self.predictor = nn.Linear(projection_dim, projection_dim)

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the debiased head's logit_NK (float32, under autocast too) of pixels in [0, 1]."""
        return _in_full_precision(self.debiased_head, self.features(image_NCHW))

    def heads(self, image_NCHW: torch.Tensor) -> ExpertOutput:
        """Return what Eq. 5 and 6 need of pixels in [0, 1], from one pass through the encoder."""
        feature_NF = self.features(image_NCHW)
        projection_NP = _in_full_precision(self.projector, feature_NF)
        return ExpertOutput(
            plain_logit_NK=_in_full_precision(self.plain_head, feature_NF),
            debiased_logit_NK=_in_full_precision(self.debiased_head, feature_NF),
            projection_NP=projection_NP,
            prediction_NP=_in_full_precision(self.predictor, projection_NP),
        )


class Student(PixelNetwork):
    """Encoder with one linear classifier.

    Args:
        encoder, image_size, mean_C, std_C: see `PixelNetwork`.
        n_classes: K.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        n_classes: int,
        mean_C: Sequence[float] | torch.Tensor,
        std_C: Sequence[float] | torch.Tensor,
    ) -> None:
        super().__init__(encoder, image_size, mean_C, std_C)
        self.head = nn.Linear(encoder.feature_dim, n_classes)

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return logit_NK (float32, under autocast too) of pixels in [0, 1]."""
        return _in_full_precision(self.head, self.features(image_NCHW))


def build_expert(
    config: ModelConfig,
    image_size: int,
    channels: int,
    n_classes: int,
    mean_C: Sequence[float] | torch.Tensor,
    std_C: Sequence[float] | torch.Tensor,
    generator_seed: int,
    projection_dim: int = DEFAULT_PROJECTION_DIM,
) -> Expert:
    """Return an expert on the CPU whose initial weights depend on `generator_seed` and the sizes only.

    The global random state is left as it was.

    Raises:
        InputError: the images are too small for the network, or the constants do not fit the channels.
    """
    _check_constants(channels, mean_C)
    with _seeded_construction(generator_seed):
        encoder = build_encoder(config, image_size, channels)
        return Expert(encoder, image_size, n_classes, mean_C, std_C, projection_dim)


def build_student(
    config: ModelConfig,
    image_size: int,
    channels: int,
    n_classes: int,
    mean_C: Sequence[float] | torch.Tensor,
    std_C: Sequence[float] | torch.Tensor,
    generator_seed: int,
) -> Student:
    """Return a student on the CPU whose initial weights depend on `generator_seed` and the sizes only.

    The global random state is left as it was.

    Raises:
        InputError: the images are too small for the network, or the constants do not fit the channels.
    """
    _check_constants(channels, mean_C)
    with _seeded_construction(generator_seed):
        return Student(build_encoder(config, image_size, channels), image_size, n_classes, mean_C, std_C)


@contextmanager
def _seeded_construction(seed: int) -> Iterator[None]:
    # Only the CPU's generator is forked and seeded: torch.manual_seed would also reseed every GPU's.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def _check_constants(channels: int, mean_C: Sequence[float] | torch.Tensor) -> None:
    if len(mean_C) != channels:
        raise InputError(
            f"the images have {channels} channels but there are {len(mean_C)} channel means: give one mean and one standard deviation per channel."
        )


def _constants(value_C: Sequence[float] | torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value_C, dtype=torch.float32).detach().clone()


def _in_full_precision(linear: nn.Linear, input_NF: torch.Tensor) -> torch.Tensor:
    with torch.autocast(input_NF.device.type, enabled=False):
        output: torch.Tensor = linear(input_NF.to(linear.weight.dtype))
    return output
