"""Images where the computation is: uint8, resident on the device when they fit, read from the memory-mapped file batch by batch when they do not.

Legend: N images, B batch, C channels, H W pixels.
"""

from collections.abc import Iterator

import numpy as np
import torch

RESIDENT_BYTES = 2 * 2**30
"""Largest set that is copied to the device whole. CIFAR takes 38 MB, Tiny-ImageNet-LT 0.3 GB, ImageNet-LT at 224 px 17 GB."""


class ImageBank:
    """A set of labelled images to draw batches from by position."""

    def __init__(
        self,
        image_NCHW: np.ndarray,
        label_N: np.ndarray,
        index_N: np.ndarray,
        device: torch.device,
        resident_bytes: int = RESIDENT_BYTES,
    ) -> None:
        """Hold the images `index_N` of the memory-mapped uint8 array `image_NCHW`.

        Args:
            image_NCHW: uint8, usually a memory map. Only the rows in `index_N` are read.
            label_N: int64 labels of all rows of `image_NCHW`.
            index_N: int64 rows this bank holds; position i of the bank is row index_N[i].
            device: where batches are wanted.
            resident_bytes: largest size kept on the device.
        """
        self.device = device
        self.index_N = np.asarray(index_N)
        self.label_N = torch.as_tensor(np.asarray(label_N)[self.index_N].astype(np.int64), device=device)
        self._mapped_NCHW = image_NCHW
        size = len(self.index_N) * int(np.prod(image_NCHW.shape[1:]))
        self._resident_NCHW = torch.from_numpy(image_NCHW[self.index_N]).to(device) if size <= resident_bytes else None

    def __len__(self) -> int:
        return len(self.index_N)

    @property
    def image_size(self) -> int:
        """Rows and columns of the images, in pixels."""
        return int(self._mapped_NCHW.shape[-1])

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return int(self._mapped_NCHW.shape[1])

    @property
    def is_resident(self) -> bool:
        """Whether all images lie on the device."""
        return self._resident_NCHW is not None

    def take(self, position_B: torch.Tensor) -> torch.Tensor:
        """Return the images at these positions, float32 [B, C, H, W] in [0, 1] on the device."""
        return self.pixels(position_B).float().div_(255)

    def pixels(self, position_B: torch.Tensor) -> torch.Tensor:
        """Return the images at these positions as they are stored, uint8 [B, C, H, W] on the device."""
        if self._resident_NCHW is not None:
            return self._resident_NCHW[position_B.to(self.device)]
        return torch.from_numpy(self._mapped_NCHW[self.index_N[position_B.cpu().numpy()]]).to(self.device)


def padded_batches(n: int, batch_size: int, device: torch.device) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield positions 0..n-1 in batches of one shape, and how many of each are real.

    The last batch is filled by repeating its last position, so that a compiled graph sees one shape; callers use the first `n_real` rows only.
    """
    batch_size = max(min(batch_size, n), 1)
    for start in range(0, n, batch_size):
        n_real = min(batch_size, n - start)
        position_B = torch.arange(start, start + batch_size, device=device).clamp(max=start + n_real - 1)
        yield position_B, n_real
