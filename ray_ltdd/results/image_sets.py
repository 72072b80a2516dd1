"""The initial, distilled and real images of a run, class by class: from the run, its store and its dataset, or from one small file of all.

Legend: N images, K classes, C H W.
"""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.results.distilled import FILE as DISTILLED
from ray_ltdd.results.distilled import load_distilled
from ray_ltdd.results.real_images import real_images
from ray_ltdd.results.trace import trace_images
from ray_ltdd.stages.recover import round_pixels
from ray_ltdd.storage import atomic_file, readable_os_error

FILE = "images.parquet"
INITIAL = "initial"
FINAL = "distilled"
REAL = "real"

_SCHEMA = pa.schema(
    [
        pa.field("panel", pa.string(), metadata={"meaning": "initial, distilled or real"}),
        pa.field("label", pa.int64()),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), metadata={"meaning": "PNG"}),
    ]
)


@dataclass(frozen=True)
class ImageSets:
    """Images of one run.

    Attributes:
        panels: `initial`, `distilled` and `real`, in this order, the first and the last where they are known -> K tensors, uint8 [N, C, H, W], one a
            class. `real` are the first training images of each class, as many as distilled ones or all there are.
        class_names: K names.
    """

    panels: Mapping[str, Sequence[torch.Tensor]]
    class_names: tuple[str, ...]


def load_image_sets(folder: str | Path) -> ImageSets:
    """Load the images of the run in `folder`.

    They come from FOLDER/images.parquet where `write_image_sets` left one; else the distilled ones from FOLDER/distilled, the initial ones from the
    run's store, and the real ones from its decoded dataset through the split in the store. What is gone is left out.

    Raises:
        InputError: the folder holds neither, or what it holds is damaged.
    """
    folder = Path(folder)
    if (folder / FILE).exists():
        return _read(folder / FILE)
    distilled = load_distilled(folder)
    final = [distilled.image_NCHW[distilled.label_N == k] for k in range(len(distilled.class_names))]
    panels: dict[str, Sequence[torch.Tensor]] = {FINAL: final}
    with suppress(InputError):
        panels = {INITIAL: initial_images(folder), **panels}
    with suppress(InputError):
        panels[REAL] = real_images(folder, max(map(len, final)))
    return ImageSets(panels, distilled.class_names)


def initial_images(folder: Path) -> list[torch.Tensor]:
    """Return the images the run in `folder` started from, K tensors, uint8 [N, C, H, W].

    Raises:
        InputError: the run or its store does not hold them.
    """
    trace = trace_images(folder)
    by_class: dict[int, torch.Tensor] = {}
    for unit, artifact in zip(trace.units, trace.initial, strict=True):
        by_class |= dict(zip(unit, round_pixels(artifact.tensors("image")["image"]).unflatten(0, (len(unit), -1)), strict=True))
    return [by_class[label] for label in sorted(by_class)]


def class_names(folder: str | Path) -> tuple[str, ...]:
    """Return the names of the classes of the run in `folder`, in class order, without decoding an image.

    Raises:
        InputError: the folder holds neither its distilled images nor an `images.parquet`.
    """
    folder = Path(folder)
    if (folder / FILE).exists():
        return _names(folder / FILE)
    path = folder / "distilled" / DISTILLED
    if not path.exists():
        raise InputError(f"{folder} does not tell the names of its classes: it has neither distilled/{DISTILLED} nor {FILE}.")
    return tuple(json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]["label"]["names"])


def write_image_sets(sets: ImageSets, path: Path) -> None:
    """Write images as one Parquet file of PNGs, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    rows = [
        {"panel": name, "label": label, "image": {"bytes": png(image), "path": f"{name}-{label}-{i}.png"}}
        for name, of_class in sets.panels.items()
        for label, images in enumerate(of_class)
        for i, image in enumerate(images.numpy())
    ]
    table = pa.Table.from_pylist(rows, _SCHEMA.with_metadata({"class_names": json.dumps(sets.class_names)}))
    with readable_os_error(path.parent), atomic_file(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def png(image_CHW: np.ndarray) -> bytes:
    """Return a uint8 image of 1 (grey), 3 (RGB) or 4 (RGBA) channels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _read(path: Path) -> ImageSets:
    try:
        table = pq.read_table(path, schema=_SCHEMA, page_checksum_verification=True)
        names = _names(path)
        found: dict[str, list[list[np.ndarray]]] = {}
        for row in table.to_pylist():
            pixels = np.array(Image.open(io.BytesIO(row["image"]["bytes"])))
            of_class = found.setdefault(row["panel"], [[] for _ in names])
            of_class[row["label"]].append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
        return ImageSets({name: [torch.from_numpy(np.stack(images)) for images in of_class] for name, of_class in found.items()}, names)
    # PIL reports a broken PNG as a SyntaxError, Arrow and numpy theirs as ValueErrors
    except (ValueError, OSError, IndexError, TypeError, SyntaxError) as error:
        raise InputError(
            f"the images {path} are damaged ({on_one_line(error)}): remove the file; they are then read from the run's store."
        ) from error


def _names(path: Path) -> tuple[str, ...]:
    metadata = pq.read_schema(path).metadata or {}
    if b"class_names" not in metadata:
        raise InputError(f"{path} names no classes: remove the file; images are then read from the run and its store.")
    return tuple(json.loads(metadata[b"class_names"]))
