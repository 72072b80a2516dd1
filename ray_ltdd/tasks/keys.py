"""What all tasks' keys have in common."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from ray_ltdd.artifacts import Artifact, Key
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.settings import Settings


def key(config: ExperimentConfig, stage: str, version: int, settings: Mapping[str, Any], upstream: Mapping[str, str]) -> Key:
    """The key of a stage's artifact: the precision and compilation *asked for* belong to it, the machine does not."""
    numerics = config.compute.model_dump(include={"precision", "compile"})
    plain = {name: value.model_dump(mode="json") if isinstance(value, Settings) else value for name, value in settings.items()}
    return Key(stage, version, {**plain, "compute": numerics}, upstream, config.seed)


def joint_digest(artifacts: Sequence[Artifact]) -> str:
    """One digest for a list of artifacts."""
    return hashlib.sha256(" ".join(artifact.digest for artifact in artifacts).encode()).hexdigest()[:24]


def span(classes: Sequence[int]) -> str:
    """Name classes in a message, long lists by their ends."""
    return ", ".join(map(str, classes)) if len(classes) <= 10 else f"{classes[0]}, {classes[1]}, ... {classes[-1]}"
