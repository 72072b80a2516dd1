"""What stages have cost so far, read from the manifests of a store's artifacts."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ray_ltdd.artifacts import MANIFEST, PAYLOAD, Artifact
from ray_ltdd.search.sizes import PreparedRecord, prepared_records
from ray_ltdd.search.work import STAGES, CostKind, expert_signature, network_name
from ray_ltdd.stages import relabel
from ray_ltdd.stages.expert_config import n_training_images
from ray_ltdd.stages.experts import ExpertTraining
from ray_ltdd.stages.function_matching import FunctionMatching
from ray_ltdd.stages.views import ViewsConfig, n_views
from ray_ltdd.tasks.keys import joint_digest

_MOST_EXPERTS_OF_A_PAIR = 20
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, StopIteration, SafetensorError)


@dataclass(frozen=True)
class StageCost:
    """What one artifact cost.

    Attributes:
        kind: of the cost.
        work, size: as in `StageRun`.
        seconds: wall seconds to compute it.
        n_bytes: of its payload on disk.
        device: that computed it.
        created: when, UTC; later texts sort later.
    """

    kind: CostKind
    work: int
    size: int
    seconds: float
    n_bytes: int
    device: str
    created: str


@dataclass
class _Store:
    """A store's artifacts by digest, and what has been found out about them."""

    artifacts: dict[str, Artifact]
    datasets: Mapping[str, PreparedRecord]
    counts: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    teachers: dict[str, str] = field(default_factory=dict)

    def dataset(self, split: str) -> str:
        return self.counts[split][0]

    def n_train(self, split: str, classes: list[int] | None = None) -> int:
        count_K = self.counts[split][1]
        return sum(count_K if classes is None else (count_K[k] for k in classes))

    def guide(self, manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Settings of the expert that taught the one of `manifest`, if one did."""
        digest = manifest["upstream"].get("guide")
        return self.artifacts[digest].manifest["settings"] if digest else None

    def image_shape(self, digest: str) -> list[int]:
        with safe_open(self.artifacts[digest].folder / PAYLOAD, framework="numpy") as file:
            return [int(n) for n in file.get_slice("image").get_shape()]

    def n_images(self, digest: str) -> int:
        return self.image_shape(digest)[0]


def read_costs(store: Path, data_root: str | Path) -> list[StageCost]:
    """Return the costs of all artifacts of a store that can be understood; the others (damaged, of older versions) are passed over.

    Args:
        store: folder of the artifacts; it need not exist.
        data_root: where prepared datasets lie (`data.root`): a manifest names its dataset by fingerprint alone.
    """
    known = _open(store, data_root)
    costs = []
    for artifact in known.artifacts.values():
        stage = str(artifact.manifest["stage"])
        if stage not in STAGES:
            continue
        try:
            kind, work, size = _READERS.get(stage, _count)(known, artifact.manifest)
            facts = artifact.manifest
            costs.append(StageCost(kind, work, size, artifact.seconds, artifact.n_bytes, facts["device"], facts["created"]))
        except _UNREADABLE:
            continue
    return costs


def stored_experts(store: Path, data_root: str | Path) -> set[str]:
    """Return the signatures of the experts a store holds, to be compared with those of planned ones."""
    known = _open(store, data_root)
    splits = {a.record["fingerprint"]: a.manifest["settings"]["split"] for a in known.artifacts.values() if a.manifest["stage"] == "split"}
    signatures = set()
    for artifact in known.artifacts.values():
        facts = artifact.manifest
        split = facts["upstream"].get("split")
        if facts["stage"] == "experts" and split in known.counts:
            signatures.add(expert_signature(known.dataset(split), splits[split], facts["settings"], facts["seed"], known.guide(facts)))
    return signatures


def _open(store: Path, data_root: str | Path) -> _Store:
    artifacts = {}
    for path in sorted(store.expanduser().glob(f"*/*/{MANIFEST}")):
        try:
            manifest = json.loads(path.read_text())
            if manifest["digest"] == path.parent.name:
                artifacts[path.parent.name] = Artifact(path.parent, manifest)
        except _UNREADABLE:
            continue
    known = _Store(artifacts, prepared_records(data_root))
    for artifact in artifacts.values():
        if artifact.manifest["stage"] == "split":
            prepared = known.datasets.get(artifact.manifest["upstream"]["data"])
            if prepared is not None:
                known.counts[artifact.record["fingerprint"]] = (prepared.label, artifact.tensors("count")["count"].tolist())
    _name_teachers(known)
    return known


def _name_teachers(known: _Store) -> None:
    """Manifests name all teachers by one joint digest: find which expert, or two, or several of other seeds, of one split it stands for."""
    by_split: dict[str, list[Artifact]] = {}
    for artifact in known.artifacts.values():
        if artifact.manifest["stage"] == "experts":
            by_split.setdefault(artifact.manifest["upstream"]["split"], []).append(artifact)
    for experts in by_split.values():
        sizes = (1, 2) if len(experts) <= _MOST_EXPERTS_OF_A_PAIR else (1,)
        groups: list[Sequence[Artifact]] = [group for n in sizes for group in product(experts, repeat=n)]
        groups += [alike[first:last] for alike in _of_other_seeds(experts) for first, last in combinations(range(len(alike) + 1), 2)]
        for group in groups:
            known.teachers[joint_digest(group)] = network_name(*(expert.manifest["settings"]["model"] for expert in group))


def _of_other_seeds(experts: Sequence[Artifact]) -> Iterable[list[Artifact]]:
    """Experts that differ in their `member` alone, in its order."""
    alike: dict[str, list[Artifact]] = {}
    for expert in sorted(experts, key=lambda expert: expert.manifest["settings"]["member"]):
        manifest = expert.manifest
        same = {name: value for name, value in manifest["settings"].items() if name != "member"}
        alike.setdefault(json.dumps([same, manifest["upstream"], manifest["seed"]], sort_keys=True), []).append(expert)
    return alike.values()


Reader = Callable[[_Store, Mapping[str, Any]], tuple[CostKind, int, int]]


def _count(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    return CostKind(manifest["stage"]), 1, 1


def _expert(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    split, settings = manifest["upstream"]["split"], manifest["settings"]
    matching = settings.get("function_matching")
    training = FunctionMatching(**matching) if matching else ExpertTraining(**settings["training"])
    guide = known.guide(manifest)
    networks = [settings["model"], *([guide["model"]] if guide else [])]
    kind = CostKind("experts", known.dataset(split), network_name(*networks))
    return kind, n_training_images(training, known.n_train(split)), 1


def _watched(known: _Store, manifest: Mapping[str, Any]) -> CostKind:
    observer = known.artifacts[manifest["upstream"]["observer"]].manifest
    return CostKind(manifest["stage"], known.dataset(observer["upstream"]["split"]), network_name(observer["settings"]["model"]))


def _calibrate(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    return _watched(known, manifest), known.n_train(manifest["upstream"]["split"], manifest["settings"]["classes"]), 1


def _crops(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    settings, upstream = manifest["settings"], manifest["upstream"]
    taught = "teachers" in upstream
    kind = CostKind("select_crops", known.dataset(upstream["split"]), known.teachers[upstream["teachers"]]) if taught else CostKind("select_crops")
    work = known.n_train(upstream["split"], settings["classes"]) * settings["select_crops"]["crops_per_image"]
    return kind, work, len(settings["classes"]) * settings["images_per_class"]


def _wave(known: _Store, manifest: Mapping[str, Any]) -> int:
    settings = manifest["settings"]
    first, last = (settings["images_per_class"] * i // settings["n_waves"] for i in (settings["wave"], settings["wave"] + 1))
    return len(settings["classes"]) * (last - first)


def _initial_moments(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    return _watched(known, manifest), _wave(known, manifest), 1


def _recover(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    previous = manifest["upstream"].get("previous")
    first_step = known.artifacts[previous].manifest["settings"]["last_step"] if previous else 0
    rows = _wave(known, manifest)
    return _watched(known, manifest), rows * (manifest["settings"]["last_step"] - first_step), rows


def _images(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    return CostKind("images"), 1, math.prod(known.image_shape(manifest["digest"]))


def _score(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    expert = known.artifacts[manifest["upstream"]["expert"]].manifest
    return CostKind("scores", known.dataset(manifest["upstream"]["split"]), network_name(expert["settings"]["model"])), 1, 1


def _relabel(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    if manifest["version"] != relabel.VERSION:
        raise ValueError("the first version kept labels of images and of views together")
    upstream = manifest["upstream"]
    kind = CostKind(manifest["stage"], known.dataset(upstream["split"]), known.teachers[upstream["teachers"]])
    n_images = known.n_images(upstream["images"])
    return kind, n_images * _labelling(manifest).n_passes, n_images


def _relabel_views(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    kind, _, n_images = _relabel(known, manifest)
    first, end = manifest["settings"]["epochs"]
    work = (end - first) * n_views(_labelling(manifest).views, n_images)
    return kind, work * _labelling(manifest).n_passes, work


def _labelling(manifest: Mapping[str, Any]) -> relabel.RelabelConfig:
    return relabel.RelabelConfig(**manifest["settings"]["relabel"])


def _student(known: _Store, manifest: Mapping[str, Any]) -> tuple[CostKind, int, int]:
    settings, upstream = manifest["settings"], manifest["upstream"]
    own = settings["source"] == "distilled"
    n_images = known.n_images(upstream["images"]) if own else settings["images_per_class"] * len(known.counts[upstream["split"]][1])
    views = ViewsConfig(**(settings["relabel"]["views"] if own else settings["views"]))
    networks = [
        network_name(settings["student"]["model"]),
        *([known.teachers[upstream["teachers"]]] * _labelling(manifest).n_passes if "teachers" in upstream else []),
    ]
    kind = CostKind(manifest["stage"], known.dataset(upstream["split"]), " + ".join(networks))
    # what parts before cost is their own
    n_epochs = settings.get("last_epoch", settings["student"]["epochs"]) - manifest["record"].get("epochs_before", 0)
    n_drawn_from = known.n_train(upstream["split"]) if settings["source"] == "whole" else None
    return kind, n_epochs * n_views(views, n_images, n_drawn_from), 1


_READERS: Mapping[str, Reader] = {
    "experts": _expert,
    "calibrate": _calibrate,
    "select_crops": _crops,
    "initial_moments": _initial_moments,
    "recover": _recover,
    "images": _images,
    "relabel": _relabel,
    "relabel_views": _relabel_views,
    "students": _student,
    "student_parts": _student,
    "scores": _score,
}
