import io
import warnings

import numpy as np
import pytest
from PIL import Image

from ray_ltdd.data.pixels import decode
from ray_ltdd.data.sources.base import EncodedImage
from ray_ltdd.errors import InputError


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return EncodedImage("picture.png", lambda: Image.open(io.BytesIO(buffer.getvalue())))


def test_an_image_of_the_wanted_size_keeps_every_pixel():
    pixel_HWC = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixel_CHW = decode(encoded(Image.fromarray(pixel_HWC)), 16, 3)
    assert pixel_CHW.flags.c_contiguous and pixel_CHW.dtype == np.uint8
    np.testing.assert_array_equal(pixel_CHW, pixel_HWC.transpose(2, 0, 1))


@pytest.mark.parametrize("wide", [True, False])
def test_the_centre_square_is_kept(wide):
    pixel_HW = np.full((20, 60), 200, np.uint8)
    pixel_HW[:, 20:40] = 50
    image = Image.fromarray(pixel_HW if wide else pixel_HW.T)
    np.testing.assert_array_equal(decode(encoded(image), 20, 1), np.full((1, 20, 20), 50))


def test_resizing_equals_resizing_all_and_cropping_then():
    pixel_HWC = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    reference = Image.fromarray(pixel_HWC).resize((24, 16), Image.Resampling.LANCZOS).crop((4, 0, 20, 16))
    pixel_CHW = decode(encoded(Image.fromarray(pixel_HWC)), 16, 3)
    np.testing.assert_array_equal(pixel_CHW, np.asarray(reference).transpose(2, 0, 1))


def test_a_large_jpeg_looks_like_its_full_decoding():
    y, x = np.mgrid[:512, :512]
    smooth = np.stack([x / 2, y / 2, (x + y) / 4], -1).astype(np.uint8)
    reference = np.asarray(Image.fromarray(smooth).resize((32, 32), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    difference = np.abs(decode(encoded(Image.fromarray(smooth), "JPEG", quality=95), 32, 3).astype(int) - reference)
    assert difference.max() <= 6


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 7, 7), ("P", 0, 0), ("RGBA", (9, 9, 9, 255), 9), ("1", 1, 255)])
def test_modes(mode, value, expected):
    np.testing.assert_array_equal(decode(encoded(Image.new(mode, (8, 8), value)), 8, 3), np.full((3, 8, 8), expected))


def grey_with_alpha():
    return Image.merge("LA", [Image.new("L", (8, 8), 51), Image.fromarray(np.repeat(np.uint8([0, 85, 170, 255]), 16).reshape(8, 8))])


def palette_with_alpha():
    image = Image.fromarray(np.repeat(np.uint8([0, 1, 2, 3]), 16).reshape(8, 8), "L").convert("P")
    image.putpalette([51] * 12)
    return image


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("image", "options"),
    [
        (grey_with_alpha(), {}),
        (grey_with_alpha().convert("RGBA"), {}),
        (palette_with_alpha(), {"transparency": bytes([0, 85, 170, 255])}),
    ],
    ids=["grey", "colour", "palette"],
)
def test_transparency_is_laid_on_white_without_a_word(image, options, channels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixel_CHW = decode(encoded(image, **options), 8, channels)
    wanted_HW = np.repeat([255, 187, 119, 51], 16).reshape(8, 8)
    np.testing.assert_array_equal(pixel_CHW, np.broadcast_to(wanted_HW, (channels, 8, 8)))


@pytest.mark.parametrize(("mode", "hidden"), [("L", 7), ("RGB", (7, 7, 7)), ("P", 0)])
def test_a_transparent_colour_is_white(mode, hidden):
    image = encoded(Image.new(mode, (8, 8), hidden), transparency=hidden)
    np.testing.assert_array_equal(decode(image, 8, 3), np.full((3, 8, 8), 255))


def test_sixteen_bits_are_scaled_not_clipped():
    image = Image.fromarray(np.full((8, 8), 0x7FFF, np.uint16))
    np.testing.assert_array_equal(decode(encoded(image), 8, 1), np.full((1, 8, 8), 0x7F))


@pytest.mark.parametrize("largest", [4095, 65535])
def test_sixteen_bits_of_a_pgm_are_scaled(largest):
    content = f"P5 8 8 {largest}\n".encode() + np.full((8, 8), (largest + 1) // 2, ">u2").tobytes()
    pixel_CHW = decode(EncodedImage("picture.pgm", lambda: Image.open(io.BytesIO(content))), 8, 1)
    np.testing.assert_array_equal(pixel_CHW, np.full((1, 8, 8), 128))


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_32_bits_are_to_be_converted(mode, dtype):
    image = encoded(Image.fromarray(np.ones((8, 8), dtype)), "TIFF")
    with pytest.raises(InputError, match=rf"picture.png has 32 bits a pixel \(mode {mode}\), of unknown range: convert it to 8 or 16 bits"):
        decode(image, 8, 1)


def test_an_exif_rotation_is_applied():
    pixel_HW = np.zeros((8, 8), np.uint8)
    pixel_HW[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the first row becomes the last column
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixel_HW), exif=exif), 8, 1)[0, :, -1], np.full(8, 255))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0, 10, 0.6])
def test_a_cut_file_is_named(form, keep):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, form)
    content = buffer.getvalue()[: keep if isinstance(keep, int) else int(len(buffer.getvalue()) * keep)]
    with pytest.raises(InputError, match=r"^picture.png cannot be decoded \([^<]*\): replace or remove the damaged image$"):
        decode(EncodedImage("picture.png", lambda: Image.open(io.BytesIO(content))), 16, 3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone.png is missing"):
        decode(EncodedImage("gone.png", lambda: Image.open(tmp_path / "gone.png")), 16, 3)
