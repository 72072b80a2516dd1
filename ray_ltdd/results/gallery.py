"""A picture of distilled images: one row a class, the real crops they started from on the left, what recovery made of them on the right.

Legend: N images, C H W.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ray_ltdd.storage import atomic_file, readable_os_error

MOST_ROWS = 20
MOST_COLUMNS = 10


def draw_gallery(
    path: Path,
    initial_NCHW: torch.Tensor,
    distilled_NCHW: torch.Tensor,
    class_names: Sequence[str],
    count_K: Sequence[int],
    title: str,
) -> None:
    """Draw up to 20 classes (evenly spaced from head to tail) and 10 images of each as a PNG.

    Args:
        path: of the PNG; replaced whole.
        initial_NCHW, distilled_NCHW: uint8, class by class, equally many of each.
        class_names: K names.
        count_K: training images of each class.
        title: above the picture.

    Raises:
        InputError: the file cannot be written.
    """
    n_classes = len(class_names)
    rows = np.unique(np.linspace(0, n_classes - 1, min(n_classes, MOST_ROWS)).round().astype(int))
    per_class = len(initial_NCHW) // n_classes
    columns = min(per_class, MOST_COLUMNS)
    figure = Figure(figsize=(max(7.0, 2.2 + 1.1 * columns), 1.0 + 0.55 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, images, name in ((left, initial_NCHW, "initial images"), (right, distilled_NCHW, "distilled")):
        mosaic = _mosaic(images.numpy(), rows, per_class, columns)
        axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    _name_rows(left, rows, class_names, count_K, images.shape[-1] + 1)
    figure.suptitle(title, fontsize=10)
    with readable_os_error(path), atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _mosaic(image_NCHW: np.ndarray, rows: np.ndarray, per_class: int, columns: int) -> np.ndarray:
    size = image_NCHW.shape[-1]
    sheet = np.full((len(rows) * (size + 1), columns * (size + 1), image_NCHW.shape[1]), 255, np.uint8)
    for r, label in enumerate(rows):
        for c in range(columns):
            tile = image_NCHW[label * per_class + c].transpose(1, 2, 0)
            sheet[r * (size + 1) : r * (size + 1) + size, c * (size + 1) : c * (size + 1) + size] = tile
    return sheet


def _name_rows(axes: Axes, rows: np.ndarray, class_names: Sequence[str], count_K: Sequence[int], pitch: int) -> None:
    axes.set_yticks((np.arange(len(rows)) + 0.5) * pitch - 0.5)
    axes.set_yticklabels([f"{class_names[label]} ({count_K[label]})" for label in rows], fontsize=8)
    axes.tick_params(length=0)
