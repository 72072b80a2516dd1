"""Class statistics of a run's training, initial and distilled images, all of whole images seen by the run's observer.

Recovery looks at random crops; its own moments are those of crops and cannot be compared with the training set's, which were taken of whole images.
Here the initial and the distilled images are measured again, as calibration measures the training set. That takes forward passes of the distilled
set alone: seconds on a CPU.

Legend: K classes, F channels of a layer, N images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ray_ltdd.artifacts import Artifact
from ray_ltdd.compute import Backend, ComputeConfig, resolve_backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import Expert, build_expert
from ray_ltdd.models.monitor import MonitorKind
from ray_ltdd.results.figures.statistics_gap import layer_gaps, whole_set
from ray_ltdd.results.image_sets import initial_images
from ray_ltdd.results.trace import Trace, trace_images
from ray_ltdd.stages.calibrate import MomentsConfig, class_moments
from ray_ltdd.statistics.observe import observing
from ray_ltdd.statistics.schedules import MomentumConfig
from ray_ltdd.statistics.targets import ClassTensors
from ray_ltdd.storage import atomic_file, readable_os_error

FILE = "moments.parquet"
REAL, INITIAL, FINAL = "training images", "initial images", "distilled images"
_BATCH = 256

_SCHEMA = pa.schema(
    [
        pa.field("images", pa.string(), metadata={"meaning": "whose: training, initial or distilled images"}),
        pa.field("layer", pa.string(), metadata={"meaning": "whose input; layers are in forward order"}),
        pa.field("label", pa.int64()),
        pa.field("count", pa.int64(), metadata={"meaning": "images of the class"}),
        pa.field("mean", pa.list_(pa.float32()), metadata={"meaning": "of every channel"}),
        pa.field("var", pa.list_(pa.float32()), metadata={"meaning": "over images and pixels, of every channel"}),
    ]
)


@dataclass(frozen=True)
class ClassStatistics:
    """Class moments of whole images, `LAYER/mean` and `LAYER/var` [K, F] and `count` [K], in class order.

    Attributes:
        moments: `REAL`, `INITIAL`, `FINAL` -> moments.
        layers: names in forward order.
    """

    moments: Mapping[str, ClassTensors]
    layers: tuple[str, ...]


def load_statistics(folder: str | Path) -> ClassStatistics:
    """Load the statistics of the run in `folder`: from FOLDER/moments.parquet where there is one, else measured now.

    Raises:
        InputError: there is no such file and the run or its store does not hold what is measured, or the file is damaged.
    """
    folder = Path(folder)
    return _read(folder / FILE) if (folder / FILE).exists() else measure(folder)


def measure(folder: Path, compute: ComputeConfig | None = None) -> ClassStatistics:
    """Measure the statistics of the run in `folder` with its observer.

    Args:
        folder: of a finished run whose store is there.
        compute: device and precision; None: as a run chooses them. Nothing is compiled.

    Raises:
        InputError: the run or its store does not hold what is measured.
    """
    trace = trace_images(folder)
    backend = resolve_backend((compute or ComputeConfig()).model_copy(update={"compile": "off"}))
    real, layers = _real(trace)
    tensors = trace.images.tensors()
    n_classes = len(real["count"])
    final = [tensors["image"][tensors["label"] == k] for k in range(n_classes)]
    observer = _observer(trace.observer, tensors["image"], n_classes).to(backend.device)
    kind: MonitorKind = trace.moments[0].manifest["settings"]["moments"]["layers"]
    found = {name: _moments_of(images, observer, kind, backend) for name, images in ((INITIAL, initial_images(folder)), (FINAL, final))}
    return ClassStatistics({REAL: real, **found}, layers)


def write_statistics(statistics: ClassStatistics, path: Path) -> None:
    """Write statistics as one Parquet file (float32), a row for each class and layer; whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    rows = [
        {
            "images": name,
            "layer": layer,
            "label": label,
            "count": int(moments["count"][label]),
            **{part: moments[f"{layer}/{part}"][label].float().numpy() for part in ("mean", "var")},
        }
        for name, moments in statistics.moments.items()
        for layer in statistics.layers
        for label in range(len(moments["count"]))
    ]
    with readable_os_error(path.parent), atomic_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), temporary, compression="zstd", write_page_checksum=True)


def class_gaps(statistics: ClassStatistics) -> dict[str, pd.DataFrame]:
    """Return how far each class's initial and distilled images are from its training images, layer by layer; see `layer_gaps`."""
    return {name: layer_gaps(statistics.moments[name], statistics.moments[REAL], statistics.layers) for name in (INITIAL, FINAL)}


def whole_set_gaps(statistics: ClassStatistics) -> dict[str, pd.DataFrame]:
    """Return how far whole sets are from the class-balanced training set (Eq. 9, variance of the mixture), layer by layer; see `layer_gaps`.

    They are the long-tailed training set as it is (what a network's running mean sees: before calibration), the initial and the distilled images.
    """
    real = statistics.moments[REAL]
    balanced = whole_set(real, "uniform")
    sets = {"training images, long-tailed": whole_set(real, "sample")}
    sets |= {name: whole_set(statistics.moments[name], "uniform") for name in (INITIAL, FINAL)}
    return {name: layer_gaps(moments, balanced, statistics.layers) for name, moments in sets.items()}


def _real(trace: Trace) -> tuple[ClassTensors, tuple[str, ...]]:
    """The training set's moments as calibration left them, all units in class order."""
    n_classes = sum(map(len, trace.units))
    joined: ClassTensors = {}
    for unit, artifact in zip(trace.units, trace.moments, strict=True):
        for name, value_K in artifact.tensors().items():
            if name not in joined:
                joined[name] = value_K.new_zeros((n_classes, *value_K.shape[1:]))
            joined[name][list(unit)] = value_K
    return joined, tuple(trace.moments[0].record["layers"])


def _observer(artifact: Artifact, image_NCHW: torch.Tensor, n_classes: int) -> Expert:
    # the constants that normalise pixels are among its weights: what is given here is replaced
    neutral_C = torch.ones(image_NCHW.shape[1])
    model = ModelConfig.model_validate(artifact.manifest["settings"]["model"])
    expert = build_expert(model, image_NCHW.shape[-1], image_NCHW.shape[1], n_classes, neutral_C, neutral_C, 0)
    expert.load_state_dict(artifact.tensors())
    return expert.eval().requires_grad_(False)


def _moments_of(images: Sequence[torch.Tensor], observer: Expert, kind: MonitorKind, backend: Backend) -> ClassTensors:
    label_N = np.concatenate([np.full(len(of_class), k) for k, of_class in enumerate(images)])
    bank = ImageBank(torch.cat(list(images)).numpy(), label_N, np.arange(len(label_N)), backend.device)
    settings = MomentsConfig(layers=kind, momentum=MomentumConfig(schedule="cumulative"), batch_size=_BATCH)
    with observing(observer, kind, backend) as observe:
        found = class_moments(settings, observe, bank, range(len(images)), backend, seed=0)
    return {name: tensor.cpu() for name, tensor in found.tensors.items()}


def _read(path: Path) -> ClassStatistics:
    try:
        frame = pq.read_table(path, schema=_SCHEMA, page_checksum_verification=True).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"the statistics {path} are damaged ({on_one_line(error)}): remove the file; they are then measured again.") from error
    moments: dict[str, ClassTensors] = {}
    for (name, layer), group in frame.sort_values("label", kind="stable").groupby(["images", "layer"], sort=False):
        own = moments.setdefault(str(name), {"count": torch.tensor(group["count"].to_numpy())})
        own |= {f"{layer}/{part}": torch.tensor(np.stack(group[part].to_list())).double() for part in ("mean", "var")}
    return ClassStatistics(moments, tuple(frame["layer"].unique()))
