"""What an expert is: its network, and which of the two ways it is trained."""

from typing import Any, Literal

from pydantic import Field, model_validator

from ray_ltdd.models.config import ModelConfig
from ray_ltdd.settings import Settings
from ray_ltdd.stages.experts import ExpertTraining
from ray_ltdd.stages.function_matching import FunctionMatching
from ray_ltdd.stages.views import n_views


class ExpertConfig(Settings):
    """An expert: its architecture, and what of its training differs from `experts`."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="the encoder")
    training: ExpertTraining = Field(default_factory=ExpertTraining, description="overrides of `experts`, value by value")
    taught_by: Literal["observer"] | None = Field(
        None,
        description="of teachers: it learns the observer's logits besides the labels. Few images teach a student best through a teacher of its own "
        "architecture, and such a one learns more from a stronger observer than from labels alone; empty: labels alone",
    )
    function_matching: FunctionMatching | None = Field(
        None,
        description="of taught teachers: learns the observer's logits of class-balanced crops mixed by CutMix, nothing else, in place of `training`; "
        "{} takes its defaults, empty: trained as `training` says",
    )
    member: int = Field(
        0,
        ge=0,
        description="number of this expert among others of the same settings; another number gives another seed",
    )

    @model_validator(mode="after")
    def _matches_somebody(self) -> "ExpertConfig":
        if self.function_matching is not None and self.taught_by is None:
            raise ValueError("function_matching needs somebody to learn from; set taught_by=observer beside it, or leave it empty")
        return self

    def outcome(self) -> dict[str, Any]:
        """The settings its weights depend on, as plain data.

        The floor is none of them: it decides whether a trained expert is accepted, and who lowers it goes on from the last checkpoint.
        """
        settings: dict[str, Any] = {"model": self.model.model_dump(mode="json"), "member": self.member}
        if self.taught_by:
            settings["taught_by"] = self.taught_by
        if self.function_matching is not None:
            return settings | {"function_matching": self.function_matching.outcome()}
        idle = self.training.unused() | (set() if self.taught_by else {"imitation_weight"})
        return settings | {"training": self.training.model_dump(mode="json", exclude=idle)}

    @property
    def recipe(self) -> str:
        """The section of the settings it is trained by, for messages."""
        return "experts" if self.function_matching is None else self.function_matching.section

    def n_images(self, n_train: int) -> int:
        """Images that pass through the network while it is trained on `n_train` images."""
        return n_training_images(self.training if self.function_matching is None else self.function_matching, n_train)

    def n_workers(self, wanted: int) -> int:
        """Processes that train it, of those wanted; function matching takes one."""
        return wanted if self.function_matching is None else 1


def n_training_images(training: ExpertTraining | FunctionMatching, n_train: int) -> int:
    """Images that pass through a network trained on `n_train` images: the views of both streams, or those of function matching."""
    if isinstance(training, FunctionMatching):
        return n_views(training.views, n_train) * training.epochs
    return 2 * training.batch_size * max(n_train // training.batch_size, 1) * training.epochs
