"""scikit-learn's handwritten digits: 1797 grey images of 8 x 8 pixels that come with the library, without a test part.

Shapes: N images, H W pixels.
"""

import numpy as np

from ray_ltdd.data.sources.base import ArrayPart, Contents


class DigitsSource:
    """The digits, their 17 grey levels spread over 0..255."""

    description = "scikit-learn's handwritten digits"

    def identity(self) -> dict[str, object]:
        """Return the name alone: the images never change."""
        return {"scikit-learn": "digits"}

    def load(self) -> Contents:
        """Return 10 classes and 1797 training images, uint8 `[N, 8, 8]`."""
        from sklearn.datasets import load_digits  # half a second that other datasets need not pay

        digits = load_digits()
        image_NHW = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        return Contents(tuple(map(str, range(10))), ArrayPart(digits.target.astype(np.int64), image_NHW), None)
