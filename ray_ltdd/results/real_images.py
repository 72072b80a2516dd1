"""Training images as they are, to be seen beside the distilled ones.

The decoded dataset and the split are recognised by their fingerprints: nothing is downloaded, decoded or drawn again.

Legend: N images, C H W.
"""

import json
from pathlib import Path

import numpy as np
import torch

from ray_ltdd.artifacts import Artifact
from ray_ltdd.data.prepared import RECORD, PreparedDataset, is_whole, open_prepared
from ray_ltdd.errors import InputError
from ray_ltdd.results.rows import read_rows
from ray_ltdd.results.trace import SETTINGS, artifacts_of, store_of
from ray_ltdd.yaml_files import read_yaml


def real_images(folder: Path, n_per_class: int) -> list[torch.Tensor]:
    """Return the first training images of every class of the run in `folder`, K tensors, uint8 [N, C, H, W].

    Args:
        folder: of a run that has result rows.
        n_per_class: images of each class; fewer where the class has no more.

    Raises:
        InputError: the split is not in the run's store, or the decoded dataset not where the run's settings say.
    """
    split = _split(folder)
    prepared = _prepared(folder, split.manifest["upstream"]["data"])
    return first_of_each_class(prepared, split.tensors("train_index")["train_index"].numpy(), n_per_class)


def first_of_each_class(prepared: PreparedDataset, train_index_N: np.ndarray, n_per_class: int) -> list[torch.Tensor]:
    """Return the first images of every class among those of a split, K tensors, uint8 [N, C, H, W].

    Args:
        prepared: the decoded dataset.
        train_index_N: the split's positions in `prepared.train`, int64.
        n_per_class: images of each class; fewer where the class has no more.
    """
    label_N = prepared.train.label_N[train_index_N]
    chosen = [train_index_N[label_N == k][:n_per_class] for k in range(len(prepared.class_names))]
    return [torch.from_numpy(np.asarray(prepared.train.image_NCHW[index])) for index in chosen]


def _split(folder: Path) -> Artifact:
    wanted = set(read_rows(folder / "results")["split_fingerprint"].to_pylist())
    found = next((artifact for artifact in artifacts_of(store_of(folder), "split") if artifact.record["fingerprint"] in wanted), None)
    if found is None:
        raise InputError(f"the store of {folder} does not hold its split: give the store the run was made with.")
    return found


def _prepared(folder: Path, fingerprint: str) -> PreparedDataset:
    data = read_yaml(folder / SETTINGS).get("data") or {} if (folder / SETTINGS).exists() else {}
    root = Path(data.get("root") or "").expanduser()
    for record in sorted(root.glob(f"{data.get('dataset')}-*/{RECORD}")):
        if is_whole(record.parent) and json.loads(record.read_text())["fingerprint"] == fingerprint:
            return open_prepared(record.parent.absolute())
    raise InputError(f"the dataset of {folder} is not in data.root={root}: prepare it again (ray-ltdd data prepare).")
