"""Result rows made up for tests, with settings as real runs have them."""

import hashlib
import json
from copy import deepcopy

import numpy as np

from ray_ltdd.config import ExperimentConfig
from ray_ltdd.results.rows import SCHEMA, append_rows

BASE = ExperimentConfig.model_validate({"data": {"dataset": "cifar10_lt"}, "experts": {"epochs": 200}, "recover": {"steps": 75}}).model_dump(
    mode="json"
)


def settings_with(**changes):
    """The default settings with some changed: section__name=value."""
    settings = deepcopy(BASE)
    for name, value in changes.items():
        *sections, last = name.split("__")
        place = settings
        for section in sections:
            place = place[section]
        place[last] = value
    return settings


def row(method="distilled", number=0, top1=0.5, settings=BASE, n_tested=1000, **more):
    """One row; its per-class accuracies are shares of `n_tested` images whose mean is near top1."""
    factor = settings["split"]["imbalance_factor"]
    counts = [int(5000 * factor ** (-c / 9) + 1e-9) for c in range(10)]
    hits = np.clip(np.round(n_tested * (top1 + np.linspace(0.2, -0.2, 10))), 0, n_tested) + (np.arange(10) % 2)
    text = json.dumps(settings)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    known = {
        "schema_version": 1,
        "run": settings["name"],
        "fingerprint": digest,
        "artifact": f"{method}-{number}-{digest}",
        "benchmark": settings["data"]["dataset"],
        "split": f"{settings['data']['dataset']}-exponential-if{factor:g}-main-s0",
        "split_fingerprint": f"split-{factor:g}-{settings['split']['seed']}",
        "imbalance_factor": counts[0] / counts[-1],
        "images_per_class": settings["distill"]["images_per_class"],
        "method": method,
        "network": "ConvNet-3",
        "number": number,
        "labels": settings["relabel"]["labels"] if method == "distilled" else "one-hot",
        "part": settings["evaluate"]["part"],
        "top1": top1,
        "many": 0.6,
        "medium": None,
        "few": 0.3,
        "per_class": (np.minimum(hits, n_tested) / n_tested).tolist(),
        "count_per_class": counts,
        "image_bytes": 250_000 if method == "distilled" else None,
        "label_bytes": 2_000 if method == "distilled" else None,
        "stage_seconds": [("Recover", 1.5)],
        "settings": text,
    }
    return dict.fromkeys(SCHEMA.names) | known | more


def write(folder, *rows):
    """Write rows to FOLDER/results."""
    return append_rows(folder / "results", list(rows))
