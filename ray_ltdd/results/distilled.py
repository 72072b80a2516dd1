"""The distilled dataset as files anybody can read: Parquet in the Hugging Face hub's schema, a card, and the labels a student needs.

Legend: N images, K classes, C H W.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import Dataset

from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.storage import atomic_file, readable_os_error

FILE = "train.parquet"
CARD = "README.md"


def write_distilled(
    folder: Path,
    image_NCHW: torch.Tensor,
    label_N: torch.Tensor,
    logit_NK: torch.Tensor,
    class_names: Sequence[str],
    card: str,
) -> None:
    """Write the images (PNG), labels and logits, and the card.

    Args:
        folder: made when missing; files in it are replaced one by one, each whole.
        image_NCHW: uint8, one or three channels.
        label_N: int64.
        logit_NK: fp16 soft labels of the images as they are.
        class_names: K names.
        card: Markdown, written as README.md.

    Raises:
        InputError: the folder cannot be written.
    """
    pngs = [_png(image) for image in image_NCHW.numpy()]
    struct = pa.array(
        [{"bytes": png, "path": f"{i:06d}.png"} for i, png in enumerate(pngs)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    logits = pa.array(list(logit_NK.numpy().astype(np.float16)), pa.list_(pa.float16()))
    table = pa.table({"image": struct, "label": pa.array(label_N.numpy(), pa.int64()), "logits": logits})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": _features(class_names)}})})
    with readable_os_error(folder):
        with atomic_file(folder / FILE) as temporary:
            pq.write_table(table, temporary, write_page_checksum=True)
        with atomic_file(folder / CARD) as temporary:
            temporary.write_text(card)


def write_labels(folder: Path, files: Mapping[str, tuple[Mapping[str, torch.Tensor], Mapping[str, str]]]) -> None:
    """Write what a student's soft labels need: safetensors files by name, each with its tensors and, as JSON in its header, a description.

    Raises:
        InputError: the folder cannot be written.
    """
    with readable_os_error(folder):
        for name, (tensors, description) in files.items():
            with atomic_file(folder / name) as temporary:
                # one entry, for safetensors writes several in an order of chance, and the same run must leave the same bytes
                save_file(dict(tensors), temporary, {"description": json.dumps(dict(description))})


def png_bytes(image_NCHW: torch.Tensor) -> int:
    """Bytes of the uint8 images as PNG files."""
    return sum(len(_png(image)) for image in image_NCHW.numpy())


class DistilledDataset(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """A distilled dataset in memory. Item i is (image [C, H, W] float32 in [0, 1], label int64, soft label [K] float32 logits).

    Attributes:
        image_NCHW: uint8.
        label_N: int64.
        logit_NK: float32.
        class_names: K names.
    """

    def __init__(self, image_NCHW: torch.Tensor, label_N: torch.Tensor, logit_NK: torch.Tensor, class_names: tuple[str, ...]) -> None:
        self.image_NCHW = image_NCHW
        self.label_N = label_N
        self.logit_NK = logit_NK
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.label_N)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.image_NCHW[index].float() / 255, self.label_N[index], self.logit_NK[index]


def find_distilled(path: str | Path) -> Path:
    """Return the Parquet file of `RUN/distilled`, of a run's folder, or the one `path` names.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    candidates = [path, path / FILE, path / "distilled" / FILE]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise InputError(f"there is no distilled dataset at {path}: give a run's folder (it holds distilled/{FILE}).")
    return file


def load_distilled(path: str | Path) -> DistilledDataset:
    """Load `RUN/distilled`, a run's folder, or a distilled Parquet file.

    Raises:
        InputError: there is none, or it is damaged.
    """
    file = find_distilled(path)
    try:
        table = pq.read_table(file, page_checksum_verification=True)
        images = [np.asarray(Image.open(io.BytesIO(entry["bytes"]))) for entry in table["image"].to_pylist()]
        names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        logit_NK = torch.tensor(np.array(table["logits"].to_pylist(), np.float32))
        label_N = torch.tensor(table["label"].to_pylist())
        stacked = np.stack([image[None] if image.ndim == 2 else image.transpose(2, 0, 1) for image in images])
    # PIL reports a broken PNG as a SyntaxError, Arrow and numpy theirs as ValueErrors
    except (ValueError, OSError, KeyError, TypeError, SyntaxError) as error:
        raise InputError(f"{file} is no distilled dataset or is damaged ({on_one_line(error)}): distil it again.") from error
    return DistilledDataset(torch.from_numpy(stacked), label_N, logit_NK, tuple(names))


@dataclass(frozen=True)
class CardFacts:
    """What the card states."""

    title: str
    fingerprint: str
    split: str
    images_per_class: int
    n_classes: int
    image_bytes: int
    label_bytes: int
    labels: str
    accuracies: Sequence[tuple[str, str]]
    settings: Mapping[str, Any]


def write_card(facts: CardFacts) -> str:
    """Return the dataset card as Markdown with the hub's header."""
    n = facts.images_per_class * facts.n_classes
    size = "n<1K" if n < 1000 else "1K<n<10K" if n < 10_000 else "10K<n<100K"
    kept = {
        "one": "one logit vector per image",
        "stored": "logits of stored views",
        "online": "the teacher, which labels every view",
    }[facts.labels]
    lines = [
        "---",
        "task_categories: [image-classification]",
        f"size_categories: ['{size}']",
        "tags: [dataset-distillation, long-tailed]",
        "---",
        f"# {facts.title}",
        "",
        f"{n} synthetic images, {facts.images_per_class} for each of {facts.n_classes} classes, distilled from the long-tailed split "
        f"`{facts.split}` (data with the fingerprint {facts.fingerprint[:12]}).",
        "Columns: `image` (PNG), `label`, `logits` (the teacher's, the mean where there are several, fp16, of the image as it is).",
        "",
        f"Bytes: {facts.image_bytes:,} of images; {facts.label_bytes:,} of labels as used below ({kept}).",
        "",
        "| trained on | top-1 |",
        "|---|---|",
        *[f"| {name} | {value} |" for name, value in facts.accuracies],
        "",
        "All resolved settings:",
        "```json",
        json.dumps(facts.settings, indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)


def _features(class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
        "logits": {"feature": {"dtype": "float16", "_type": "Value"}, "_type": "Sequence"},
    }


def _png(image_CHW: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pixels = image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
