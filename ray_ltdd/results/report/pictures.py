"""Figures and images as data URIs: the page loads nothing.

Legend: N images, K classes, C H W.
"""

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from ray_ltdd.results.figures.style import legend_below, styled
from ray_ltdd.results.image_sets import ImageSets, png

MOST_CLASSES = 20
MOST_IMAGES = 10
MOST_PIXELS = 64
"""Larger images are shown reduced to this side: 400 of 224 pixels would make a page of 40 MB."""

_NARROW_INCHES = 4.1
_LINE_INCHES = 0.17
_LINE_LETTERS = 44
_AXES_LETTERS = 32


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        wide: SVG as a data URI.
        narrow: the same drawing laid out for a phone; None where panels lie side by side, which a phone has no room for: there the wide one scrolls.
        text: what it shows, for those who cannot see it.
    """

    wide: str
    narrow: str | None
    text: str


@dataclass(frozen=True)
class Strip:
    """Images of one class side by side, as one PNG in a data URI; `n` of them, of `of` there are."""

    panel: str
    uri: str
    n: int
    of: int


@dataclass(frozen=True)
class GalleryRow:
    """A class: its name, its training images (None: not known), one strip a panel."""

    name: str
    count: int | None
    strips: tuple[Strip, ...]


def picture(figure: Figure, text: str) -> Picture:
    """Write a figure for both widths; it may be left laid out for the narrow one.

    Args:
        figure: on any canvas.
        text: what it shows.
    """
    wide = _svg(figure)
    n_columns = len({round(axes.get_position().x0, 2) for axes in figure.axes})
    return Picture(wide, _svg(_narrowed(figure)) if n_columns == 1 else None, text)


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes of a MIME type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def gallery_rows(images: ImageSets, count_K: Sequence[int] | None) -> list[GalleryRow]:
    """Return up to 20 classes, evenly spaced from the first to the last, with up to 10 images of each panel.

    Args:
        images: of the run.
        count_K: training images of each class, where they are known.
    """
    n_classes = len(images.class_names)
    shown = np.unique(np.linspace(0, n_classes - 1, min(n_classes, MOST_CLASSES)).round().astype(int))
    places = {panel: min(max(len(of_class[k]) for k in shown), MOST_IMAGES) for panel, of_class in images.panels.items()}
    return [
        GalleryRow(
            images.class_names[k],
            int(count_K[k]) if count_K is not None else None,
            tuple(_strip(panel, of_class[k], places[panel]) for panel, of_class in images.panels.items() if len(of_class[k])),
        )
        for k in shown
    ]


def _strip(panel: str, image_NCHW: torch.Tensor, n_places: int) -> Strip:
    shown = [_reduced(image) for image in image_NCHW[:MOST_IMAGES].numpy()]
    height, width = shown[0].shape[1:]
    gap = max(1, height // 16)
    # transparent between the images and where a class has fewer than the others, so that the page's own background shows, light or dark
    strip = np.zeros((4, height, n_places * (width + gap) - gap), np.uint8)
    for i, image_CHW in enumerate(shown):
        left = i * (width + gap)
        strip[:3, :, left : left + width] = image_CHW
        strip[3, :, left : left + width] = 255
    return Strip(panel, data_uri(png(strip), "image/png"), len(shown), len(image_NCHW))


def _reduced(image_CHW: np.ndarray) -> np.ndarray:
    if image_CHW.shape[1] <= MOST_PIXELS:
        return image_CHW
    pixels = Image.fromarray(image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)).resize(
        (MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS
    )
    return np.atleast_3d(np.asarray(pixels)).transpose(2, 0, 1)


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    # letters as paths: no font is asked for; a fixed salt and no date: the same run gives the same page
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "ray_ltdd"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return data_uri(buffer.getvalue(), "image/svg+xml")


@styled
def _narrowed(figure: Figure) -> Figure:
    """Lay the same drawing out for a phone: scaled down as it is, its letters would be too small."""
    width, height = (float(inches) for inches in figure.get_size_inches())
    if width <= _NARROW_INCHES:
        return figure
    title = figure.get_suptitle()
    figure.suptitle(textwrap.fill(title, _LINE_LETTERS))
    height += _LINE_INCHES * (len(title) // _LINE_LETTERS)
    for axes in figure.axes:
        axes.set_title(textwrap.fill(axes.get_title(), _AXES_LETTERS))
    legends = list(figure.legends)
    height += sum(_LINE_INCHES * (len(legend.get_texts()) - 1) for legend in legends)
    figure.set_size_inches(_NARROW_INCHES, height)
    if legends:
        legends[0].remove()
        legend_below(figure, next(axes for axes in figure.axes if axes.get_legend_handles_labels()[1]))
    return figure
