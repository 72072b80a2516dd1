"""Crops and mixes, one output pixel at a time.

Legend: C channels, H W rows and columns, S output size. A box is (left, top, width, height) as fractions of the image.
"""

import math

import numpy as np


def bilinear_crop(image_CHW, box, size):
    """Sample the box bilinearly at the centres of size x size cells; positions beyond the outermost pixel centres are moved to them."""
    channels, rows, columns = image_CHW.shape
    left, top, width, height = box
    out_CSS = np.zeros((channels, size, size))
    for i in range(size):
        for j in range(size):
            y = min(max((top + height * (i + 0.5) / size) * rows - 0.5, 0.0), rows - 1.0)
            x = min(max((left + width * (j + 0.5) / size) * columns - 0.5, 0.0), columns - 1.0)
            y0, x0 = min(math.floor(y), rows - 2), min(math.floor(x), columns - 2)
            fy, fx = y - y0, x - x0
            for c in range(channels):
                upper = (1 - fx) * image_CHW[c, y0, x0] + fx * image_CHW[c, y0, x0 + 1]
                lower = (1 - fx) * image_CHW[c, y0 + 1, x0] + fx * image_CHW[c, y0 + 1, x0 + 1]
                out_CSS[c, i, j] = (1 - fy) * upper + fy * lower
    return out_CSS


def averaging_crop(image_CHW, box, size):
    """As `bilinear_crop` for boxes inside the image, but a box that shrinks is averaged with a triangle as wide as two output pixels."""
    channels, rows, columns = image_CHW.shape
    left, top, width, height = box
    out_CSS = np.zeros((channels, size, size))
    for i in range(size):
        for j in range(size):
            weight_y = _triangle(top, height, rows, i, size)
            weight_x = _triangle(left, width, columns, j, size)
            for c in range(channels):
                out_CSS[c, i, j] = sum(
                    wy * wx * image_CHW[c, y, x] for y, wy in enumerate(weight_y) for x, wx in enumerate(weight_x) if wy > 0 and wx > 0
                )
    return out_CSS


def _triangle(start, length, n_in, index, n_out):
    step = length * n_in / n_out
    centre = start * n_in + (index + 0.5) * step - 0.5
    weights = [max(0.0, 1 - abs(pixel - centre) / max(step, 1.0)) for pixel in range(n_in)]
    return [weight / sum(weights) for weight in weights]


def shifted(image_CHW, right, down):
    """The window moved right and down by whole pixels over an image with black around it."""
    _, rows, columns = image_CHW.shape
    out_CHW = np.zeros_like(image_CHW)
    for i in range(rows):
        for j in range(columns):
            if 0 <= i + down < rows and 0 <= j + right < columns:
                out_CHW[:, i, j] = image_CHW[:, i + down, j + right]
    return out_CHW
