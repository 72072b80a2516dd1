"""The published accuracies, as data that ships with the package.

The numbers and their source stand in `published_top1.csv`, beside this file.
"""

from functools import cache
from importlib.resources import files

import pandas as pd

PAPER = "Cui et al., Rethinking Long-tailed Dataset Distillation, AAAI-26 (arXiv 2511.18858)"
METHOD = "RLDD"
RANDOM = "Random"

_NETWORKS = {
    "convnet3": "ConvNet-3",
    "convnet4": "ConvNet-4",
    "vgg11": "VGG-11",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "alexnet": "AlexNet",
}
_COLUMNS = {"imbalance_factor": "imbalance_factor", "ipc": "images_per_class", "top1_mean": "percent", "top1_std": "percent_deviation"}

CELL = ["benchmark", "imbalance_factor", "images_per_class", "network"]
"""The columns that say where in the tables a number stands; ours have them too."""


def published() -> pd.DataFrame:
    """Return the published top-1 accuracies, one row per number printed.

    Returns:
        columns `table` (int, 1 to 8), `benchmark`, `imbalance_factor` (float), `images_per_class` (int), `network` (usual name, as in our
        rows), `method`, `percent` and `percent_deviation` (float, of top-1 in percent; NaN where the paper gives none).
    """
    return _read().copy()


@cache
def _read() -> pd.DataFrame:
    with (files("ray_ltdd.results") / "published_top1.csv").open() as file:
        frame = pd.read_csv(file, comment="#").rename(columns=_COLUMNS)
    frame.insert(frame.columns.get_loc("method"), "network", frame.pop("student").map(_NETWORKS))  # type: ignore[arg-type]
    return frame.astype({"imbalance_factor": float, "percent": float, "percent_deviation": float})


def published_of(method: str = METHOD) -> pd.DataFrame:
    """Return one method's numbers, each cell once (some stand in two tables): columns `CELL`, `percent`, `percent_deviation`.

    Args:
        method: name in the paper's tables, such as `RLDD`, `Random`, `DAMED`.
    """
    frame = published()
    # of two tables with one cell the one that also states a deviation comes first
    of_method = frame[frame["method"] == method].sort_values("percent_deviation", kind="stable", key=pd.isna)
    return of_method.drop_duplicates(CELL)[[*CELL, "percent", "percent_deviation"]].sort_values(CELL, ignore_index=True)
