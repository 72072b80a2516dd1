"""Which artifacts a run's distilled images came from, followed backwards through the manifests in the store.

Digests are read, not computed: it needs neither the dataset nor a network, and works for runs of earlier versions too.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_ltdd.artifacts import MANIFEST, Artifact
from ray_ltdd.errors import InputError
from ray_ltdd.results.rows import read_rows
from ray_ltdd.tasks.keys import joint_digest
from ray_ltdd.yaml_files import read_yaml

SETTINGS = "settings.yaml"

# what differs between the parts of one recovery: everything else in their manifests is equal
_OF_A_PART = ("classes", "wave")
_Unit = tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """Where a run's distilled images came from.

    Attributes:
        images: the distilled images, `image` uint8 [N, C, H, W] and `label` int64 [N], class by class.
        units: the classes of each work unit.
        initial: initial images, one artifact a unit: `image` float [N, C, H, W] in [0, 1], in the order of the unit's classes.
        moments: class moments of the training images, one artifact a unit.
        observer: the expert whose statistics were matched.
    """

    images: Artifact
    units: tuple[_Unit, ...]
    initial: tuple[Artifact, ...]
    moments: tuple[Artifact, ...]
    observer: Artifact


def trace_images(folder: Path) -> Trace:
    """Find the artifacts behind the distilled images of the run in `folder`.

    Raises:
        InputError: the run has no result rows yet, or the store does not hold its artifacts (any more).
    """
    store = store_of(folder)
    images = _distilled_images(folder, store)
    units = tuple(tuple(unit) for unit in images.manifest["settings"]["units"])
    # of several waves the first has the same initial images and moments as the others
    states = _recovered(store, images, units)[: len(units)]
    known = [state.manifest["upstream"] for state in states]
    initial = tuple(_require(store, "select_crops", upstream["initial"]) for upstream in known)
    observer = _require(store, "experts", known[0]["observer"])
    return Trace(images, units, initial, _moments(store, observer, [upstream["moments"] for upstream in known], units), observer)


def store_of(folder: Path) -> Path:
    """Return the store of the run in `folder`: the one its settings name or, where that is gone, `store` beside the run.

    Raises:
        InputError: there is neither.
    """
    named = (read_yaml(folder / SETTINGS).get("output") or {}).get("store") if (folder / SETTINGS).exists() else None
    places = [*([Path(named)] if named else []), folder.absolute().parent / "store"]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise InputError(f"the store of {folder} is not at {places[0]}: put it there, or beside the run as {places[-1]}.")
    return found


def _distilled_images(folder: Path, store: Path) -> Artifact:
    table = read_rows(folder / "results")
    students = [digest for digest, method in zip(table["artifact"].to_pylist(), table["method"].to_pylist(), strict=True) if method == "distilled"]
    if not students:
        raise InputError(f"{folder} has no row of a student of distilled images: run `ray-ltdd run {folder / SETTINGS}` to its end.")
    return _require(store, "images", _require(store, "students", students[0]).manifest["upstream"]["images"])


def _recovered(store: Path, images: Artifact, units: Sequence[_Unit]) -> list[Artifact]:
    """The states the images were rounded from, unit by unit, wave by wave; their joint digest proves that they are the ones."""
    runs: dict[str, dict[tuple[int, _Unit], Artifact]] = {}
    for artifact in artifacts_of(store, "recover"):
        settings = artifact.manifest["settings"]
        runs.setdefault(_what_parts_share(store, artifact), {})[settings["wave"], tuple(settings["classes"])] = artifact
    for parts in runs.values():
        n_waves = next(iter(parts.values())).manifest["settings"]["n_waves"]
        states = [parts.get((wave, unit)) for wave in range(n_waves) for unit in units]
        known = [state for state in states if state is not None]
        if len(known) == len(states) and joint_digest(known) == images.manifest["upstream"]["recovered"]:
            return known
    raise InputError(f"the store {store} does not hold the recovered states of images/{images.digest}: give the store the run was made with.")


def _what_parts_share(store: Path, state: Artifact) -> str:
    manifest = state.manifest
    settings = {name: value for name, value in manifest["settings"].items() if name not in _OF_A_PART}
    kept = {role: digest for role, digest in manifest["upstream"].items() if role in ("observer", "target")}
    initial = _find(store, "select_crops", manifest["upstream"]["initial"])
    chosen = (initial.manifest["settings"] | {"classes": None}, initial.manifest["upstream"]) if initial else None
    return json.dumps([settings, kept, chosen, manifest["version"], manifest["seed"]], sort_keys=True)


def _moments(store: Path, observer: Artifact, named: Sequence[str], units: Sequence[_Unit]) -> tuple[Artifact, ...]:
    """The units' class moments: the manifests name each or, before recovery read sums over the others, the joint digest of all."""
    single = [_find(store, "calibrate", digest) for digest in named]
    known = tuple(artifact for artifact in single if artifact is not None)
    if len(known) == len(units):
        return known
    groups: dict[str, dict[_Unit, Artifact]] = {}
    for artifact in artifacts_of(store, "calibrate"):
        settings = artifact.manifest["settings"]
        if artifact.manifest["upstream"]["observer"] == observer.digest:
            groups.setdefault(json.dumps(settings | {"classes": None}, sort_keys=True), {})[tuple(settings["classes"])] = artifact
    for group in groups.values():
        if set(units) <= set(group) and joint_digest([group[unit] for unit in units]) == named[0]:
            return tuple(group[unit] for unit in units)
    raise InputError(f"the store {store} does not hold the class moments of experts/{observer.digest}: give the store the run was made with.")


def artifacts_of(store: Path, stage: str) -> Iterator[Artifact]:
    """Yield the artifacts of a stage, in the order of their digests, none of those set aside as damaged."""
    for manifest in sorted((store / stage).glob(f"[!.]*/{MANIFEST}")):
        if "damaged" not in manifest.parent.name:
            yield Artifact(manifest.parent)


def _find(store: Path, stage: str, digest: str) -> Artifact | None:
    folder = store / stage / digest
    return Artifact(folder) if digest and (folder / MANIFEST).exists() else None


def _require(store: Path, stage: str, digest: str) -> Artifact:
    found = _find(store, stage, digest)
    if found is None:
        raise InputError(f"the store {store} does not hold {stage}/{digest}: give the store the run was made with.")
    return found
