"""The settings of one experiment: every stage's own settings nested, loaded strictly, overridable by dotted name.

Precedence, the later wins:
1. defaults, written beside each setting;
2. the YAML file;
3. key=value on the command line.
The values under `experts` are then the defaults of `observer.training`, `teacher.training` and the trainings of `more_teachers`.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from ray_ltdd.compute import ComputeConfig
from ray_ltdd.data.prepare import DataConfig
from ray_ltdd.data.split import SplitConfig
from ray_ltdd.errors import InputError
from ray_ltdd.placement import ClusterConfig
from ray_ltdd.settings import WHERE_SECTIONS, WHERE_SETTINGS, Place, Settings
from ray_ltdd.stages.calibrate import CalibrateConfig
from ray_ltdd.stages.colours import ChangesColours
from ray_ltdd.stages.evaluate import EvaluateConfig
from ray_ltdd.stages.expert_config import ExpertConfig
from ray_ltdd.stages.experts import ExpertTraining
from ray_ltdd.stages.recover import RecoverConfig
from ray_ltdd.stages.relabel import RelabelConfig
from ray_ltdd.stages.select_crops import SelectCropsConfig
from ray_ltdd.yaml_files import override, read_yaml

_ROLES = ("observer", "teacher")


class DistillConfig(Settings):
    """The size of the distilled dataset."""

    images_per_class: int = Field(10, ge=1, description="IPC: distilled images of every class")
    classes_per_unit: int = Field(10, ge=1, description="classes of a work unit, whatever the number of workers")


class OutputConfig(Settings):
    """Where things go."""

    root: Place = Field("runs", description="folder that holds one folder per run")
    store: Place | None = Field(None, description="folder of artifacts, shared by all runs; empty: ROOT/store")
    checkpoint_seconds: float = Field(
        20.0, ge=0, description="seconds between saves of a training's or recovery's state, which a later run continues"
    )

    @property
    def store_path(self) -> Path:
        """The artifact store's folder."""
        return Path(self.store) if self.store else Path(self.root) / "store"


class ExperimentConfig(Settings):
    """One experiment: a dataset, its long-tailed split, and the five stages."""

    # file systems take 255 bytes, and a fingerprint follows
    name: str = Field("run", max_length=200, pattern=r"^[A-Za-z0-9_.-]+$", description="first part of the run folder's name")
    seed: int = Field(0, ge=0, description="every random draw but the split's derives from it")
    data: DataConfig = Field(default_factory=DataConfig, description="the dataset")
    split: SplitConfig = Field(default_factory=SplitConfig, description="the long-tailed training split")
    distill: DistillConfig = Field(default_factory=DistillConfig, description="size of the distilled dataset")
    experts: ExpertTraining = Field(default_factory=ExpertTraining, description="how experts are trained")
    observer: ExpertConfig = Field(default_factory=ExpertConfig, description="the expert whose statistics are matched")
    teacher: ExpertConfig = Field(default_factory=ExpertConfig, description="the expert that scores crops and gives soft labels")
    teacher_seeds: int = Field(
        1, ge=1, description="teachers trained as `teacher` says, each from a seed of its own; students learn more from their averaged logits"
    )
    more_teachers: tuple[ExpertConfig, ...] = Field((), description="further teachers with settings of their own; logits are averaged over all")
    calibrate: CalibrateConfig = Field(default_factory=CalibrateConfig, description="fair statistics")
    select_crops: SelectCropsConfig = Field(default_factory=SelectCropsConfig, description="initial images")
    recover: RecoverConfig = Field(default_factory=RecoverConfig, description="recovery of pixels")
    relabel: RelabelConfig = Field(default_factory=RelabelConfig, description="soft labels and the student's views")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="students and baselines")
    compute: ComputeConfig = Field(default_factory=ComputeConfig, description="device, precision, compilation")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="who computes, and where")
    output: OutputConfig = Field(default_factory=OutputConfig, description="folders")

    @model_validator(mode="before")
    @classmethod
    def _inherit_training(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        sections = {name for name, info in cls.model_fields.items() if section_of(info.annotation)[0] is info.annotation}
        # a section that a file names and leaves empty is null in YAML
        merged = {name: {} if value is None and name in sections else value for name, value in values.items()}
        common = merged.get("experts", {})
        if not isinstance(common, dict):
            return merged
        for role in _ROLES:
            if isinstance(merged.get(role, {}), dict):
                merged[role] = _with_training(merged.get(role, {}), common)
        more = merged.get("more_teachers", ())
        if isinstance(more, list | tuple):
            merged["more_teachers"] = [_with_training(expert, common) if isinstance(expert, dict) else expert for expert in more]
        return merged

    @model_validator(mode="after")
    def _observer_is_taught_by_labels(self) -> "ExperimentConfig":
        if self.observer.taught_by:
            raise ValueError("observer.taught_by: the observer cannot teach itself; leave it empty, and set teacher.taught_by=observer instead")
        return self

    @model_validator(mode="after")
    def _teachers_differ(self) -> "ExperimentConfig":
        if problem := self._teacher_counted_twice(None):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _baselines_have_not_seen_what_they_are_tested_on(self) -> "ExperimentConfig":
        if self.evaluate.part == "balanced_train" and self.evaluate.baselines:
            raise ValueError("evaluate.part=balanced_train: the baselines train on images of this part; set evaluate.baselines=[]")
        return self

    def colour_changes(self) -> Iterator[tuple[str, ChangesColours]]:
        """All settings that may change colours, each after its dotted name."""
        yield "relabel.views", self.relabel.views
        yield "observer.training", self.observer.training
        more = (f"more_teachers.{position}" for position in range(len(self.more_teachers)))
        for place, teacher in zip(("teacher", *more), (self.teacher, *self.more_teachers), strict=True):
            matching = teacher.function_matching
            yield (f"{place}.training", teacher.training) if matching is None else (f"{place}.function_matching.views", matching.views)

    def require_different_teachers(self, image_size: int) -> None:
        """Refuse teachers that only differ in what images of this size decide: a depth that is given, and the same one by default.

        Raises:
            InputError: two are the same network, trained alike.
        """
        if problem := self._teacher_counted_twice(image_size):
            raise InputError(f"{problem}.")

    def _teacher_counted_twice(self, image_size: int | None) -> str | None:
        known = [_trained(teacher, image_size) for teacher in self.teachers]
        for position, teacher in enumerate(self.more_teachers):
            if known.count(_trained(teacher, image_size)) > 1:
                return (
                    f"more_teachers.{position}.member={teacher.member}: another teacher has the same settings and member, so its logits would "
                    "count twice; give this one a member of its own"
                )
        return None

    @property
    def teachers(self) -> tuple[ExpertConfig, ...]:
        """The teacher, those of its settings from other seeds, and all further ones."""
        first = self.teacher.member
        alike = (self.teacher.model_copy(update={"member": member}) for member in range(first, first + self.teacher_seeds))
        return (*alike, *self.more_teachers)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (first 12 hex digits) of everything but names, folders and sharing of work: equal fingerprints mean the same experiment."""
        where: dict[str, Any] = {**dict.fromkeys(WHERE_SECTIONS, True), **{section: set(names) for section, names in WHERE_SETTINGS.items()}}
        settings = self.model_dump(mode="json", exclude=where)
        if self.cluster.expert_workers > 1:
            settings["expert_workers"] = self.cluster.expert_workers
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def run_folder(self) -> Path:
        """Where this run's results go: ROOT/NAME-FINGERPRINT."""
        return Path(self.output.root) / f"{self.name}-{self.fingerprint[:8]}"


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration and, for every dotted name, where its value came from."""

    config: ExperimentConfig
    origins: Mapping[str, str]


def _trained(expert: ExpertConfig, image_size: int | None) -> dict[str, Any]:
    """What decides an expert's weights, with the network's own width, normalisation and, of images of a known size, depth in place of none."""
    model = expert.model
    resolved: dict[str, Any] = {"width": model.resolved_width, "normalization": model.resolved_normalization}
    if image_size is not None:
        resolved["depth"] = model.resolved_depth(image_size)
    return expert.model_copy(update={"model": model.model_copy(update=resolved)}).outcome()


def _with_training(expert: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    own = expert.get("training", {})
    return {**expert, "training": {**common, **own} if isinstance(own, dict) else own}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read a YAML file, apply `key=value` overrides, validate.

    Raises:
        InputError: the file is missing, a sweep's or no mapping; an override is malformed; or settings are unknown or out of range, all of them at
            once with dotted path and nearest name.
    """
    values = read_yaml(Path(path))
    if "base" in values:
        raise InputError(f"{path} is a sweep: `ray-ltdd sweep {path}` runs it, with --plan it says what it would compute.")
    origins = dict.fromkeys((name for name, _ in leaves(values)), str(path))
    for text in overrides:
        name, value = override(values, text)
        origins = {known: origin for known, origin in origins.items() if known != name and not known.startswith(f"{name}.")}
        nested = [inner for inner, _ in leaves(value, name + ".")] if isinstance(value, dict) and value else [name]
        origins |= dict.fromkeys(nested, "command line")
    config = validate(values, str(path), origins)
    return LoadedConfig(config, {name: _origin(name, origins) for name, _ in leaves(config.model_dump(mode="json"))})


def validate(values: Mapping[str, Any], place: str, origins: Mapping[str, str] | None = None) -> ExperimentConfig:
    """Build the configuration from plain data; `origins` tells where single values came from, `place` where all others did.

    Raises:
        InputError: every problem on a line of its own.
    """
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        common = {".".join(map(str, problem["loc"])) for problem in problems}
        # a wrong value under `experts` is wrong again in every role that inherits it: once is enough
        inherited = {problem["loc"]: f"experts.{problem['loc'][-1]}" for problem in problems if "training" in problem["loc"]}
        known = origins or {}
        messages = dict.fromkeys(
            f"{_place(problem['loc'], known, place)}: {_explain(problem)}" for problem in problems if inherited.get(problem["loc"]) not in common
        )
        raise InputError("\n".join(messages)) from None


def write_yaml(config: ExperimentConfig, path: Path) -> None:
    """Write all resolved settings as YAML."""
    yaml = YAML()
    yaml.default_flow_style = False
    with path.open("w") as file:
        yaml.dump(config.model_dump(mode="json"), file)


def setting_meanings(model: type[BaseModel] = ExperimentConfig, prefix: str = "", inside_optional: bool = True) -> Iterator[tuple[str, str]]:
    """Yield every dotted name and what it means; names inside sections that may be empty, and are by default, where they are asked for."""
    for name, info in model.model_fields.items():
        section, may_be_empty = section_of(info.annotation)
        if section is None or may_be_empty:
            yield prefix + name, info.description or ""
        if section is not None and (inside_optional or not may_be_empty):
            yield from setting_meanings(section, f"{prefix}{name}.", inside_optional)


def setting_meaning(name: str) -> str:
    """What the setting of this dotted name means; a name inside a setting's value, as of `recover.layer_weights`, means what the setting does."""
    meanings = _all_meanings()
    while name and name not in meanings:
        name = name.rpartition(".")[0]
    return meanings[name]


@cache
def _all_meanings() -> dict[str, str]:
    return dict(setting_meanings())


def setting_names(model: type[BaseModel] = ExperimentConfig, inside_optional: bool = False) -> Iterator[str]:
    """Yield every dotted name; see `setting_meanings`."""
    return (name for name, _ in setting_meanings(model, inside_optional=inside_optional))


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The settings a field holds, if it does, and whether it may be empty instead."""
    others = [kind for kind in get_args(annotation) if kind is not NoneType]
    kind = others[0] if len(others) == 1 and NoneType in get_args(annotation) else annotation
    return (kind, kind is not annotation) if isinstance(kind, type) and issubclass(kind, BaseModel) else (None, False)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted name and its value; an empty mapping is a value of its own."""
    if not isinstance(value, dict) or (not value and prefix):
        yield prefix.removesuffix("."), value
        return
    for name, inner in value.items():
        yield from leaves(inner, f"{prefix}{name}.")


def _origin(name: str, origins: Mapping[str, str]) -> str:
    if name in origins:
        return origins[name]
    role, _, rest = name.partition(".training.")
    inherited = f"experts.{rest}"
    return f"experts ({origins[inherited]})" if role in _ROLES and inherited in origins else "default"


def _place(loc: Sequence[str | int], origins: Mapping[str, str], place: str) -> str:
    # an entry of a list comes from where the list does; a section from where all its values do, such as a mistyped one
    names = [".".join(map(str, loc[:n])) for n in range(len(loc), 0, -1)]
    own = next((origins[name] for name in names if name in origins), None)
    below = {origin for known, origin in origins.items() if names and known.startswith(f"{names[0]}.")}
    return own or (below.pop() if len(below) == 1 else place)


def _explain(problem: Mapping[str, Any]) -> str:
    # in `union` fields pydantic adds the branch's type to the path: only names and list positions are the user's
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = _nearest(name)
        if near == name:
            return f"'{name}' is written as one key there: nest it, {_nested(name)}."
        return f"there is no setting '{name}'" + (f": did you mean '{near}'?" if near else "; `ray-ltdd show CONFIG` lists all settings.")
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = f" (it is {given!r})" if not isinstance(given, dict | list | tuple) else ""
    return f"{name or 'the settings'}{shown}: {message[0].lower()}{message[1:]}."


def _nested(name: str) -> str:
    *sections, last = name.split(".")
    return "".join(f"{section}: {{" for section in sections) + f"{last}: ..." + "}" * len(sections)


def _nearest(name: str) -> str | None:
    names = list(setting_names(inside_optional=True))
    parent, _, last = name.rpartition(".")
    sections = {n.rpartition(".")[0] for n in names}
    siblings = {n[len(parent) + 1 if parent else 0 :].split(".")[0] for n in names + sorted(sections) if n.startswith(f"{parent}." if parent else "")}
    near = difflib.get_close_matches(last, sorted(siblings - {""}), 1, 0.6)
    if near:
        return f"{parent}.{near[0]}" if parent else near[0]
    same = [n for n in names if n.rpartition(".")[2] == last]
    return same[0] if same else next(iter(difflib.get_close_matches(name, names, 1, 0.7)), None)
