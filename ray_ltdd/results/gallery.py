"""A picture of distilled images: one row a class, the real crops they started from on the left, what recovery made of them on the right.

Legend: N images, C H W.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from ray_ltdd.results.figures.gallery import gallery
from ray_ltdd.storage import atomic_file, readable_os_error


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
    panels = {"initial images": by_class(initial_NCHW, len(class_names)), "distilled": by_class(distilled_NCHW, len(class_names))}
    figure = gallery(panels, class_names, count_K, title)
    with readable_os_error(path), atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def by_class(image_NCHW: torch.Tensor, n_classes: int) -> list[torch.Tensor]:
    """Cut images that lie class by class, equally many of each, into one tensor a class."""
    return list(image_NCHW.unflatten(0, (n_classes, -1)))
