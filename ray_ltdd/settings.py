"""The base class of every settings model."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Typed, immutable settings: unknown keys are refused, defaults are validated, every field states its meaning, unit and range.

    Raises:
        pydantic.ValidationError: a key is unknown or a value is outside its range. `ray_ltdd.config` turns it into an `InputError`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
