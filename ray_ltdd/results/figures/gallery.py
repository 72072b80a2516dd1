"""Images of every class side by side, in as many panels as there are kinds: initial, recovered, real.

Legend: N images, C H W.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_ltdd.errors import InputError
from ray_ltdd.results.figures.style import PAGE_WIDTH, new_figure, styled

MOST_ROWS = 20
MOST_COLUMNS = 10


@styled
def gallery(
    panels: Mapping[str, Sequence[torch.Tensor]],
    class_names: Sequence[str],
    count_K: Sequence[int],
    title: str,
    most_rows: int = MOST_ROWS,
    most_columns: int = MOST_COLUMNS,
) -> Figure:
    """Draw images, one row a class (evenly spaced from head to tail if there are too many), one panel a kind.

    Args:
        panels: title of the panel -> K tensors, uint8 [N, C, H, W] with the class's images of that kind; where a class has fewer than are
            shown, places stay empty.
        class_names: K names.
        count_K: training images of each class, written beside its name.
        title: above the picture.
        most_rows: classes shown at most.
        most_columns: images of a class shown at most.

    Raises:
        InputError: a panel has not one tensor a class, or there is no image at all.
    """
    for name, of_class in panels.items():
        if len(of_class) != len(class_names):
            raise InputError(f"the panel {name!r} has images of {len(of_class)} classes, but there are {len(class_names)} class names.")
    if not any(len(images) for of_class in panels.values() for images in of_class):
        raise InputError("there is nothing to draw: no panel has an image.")
    rows = np.unique(np.linspace(0, len(class_names) - 1, min(len(class_names), most_rows)).round().astype(int))
    columns = {name: min(max(len(of_class[k]) for k in rows), most_columns) for name, of_class in panels.items()}
    shares = [max(n, 2) for n in columns.values()]
    figure = new_figure(0.7 + 0.38 * len(rows), max(PAGE_WIDTH, 1.6 + 0.38 * sum(shares)))
    axes_of = figure.subplots(1, len(panels), squeeze=False, width_ratios=shares)[0]
    for axes, (name, of_class) in zip(axes_of, panels.items(), strict=True):
        pitch = _show(axes, [of_class[k] for k in rows], columns[name])
        axes.set_title(name)
    _name_rows(axes_of[0], [f"{class_names[k]} ({count_K[k]:,})" for k in rows], pitch)
    figure.suptitle(title)
    return figure


def _show(axes: Axes, rows: Sequence[torch.Tensor], n_columns: int) -> int:
    channels, height, width = next(images for images in rows if len(images)).shape[1:]
    # at 32 pixels one white pixel parts the tiles, at 224 several are needed
    gap = max(1, height // 24)
    sheet = np.full((len(rows) * (height + gap), n_columns * (width + gap), channels), 255, np.uint8)
    for r, images in enumerate(rows):
        for c, image_CHW in enumerate(images[:n_columns]):
            top, left = r * (height + gap), c * (width + gap)
            sheet[top : top + height, left : left + width] = image_CHW.numpy().transpose(1, 2, 0)
    axes.imshow(sheet[:-gap, :-gap], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return int(height + gap)


def _name_rows(axes: Axes, names: Sequence[str], pitch: int) -> None:
    # class names are the user's: two dollars would begin a formula
    axes.set_yticks((np.arange(len(names)) + 0.5) * pitch - 0.5, list(names), parse_math=False)
    axes.tick_params(length=0)
