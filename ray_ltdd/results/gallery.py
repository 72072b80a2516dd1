"""A picture of distilled images: one row a class; the crops they started from, what recovery made of them, and training images as they are.

Legend: N images, C H W.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ray_ltdd.results.figures.gallery import gallery
from ray_ltdd.results.image_sets import FINAL, INITIAL, REAL
from ray_ltdd.storage import atomic_file, readable_os_error

TITLES = {INITIAL: "initial images", FINAL: "distilled", REAL: "real images"}


def draw_gallery(path: Path, panels: Mapping[str, Sequence[torch.Tensor]], class_names: Sequence[str], count_K: Sequence[int], title: str) -> None:
    """Draw up to 20 classes (evenly spaced from head to tail) and 10 images of each as a PNG.

    Args:
        path: of the PNG; replaced whole.
        panels: as in `ImageSets`: key of `TITLES` -> K tensors, uint8 [N, C, H, W].
        class_names: K names.
        count_K: training images of each class.
        title: above the picture.

    Raises:
        InputError: the file cannot be written.
    """
    figure = gallery({TITLES[name]: of_class for name, of_class in panels.items()}, class_names, count_K, title)
    with readable_os_error(path), atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
