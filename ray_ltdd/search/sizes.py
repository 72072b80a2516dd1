"""How many images an experiment trains on, without decoding anything.

Legend: K classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_ltdd.config import ExperimentConfig
from ray_ltdd.data.catalogue import find_benchmark
from ray_ltdd.data.prepared import RECORD
from ray_ltdd.data.split import class_counts


@dataclass(frozen=True)
class PreparedRecord:
    """What the record of a prepared dataset says of it.

    Attributes:
        folder: where it lies.
        dataset: the benchmark's name.
        image_size: side in pixels.
        class_names: K names.
        fingerprint: SHA-256 of its contents.
        source: what it was decoded from, in words; holds the path if there is one.
        test_per_class: images of each class held out for testing; None where the source has a test part.
    """

    folder: Path
    dataset: str
    image_size: int
    class_names: tuple[str, ...]
    fingerprint: str
    source: str
    test_per_class: int | None

    @property
    def label(self) -> str:
        """Dataset and size, such as `cifar10_lt at 32 px`: what a cost is measured on."""
        return dataset_label(self.dataset, self.image_size)


def dataset_label(dataset: str, image_size: int) -> str:
    """Return `DATASET at SIZE px`."""
    return f"{dataset} at {image_size} px"


def label_of(config: ExperimentConfig) -> str:
    """Return the dataset and size of an experiment.

    Raises:
        InputError: the benchmark is unknown or does not come in that size.
    """
    return dataset_label(config.data.dataset, find_benchmark(config.data.dataset).resolve_image_size(config.data.image_size))


def prepared_records(root: str | Path) -> Mapping[str, PreparedRecord]:
    """Return the datasets prepared below `root` (`data.root`) by fingerprint; unreadable records are passed over."""
    found = {}
    for path in sorted(Path(root).expanduser().glob(f"*/{RECORD}")):
        try:
            record = json.loads(path.read_text())
            names = tuple(record["class_names"])
            held_out = record["key_inputs"]["test_per_class"]
            facts = (record["dataset"], record["image_size"], names, record["fingerprint"], record["source"], held_out)
            found[record["fingerprint"]] = PreparedRecord(path.parent, *facts)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def training_counts(config: ExperimentConfig) -> np.ndarray | None:
    """Return the training images of each class, int64 [K], or None where they cannot be known before the dataset is prepared.

    They are exact when the dataset is prepared. Else they follow from the catalogue, for the exponential and step profiles and given counts; a source
    is then taken to have as many images of every class as the benchmark's largest class.

    Raises:
        InputError: the split cannot be drawn: a class of the prepared dataset has too few images.
    """
    benchmark = find_benchmark(config.data.dataset)
    prepared = _prepared(config)
    if prepared is not None:
        names = prepared.class_names
        available_K = np.bincount(np.load(prepared.folder / "train_labels.npy"), minlength=len(names))
    elif benchmark.class_count is None or benchmark.head_count is None or config.split.profile == "natural":
        return None
    else:
        names = tuple(map(str, range(benchmark.class_count)))
        available_K = np.full(benchmark.class_count, benchmark.head_count)
    return class_counts(config.split, available_K - config.split.validation_per_class, names, benchmark.head_count)


def _prepared(config: ExperimentConfig) -> PreparedRecord | None:
    """The prepared dataset the settings lead to, as far as records tell: the last one from the same files, or from a package."""
    label, root = label_of(config), Path(config.data.root).absolute()
    place = Path(config.data.path) if config.data.path else root / "sources" / config.data.dataset
    held_out = config.data.test_per_class or find_benchmark(config.data.dataset).test_per_class
    records = [record for record in prepared_records(root).values() if (record.label, record.test_per_class) == (label, held_out)]
    fitting = [record for record in records if _holds(record.source, place) or "/" not in record.source]
    return max(fitting, key=lambda record: (record.folder / RECORD).stat().st_mtime, default=None)


def _holds(source: str, place: Path) -> bool:
    """Whether a source is described by this path, or by one below it, as it was given or from the root."""
    return any(f" {path}/" in f"{source}/" for path in {place, place.absolute()})
