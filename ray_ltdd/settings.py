"""The base class of every settings model, and the types of settings that several share."""

import os
import re
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

WHERE_SECTIONS = ("name", "output", "cluster")
WHERE_SETTINGS = {"data": ("root", "path"), "compute": ("threads", "device"), "relabel": ("epochs_per_task",)}
"""What says where and in which pieces work is done, in whole sections and in single settings: the same experiment may differ in it. Of `cluster`
`expert_workers` alone changes an outcome, above 1."""


class Settings(BaseModel):
    """Typed, immutable settings: unknown keys are refused, defaults are validated, every field states its meaning, unit and range.

    Raises:
        pydantic.ValidationError: a key is unknown or a value is outside its range. `ray_ltdd.config` turns it into an `InputError`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def with_defaults(self, names: Iterable[str]) -> Self:
        """Return a copy in which the settings `names` have their defaults: what changes nothing, as the others are, must not make another key."""
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].get_default(call_default_factory=True) for name in names})


def _local(place: str) -> str:
    # pathlib would take s3://bucket/x for the local folder s3:/bucket/x
    if scheme := _SCHEME.match(place):
        raise ValueError(f"addresses with {scheme[0]} are not supported, a folder that all nodes see (on a mounted file system) is needed")
    # a shell leaves the ~ of key=~/x alone, and nobody else reads those of a YAML file
    return os.path.expanduser(place)


Place = Annotated[str, AfterValidator(_local)]
"""Path of a folder or file on a mounted file system, ~ standing for the home folder; an address such as s3://bucket/x or file:///x is refused."""
