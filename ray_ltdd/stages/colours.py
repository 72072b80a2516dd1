"""Changed colours: each image's are turned about the grey axis and more or less saturated, by one matrix an image (Eq. V).

With G the matrix of thirds, which takes a colour to its grey, X the cross product with the grey axis (1, 1, 1) / sqrt(3), t the turn and s the
saturation:

    colour <- M colour, clipped to [0, 1],    M = G + s (cos(t) (I - G) + sin(t) X)                                                  (V)
"""

import math
from functools import reduce
from typing import Annotated, Protocol

import torch
from pydantic import Field

from ray_ltdd.errors import InputError

Hue = Annotated[
    float,
    Field(ge=0, le=1, description="largest turn of colours about the grey axis, in half turns (t of Eq. V is uniform); for images of three channels"),
]
Saturation = Annotated[float, Field(ge=0, le=1, description="largest relative change of the saturation (s of Eq. V is uniform around 1)")]


class ChangesColours(Protocol):
    """Settings that change colours."""

    @property
    def hue(self) -> float:
        """Largest turn, in half turns."""

    @property
    def saturation(self) -> float:
        """Largest relative change."""


def unchanged_colours(config: ChangesColours) -> set[str]:
    """Names of the settings that leave colours as they are."""
    return {name for name in ("hue", "saturation") if not getattr(config, name)}


def require_colours(config: ChangesColours, n_channels: int, place: str) -> None:
    """Refuse to change colours of images that have none.

    Args:
        config: how much they are changed.
        n_channels: of the images.
        place: dotted name of these settings.

    Raises:
        InputError: hue or saturation is set, and the images have not three channels.
    """
    given = [f"{place}.{name}={getattr(config, name)}" for name in ("hue", "saturation") if getattr(config, name)]
    if given and n_channels != 3:
        raise InputError(f"{' and '.join(given)} would change colours, but the images' channels are {n_channels}, not 3: set 0.")


def draw_colours(config: ChangesColours, shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """Draw matrices of Eq. V, float32 [*shape, 3, 3] on the generator's device; [*shape, 0, 0], and nothing drawn, where colours stay."""
    if not (config.hue or config.saturation):
        return torch.zeros(*shape, 0, 0, device=rng.device)
    turn, change = torch.rand(2, *shape, generator=rng, device=rng.device).mul(2).sub(1)
    return colour_matrices(turn, change, config)


def colour_matrices(turn: torch.Tensor, change: torch.Tensor, config: ChangesColours) -> torch.Tensor:
    """Return M of Eq. V, float32 [..., 3, 3], for draws in [-1, 1] that the settings' `hue` and `saturation` scale."""
    grey = torch.full((3, 3), 1 / 3, device=turn.device)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=turn.device) / math.sqrt(3)
    angle = (math.pi * config.hue * turn)[..., None, None]
    saturation = (1 + config.saturation * change)[..., None, None]
    return grey + saturation * (angle.cos() * (torch.eye(3, device=turn.device) - grey) + angle.sin() * across)


def recoloured(image_NCHW: torch.Tensor, colour_NCC: torch.Tensor) -> torch.Tensor:
    """Images with values in [0, 1] and their colours multiplied by one matrix each, clipped to [0, 1]; as they are where matrices are [N, 0, 0]."""
    if not colour_NCC.shape[-1]:
        return image_NCHW
    # written out: the same rounding on every device, where a matrix product may take fewer bits
    return reduce(torch.add, (colour_NCC[:, :, c, None, None] * image_NCHW[:, c : c + 1] for c in range(3))).clamp(0, 1)
