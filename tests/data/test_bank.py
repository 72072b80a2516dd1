"""Image banks and batches of one shape.

Legend: N images, B batch, C channels, H W pixels.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_ltdd.data.bank import ImageBank, padded_batches

CPU = torch.device("cpu")
INDEX = np.array([7, 2, 11, 2, 0])


@pytest.fixture
def mapped(tmp_path):
    """A memory-mapped file of 12 images and their labels."""
    image_NCHW = np.random.default_rng(0).integers(0, 256, (12, 3, 4, 4), dtype=np.uint8)
    image_NCHW[0, 0, 0, :2] = 0, 255
    np.save(tmp_path / "images.npy", image_NCHW)
    return np.load(tmp_path / "images.npy", mmap_mode="r"), (np.arange(12) % 5).astype(np.int32)


@pytest.mark.parametrize("resident_bytes", [0, 10**6])
def test_positions_are_those_of_the_index(mapped, resident_bytes):
    image_NCHW, label_N = mapped
    bank = ImageBank(image_NCHW, label_N, INDEX, CPU, resident_bytes)
    assert len(bank) == 5 and bank.image_size == 4 and bank.channels == 3
    assert bank.label_N.dtype == torch.int64 and bank.label_N.tolist() == [2, 2, 1, 2, 0]
    position_B = torch.tensor([4, 0, 0, 2])
    got_BCHW = bank.take(position_B)
    assert got_BCHW.dtype == torch.float32 and got_BCHW.shape == (4, 3, 4, 4)
    np.testing.assert_allclose(got_BCHW.numpy(), image_NCHW[[0, 7, 7, 11]] / 255, atol=1e-7)
    assert got_BCHW[0, 0, 0, :2].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("resident_bytes", [0, 10**6], ids=["mapped", "resident"])
def test_pixels_are_the_rows_as_they_are_stored(mapped, resident_bytes):
    image_NCHW, label_N = mapped
    bank, position_B = ImageBank(image_NCHW, label_N, INDEX, CPU, resident_bytes), torch.tensor([4, 1, 0, 2, 4])
    for _ in range(2):
        pixel_BCHW = bank.pixels(position_B)
        assert pixel_BCHW.dtype == torch.uint8
        np.testing.assert_array_equal(pixel_BCHW.numpy(), np.stack([image_NCHW[row] for row in (0, 2, 7, 11, 0)]))
        assert torch.equal(bank.take(position_B), pixel_BCHW / 255)
        # what is done to them is not done to the bank
        pixel_BCHW.zero_()


def test_resident_and_mapped_images_are_the_same_bytes_and_stay_so(mapped):
    banks = [ImageBank(*mapped, INDEX, CPU, resident_bytes) for resident_bytes in (0, 10**6)]
    for _ in range(2):
        first, second = (bank.take(torch.arange(5)) for bank in banks)
        assert torch.equal(first, second)
        first.zero_()
        second.zero_()


def test_what_is_resident_is_decided_by_the_bytes_held_not_by_the_file(mapped):
    image_NCHW, label_N = mapped[0].copy(), mapped[1]
    held = len(INDEX) * 3 * 4 * 4
    resident, read_anew = (ImageBank(image_NCHW, label_N, INDEX, CPU, n_bytes) for n_bytes in (held, held - 1))
    before = resident.take(torch.arange(5))
    assert torch.equal(read_anew.take(torch.arange(5)), before) and before.max() > 0
    image_NCHW[:] = 0
    assert torch.equal(resident.take(torch.arange(5)), before) and read_anew.take(torch.arange(5)).max() == 0


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 70))
def test_batches_have_one_shape_and_cover_every_position_once(n, batch_size):
    batches = list(padded_batches(n, batch_size, CPU))
    assert {position_B.shape for position_B, _ in batches} == {(min(n, batch_size),)}
    assert torch.cat([position_B[:n_real] for position_B, n_real in batches]).tolist() == list(range(n))
    position_B, n_real = batches[-1]
    assert position_B[n_real:].tolist() == [n - 1] * (len(position_B) - n_real)
    assert all(real == len(position) for position, real in batches[:-1])
