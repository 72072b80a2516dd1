"""Which network: its name, its size and its normalisation, and what the field calls it."""

import difflib
import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ray_ltdd.settings import Settings

NormalizationKind = Literal["batch", "instance", "group", "none"]


@dataclass(frozen=True)
class ArchitectureFacts:
    """What an architecture is called, its own normalisation, and which sizes can be set."""

    label: str
    normalization: NormalizationKind
    default_width: int | None = None
    has_depth: bool = False


ARCHITECTURES: dict[str, ArchitectureFacts] = {
    "convnet": ArchitectureFacts("ConvNet", "instance", default_width=128, has_depth=True),
    "resnet9": ArchitectureFacts("ResNet-9", "batch", default_width=64),
    "resnet18": ArchitectureFacts("ResNet-18", "batch"),
    "resnet32": ArchitectureFacts("ResNet-32", "batch", default_width=16),
    "resnet50": ArchitectureFacts("ResNet-50", "batch"),
    "resnext50": ArchitectureFacts("ResNeXt-50 32x4d", "batch"),
    "vgg11": ArchitectureFacts("VGG-11", "batch"),
    "alexnet": ArchitectureFacts("AlexNet", "none"),
}


class ModelConfig(Settings):
    """The settings of one network; the image size, channels and classes come from the dataset.

    Raises:
        pydantic.ValidationError: the architecture is unknown (the message names the nearest), or a width or depth is
            given to an architecture whose size is fixed.
    """

    architecture: str = Field(
        "convnet",
        description=f"Name of the network: one of {', '.join(ARCHITECTURES)}.",
    )
    width: int | None = Field(
        None,
        ge=1,
        description="Channels of the first stage, not a multiplier; convnet, resnet9 and resnet32 only. None: 128, 64 and 16.",
    )
    depth: int | None = Field(
        None,
        ge=1,
        description="Number of blocks, each halving the image; convnet only. None: 3 up to 32 px, then one more per "
        "doubling (4 at 64 px, 5 at 128 px, 6 at 224 px).",
    )
    normalization: NormalizationKind | None = Field(
        None,
        description="Normalisation after each convolution. None: the architecture's own, which is instance for "
        "convnet, none for alexnet, batch for the rest.",
    )

    @field_validator("architecture")
    @classmethod
    def _known(cls, architecture: str) -> str:
        if architecture not in ARCHITECTURES:
            nearest = difflib.get_close_matches(architecture.lower(), ARCHITECTURES, n=1, cutoff=0.4)
            hint = f"did you mean '{nearest[0]}'? " if nearest else ""
            raise ValueError(f"unknown architecture '{architecture}': {hint}choose one of {', '.join(ARCHITECTURES)}")
        return architecture

    @model_validator(mode="after")
    def _sizes_apply(self) -> "ModelConfig":
        if self.width is not None and self.facts.default_width is None:
            raise ValueError(f"width {self.width} has no effect on {self.architecture}: remove it (it is fixed there)")
        if self.depth is not None and not self.facts.has_depth:
            raise ValueError(f"depth {self.depth} has no effect on {self.architecture}: remove it (it is fixed there)")
        return self

    @property
    def facts(self) -> ArchitectureFacts:
        """Return the table entry of this architecture."""
        return ARCHITECTURES[self.architecture]

    @property
    def resolved_width(self) -> int | None:
        """Return the channels of the first stage, or None where the architecture fixes them."""
        return self.facts.default_width if self.width is None else self.width

    @property
    def resolved_normalization(self) -> NormalizationKind:
        """Return the normalisation that is built: the one set, or the architecture's own."""
        return self.normalization or self.facts.normalization

    def resolved_depth(self, image_size: int) -> int | None:
        """Return the number of blocks at `image_size` pixels, or None where the architecture fixes it."""
        if not self.facts.has_depth or self.depth is not None:
            return self.depth
        # Leaves a 4x4 map at 32, 64 and 128 px, which is what the published ConvNet-3, -4 and -5 have.
        return max(3, math.ceil(math.log2(image_size)) - 2)

    @property
    def label(self) -> str:
        """Return the usual name, such as "ConvNet-3" or "ResNet-32 (width 64)"; see `label_at`.

        A ConvNet whose depth follows the image size is named "ConvNet", without a number.
        """
        return self._named(self.depth)

    def label_at(self, image_size: int) -> str:
        """Return the usual name at `image_size` pixels; whatever departs from the usual network stands in brackets."""
        return self._named(self.resolved_depth(image_size))

    def _named(self, depth: int | None) -> str:
        name = self.facts.label if depth is None else f"{self.facts.label}-{depth}"
        departures = []
        if self.resolved_width != self.facts.default_width:
            departures.append(f"width {self.resolved_width}")
        if self.resolved_normalization != self.facts.normalization:
            departures.append(f"{self.resolved_normalization} norm")
        return f"{name} ({', '.join(departures)})" if departures else name
