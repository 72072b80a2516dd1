"""What a run's folder holds, as far as it is there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ray_ltdd.errors import InputError
from ray_ltdd.results.costs import read_summary
from ray_ltdd.results.image_sets import INITIAL, REAL, ImageSets, load_image_sets
from ray_ltdd.results.load import load_results
from ray_ltdd.results.summary import SUMMARY
from ray_ltdd.results.trace import SETTINGS
from ray_ltdd.yaml_files import read_yaml

GALLERY = "gallery.png"


@dataclass(frozen=True)
class RunContents:
    """A run as far as it is there.

    Attributes:
        folder: the run's.
        settings: all resolved settings, nested.
        rows: of `load_results`; None where no network has been tested.
        summary: of summary.json; None where the run has not come to its end.
        images: initial, distilled and real images; None where none were distilled.
        gallery: the bytes of gallery.png; None where there is none.
        missing: a sentence for each part that is not there.
    """

    folder: Path
    settings: Mapping[str, Any]
    rows: pd.DataFrame | None
    summary: Mapping[str, Any] | None
    images: ImageSets | None
    gallery: bytes | None
    missing: tuple[str, ...]


def is_run(folder: Path) -> bool:
    """Whether `folder` is that of one run."""
    return (folder / SETTINGS).exists()


def read_run(folder: Path) -> RunContents:
    """Read the run in `folder`.

    Raises:
        InputError: it is no run's folder, or its settings cannot be read. Any other part that is missing or damaged is named in `missing`.
    """
    if not is_run(folder):
        raise InputError(f"{folder} is no run: it has no {SETTINGS}; give a folder that `ray-ltdd run` made, such as runs/quickstart-1a2b3c4d.")
    settings = read_yaml(folder / SETTINGS)
    if not settings:
        raise InputError(f"{folder} is no run: its {SETTINGS} is empty; give a folder that `ray-ltdd run` made.")
    missing: list[str] = []
    summary = images = None
    rows = _read_rows(folder, missing)
    try:
        summary = read_summary(folder)
        if summary is None:
            missing.append(f"The run has not come to its end: there is no {SUMMARY}, and so no cost of the stages.")
    except InputError as error:
        missing.append(f"{str(error)[0].upper()}{str(error)[1:]}")
    try:
        images = load_image_sets(folder)
        if INITIAL not in images.panels:
            missing.append("The initial images are not shown: the store the run was made with is not there.")
        if REAL not in images.panels:
            missing.append("Real images are not shown: the store or the decoded dataset (`data.root`) of the run is not there.")
    except InputError as error:
        is_there = (folder / "distilled").exists()
        missing.append(f"{str(error)[0].upper()}{str(error)[1:]}" if is_there else "No images have been distilled yet.")
    gallery = (folder / GALLERY).read_bytes() if (folder / GALLERY).exists() else None
    return RunContents(folder, settings, rows, summary, images, gallery, tuple(missing))


def _read_rows(folder: Path, missing: list[str]) -> pd.DataFrame | None:
    try:
        rows = load_results(folder)
    except InputError:
        missing.append("No network has been tested yet: there are no result rows.")
        return None
    known = rows[rows["top1"].notna()].reset_index(drop=True)
    if known.empty:
        missing.append("No network has been tested to its end: result rows are of trainings that were stopped, without an accuracy, or damaged.")
        return None
    if len(known) < len(rows):
        missing.append(f"{len(rows) - len(known)} of {len(rows)} result rows have no accuracy and are left out.")
    return known


def value(settings: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return one setting by its dotted name, `default` where it is not there."""
    found: Any = settings
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return default
        found = found[part]
    return found


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted name and value of every setting."""
    for name, own in settings.items():
        if isinstance(own, Mapping):
            yield from dotted(own, f"{prefix}{name}.")
        else:
            yield prefix + name, own
