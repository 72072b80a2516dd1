"""From an encoded image of any size and mode to uint8 pixels of the wanted size.

Shapes: H W pixels, C channels (3 for RGB, 1 for grey).
"""

import struct
import zipfile
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ray_ltdd.data.sources.base import EncodedImage
from ray_ltdd.errors import InputError

# What PIL and the containers raise for bytes that are no whole image.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


def decode(encoded: EncodedImage, image_size: int, channels: int) -> np.ndarray:
    """Return the image's centre square, resized (Lanczos down, bicubic up) to uint8 `[C, H, W]`, H = W = `image_size`.

    What is transparent is laid on white: the colours hidden below are arbitrary.

    Raises:
        InputError: the image is missing, damaged, or has more than 16 bits a pixel; the message names it.
    """
    try:
        with encoded.open() as image:
            # A JPEG far larger than needed is decoded at a half, a quarter or an eighth of its size, which is faster;
            # twice the wanted size is left for the filter.
            image.draft(None, (2 * image_size, 2 * image_size))
            image.load()
            # A PGM's 16 bits are in mode I, too, scaled to 0..65535.
            if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
                raise InputError(f"{encoded.where} has 32 bits a pixel (mode {image.mode}), of unknown range: convert it to 8 or 16 bits")
            return _fit(_to_mode(ImageOps.exif_transpose(image), channels), image_size)
    except FileNotFoundError as error:
        raise InputError(f"{encoded.where} is missing: restore the file or remove it from the dataset") from error
    except UnidentifiedImageError as error:  # whose own words name the buffer the bytes lie in
        raise InputError(f"{encoded.where} cannot be decoded (of no known format): replace or remove the damaged image") from error
    except _DAMAGE as error:
        raise InputError(f"{encoded.where} cannot be decoded ({error}): replace or remove the damaged image") from error


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):  # PIL's own conversion clips 16-bit grey at 255 instead of scaling it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB" if channels == 3 else "L")


def _fit(image: Image.Image, image_size: int) -> np.ndarray:
    shorter = min(image.size)
    if image.size != (image_size, image_size):
        # Cropping inside the resize equals cropping after it, without ever building the far ends of a very long image.
        left, top = ((side - shorter) / 2 for side in image.size)
        filter_ = Image.Resampling.LANCZOS if shorter > image_size else Image.Resampling.BICUBIC
        image = image.resize((image_size, image_size), filter_, box=(left, top, left + shorter, top + shorter))
    pixel_HWC = np.asarray(image)
    return pixel_HWC[None] if pixel_HWC.ndim == 2 else np.ascontiguousarray(pixel_HWC.transpose(2, 0, 1))
