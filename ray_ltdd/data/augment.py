"""Whole-batch augmentation on the device: crops, flips, mixup, CutMix. Every image has its own draw; nothing loops over images.

A crop, a resize and a flip along one axis are one linear map of that axis, so a batch of them is two batched matrix products. That is differentiable,
gives the same bytes on every run (grid_sample's backward pass on a GPU does not) and averages when it shrinks.

Legend: N images, C channels, H W input rows and columns, S output size. A box is (left, top, width, height) as fractions of the image.
"""

import torch

RATIO_RANGE = (3 / 4, 4 / 3)
"""Aspect ratios of random resized crops, the range torchvision made customary."""


def draw_crop_boxes(n: int, scale: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """Draw boxes of random resized crops.

    Args:
        n: number of boxes.
        scale: smallest and largest area as a fraction of the image, 0 < scale <= 1.
        generator: its device is the boxes' device.

    Returns:
        float32 [n, 4], each box inside the image. A side that would be longer than the image is cut to it.
    """
    u = torch.rand(4, n, generator=generator, device=generator.device)
    area = scale[0] + (scale[1] - scale[0]) * u[0]
    low, high = torch.tensor(RATIO_RANGE).log().tolist()
    ratio = torch.exp(low + (high - low) * u[1])
    width = (area * ratio).sqrt().clamp(max=1.0)
    height = (area / ratio).sqrt().clamp(max=1.0)
    return torch.stack([(1 - width) * u[2], (1 - height) * u[3], width, height], dim=1)


def draw_shift_boxes(n: int, padding: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw boxes that shift by whole pixels, at most `padding` in each direction: a random crop of the zero-padded image. float32 [n, 4]."""
    shift = torch.randint(-padding, padding + 1, (n, 2), generator=generator, device=generator.device) / size
    return torch.cat([shift, torch.ones_like(shift)], dim=1)


def draw_flips(n: int, generator: torch.Generator) -> torch.Tensor:
    """Draw horizontal flips with probability 1/2, bool [n]."""
    return torch.rand(n, generator=generator, device=generator.device) < 0.5


def crop(image_NCHW: torch.Tensor, box_N4: torch.Tensor, flip_N: torch.Tensor, size: int) -> torch.Tensor:
    """Cut each image's box, resize it to size x size (bilinear, averaging when it shrinks), mirror it where asked.

    What lies outside the image is black; half a pixel across the border repeats the border.

    Args:
        image_NCHW: float, any range. Gradients flow to it.
        box_N4: boxes as fractions of the image.
        flip_N: bool, mirror left and right.
        size: rows and columns of the outcome.

    Returns:
        float [N, C, size, size].
    """
    row_NSH = _interpolation(box_N4[:, 1], box_N4[:, 3], image_NCHW.shape[2], size)
    column_NSW = _interpolation(box_N4[:, 0], box_N4[:, 2], image_NCHW.shape[3], size)
    column_NSW = torch.where(flip_N[:, None, None], column_NSW.flip(1), column_NSW)
    with torch.autocast(image_NCHW.device.type, enabled=False):
        wide = image_NCHW.float() @ column_NSW.transpose(1, 2)[:, None]
        return row_NSH[:, None] @ wide


def _interpolation(start_N: torch.Tensor, length_N: torch.Tensor, n_in: int, n_out: int) -> torch.Tensor:
    """The [N, n_out, n_in] matrices that resample the interval start..start+length (fractions) to n_out pixels by a triangle filter."""
    step_N = length_N * (n_in / n_out)
    out = torch.arange(n_out, device=start_N.device)
    centre_NS = start_N[:, None] * n_in + (out + 0.5) * step_N[:, None] - 0.5
    reach = step_N.clamp(min=1.0)[:, None, None]
    distance = (torch.arange(n_in, device=start_N.device) - centre_NS[:, :, None]).abs()
    weight = (1 - distance / reach).clamp(min=0)
    inside = (centre_NS > -1 + 1e-4) & (centre_NS < n_in - 1e-4)
    return weight / weight.sum(2, keepdim=True).clamp(min=1e-6) * inside[:, :, None]


def cutmix_masks(lambda_N: torch.Tensor, centre_2N: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """CutMix boxes of area 1 - lambda around given centres, clipped at the border.

    Args:
        lambda_N: share of the image itself before boxes are clipped, float [N].
        centre_2N: row and column of the boxes' centres, as fractions of the image.
        size: rows and columns of the image.

    Returns:
        mask, bool [N, 1, size, size], True where the *partner* shows; and lambda corrected for the clipped box, float [N] = the fraction of pixels
        that stay the image's own (pitfall: the uncorrected lambda names an area that is not there).
    """
    row_NH, column_NW = cutmix_spans(lambda_N, centre_2N, size)
    mask_N1HW = (row_NH[:, :, None] & column_NW[:, None, :])[:, None]
    return mask_N1HW, 1 - mask_N1HW.float().mean(dim=(1, 2, 3))


def cutmix_spans(lambda_N: torch.Tensor, centre_2N: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and columns of CutMix boxes of area 1 - lambda, clipped at the border: bool [N, size] each. N may stand for several dimensions.

    Args:
        lambda_N: share of the image itself before boxes are clipped.
        centre_2N: row and column of the boxes' centres, as fractions of the image.
        size: rows and columns of the image.
    """
    side = (1 - lambda_N).clamp(min=0).sqrt() * size
    centre = centre_2N * size
    low = (centre - side / 2).round().clamp(0, size)
    high = (centre + side / 2).round().clamp(0, size)
    pixel = torch.arange(size, device=lambda_N.device)
    inside = (pixel >= low[..., None]) & (pixel < high[..., None])
    return inside[0], inside[1]


def mixup(first_NCHW: torch.Tensor, second_NCHW: torch.Tensor, lambda_N: torch.Tensor) -> torch.Tensor:
    """lambda * first + (1 - lambda) * second, image by image."""
    weight = lambda_N[:, None, None, None]
    return weight * first_NCHW + (1 - weight) * second_NCHW
