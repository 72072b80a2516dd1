"""Crops, flips and mixes against loops over pixels.

Legend: N images, C channels, H W rows and columns, S output size. A box is (left, top, width, height) as fractions of the image.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.crops import averaging_crop, bilinear_crop, shifted

from ray_ltdd.data.augment import RATIO_RANGE, crop, cutmix_masks, draw_crop_boxes, draw_flips, draw_shift_boxes, mixup

WHOLE = [0.0, 0.0, 1.0, 1.0]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn_masks(lambda_N, size, generator):
    """CutMix's masks around uniform centres."""
    return cutmix_masks(lambda_N, torch.rand(2, len(lambda_N), generator=generator), size)


def images(n=2, size=8, seed=0, rows=None):
    return torch.rand((n, 3, rows or size, size), generator=rng(seed))


def cut(image_NCHW, boxes, size=None, flip=False):
    n = len(image_NCHW)
    box_N4 = torch.tensor(boxes).expand(n, 4) if not isinstance(boxes[0], list) else torch.tensor(boxes)
    return crop(image_NCHW, box_N4, torch.full((n,), flip), size or image_NCHW.shape[-1])


@pytest.mark.parametrize("size", [7, 8, 32, 224])
def test_the_whole_image_comes_back_exactly_and_mirrored_exactly(size):
    image_NCHW = images(2, size)
    assert torch.equal(cut(image_NCHW, WHOLE), image_NCHW)
    assert torch.equal(cut(image_NCHW, WHOLE, flip=True), image_NCHW.flip(3))


@pytest.mark.parametrize("size", [8, 28, 32, 224])
def test_whole_pixel_shifts_equal_padding_and_slicing(size):
    image_1CHW = images(1, size)
    for right, down in [(0, 1), (3, -2), (-4, 4), (-1, 0), (size, 0), (0, -size)]:
        got = cut(image_1CHW, [right / size, down / size, 1.0, 1.0])
        np.testing.assert_allclose(got[0].numpy(), shifted(image_1CHW[0].numpy(), right, down), atol=1e-4)
        assert not got.any() or abs(right) < size


def test_the_random_crop_of_a_padded_image_is_a_slice_of_it():
    image_NCHW, padding = images(40, 16), 4
    box_N4 = draw_shift_boxes(40, padding, 16, rng(1))
    got_NCHW = crop(image_NCHW, box_N4, torch.zeros(40, dtype=torch.bool), 16)
    padded = torch.nn.functional.pad(image_NCHW, (padding,) * 4)
    shift_N2 = (box_N4[:, :2] * 16).round().long()
    assert shift_N2.abs().max() == padding and len(shift_N2.unique(dim=0)) > 20
    for n, (right, down) in enumerate(shift_N2.tolist()):
        expected = padded[n, :, padding + down : padding + down + 16, padding + right : padding + right + 16]
        torch.testing.assert_close(got_NCHW[n], expected, atol=1e-5, rtol=0)


def test_a_box_is_left_top_width_height():
    column = torch.arange(8.0).expand(1, 1, 8, 8)
    right_half = cut(column, [0.5, 0.0, 0.5, 1.0], 4)
    torch.testing.assert_close(right_half[0, 0, 0], torch.tensor([4.0, 5.0, 6.0, 7.0]))
    lower_half = cut(column.transpose(2, 3), [0.0, 0.5, 1.0, 0.5], 4)
    torch.testing.assert_close(lower_half[0, 0, :, 0], torch.tensor([4.0, 5.0, 6.0, 7.0]))


def test_flips_mirror_left_and_right_of_the_chosen_images_only():
    image_NCHW = images(3)
    box_N4 = torch.tensor([[0.1, 0.3, 0.5, 0.6]]).expand(3, 4)
    plain = crop(image_NCHW, box_N4, torch.zeros(3, dtype=torch.bool), 8)
    some = crop(image_NCHW, box_N4, torch.tensor([False, True, False]), 8)
    assert torch.equal(some[[0, 2]], plain[[0, 2]]) and torch.equal(some[1], plain[1].flip(2))


@settings(deadline=None, max_examples=15)
@given(left=st.floats(0, 0.5), top=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_a_half_size_crop_is_plain_bilinear(left, top, seed):
    image_1CHW = images(1, 8, seed)
    got = cut(image_1CHW, [left, top, 0.5, 0.5])
    np.testing.assert_allclose(got[0].numpy(), bilinear_crop(image_1CHW[0].double().numpy(), (left, top, 0.5, 0.5), 8), atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), rows=st.integers(6, 9), size=st.integers(2, 9), flip=st.booleans())
def test_any_box_to_any_size_against_a_loop(seed, rows, size, flip):
    image_1CHW = images(1, 7, seed, rows)
    box_14 = draw_crop_boxes(1, (0.05, 1.0), rng(seed))
    got = crop(image_1CHW, box_14, torch.tensor([flip]), size)[0].numpy()
    expected = averaging_crop(image_1CHW[0].double().numpy(), box_14[0].double().tolist(), size)
    np.testing.assert_allclose(got[..., ::-1] if flip else got, expected, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13, 16])
def test_resizing_the_whole_image_equals_torchs_antialiased_bilinear(size):
    image_NCHW = images(2, 8)
    expected = torch.nn.functional.interpolate(image_NCHW, (size, size), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(cut(image_NCHW, WHOLE, size), expected, atol=1e-5, rtol=0)


def test_shrinking_averages_and_keeps_the_mean():
    checkerboard = ((torch.arange(16)[:, None] + torch.arange(16)[None, :]) % 2).float().expand(1, 1, 16, 16)
    got = cut(checkerboard, WHOLE, 4)
    torch.testing.assert_close(got, torch.full_like(got, 0.5), atol=0.02, rtol=0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), low=st.floats(0.02, 1), size=st.integers(1, 12))
def test_crops_of_a_flat_image_are_flat(seed, low, size):
    box_N4 = draw_crop_boxes(8, (low, 1.0), rng(seed))
    got = crop(torch.full((8, 2, 6, 6), 0.7), box_N4, draw_flips(8, rng(seed)), size)
    torch.testing.assert_close(got, torch.full((8, 2, size, size), 0.7), atol=1e-6, rtol=0)


def test_gradients_are_those_of_finite_differences():
    """The map is linear, so that differences over a wide step are exact but for rounding."""
    image_NCHW = images(2, 5).requires_grad_(True)
    box_N4 = torch.tensor([[0.1, 0.2, 0.55, 0.7], [-0.2, 0.2, 1.0, 1.0]])
    flip_N = torch.tensor([True, False])
    weight_NCSS = torch.randn((2, 3, 4, 4), generator=rng(3))
    (gradient,) = torch.autograd.grad((crop(image_NCHW, box_N4, flip_N, 4) * weight_NCSS).sum(), image_NCHW)
    with torch.no_grad():
        for index in [(0, 0, 0, 0), (0, 1, 2, 3), (0, 2, 4, 1), (1, 0, 0, 0), (1, 1, 3, 2), (1, 2, 4, 4)]:
            up, down = image_NCHW.clone(), image_NCHW.clone()
            up[index] += 1
            down[index] -= 1
            difference = ((crop(up, box_N4, flip_N, 4) - crop(down, box_N4, flip_N, 4)) * weight_NCSS).sum() / 2
            assert gradient[index].item() == pytest.approx(difference.item(), abs=1e-4)
    assert gradient.abs().sum() > 0


def test_crops_stay_float32_under_autocast():
    image_NCHW = images()
    with torch.autocast("cpu", torch.bfloat16):
        got = cut(image_NCHW, [0.2, 0.1, 0.6, 0.5])
    assert got.dtype == torch.float32 and torch.equal(got, cut(image_NCHW, [0.2, 0.1, 0.6, 0.5]))


def test_every_image_has_its_own_draw():
    """Pitfall 24: one crop and one flip for the whole batch."""
    n = 64
    box_N4, flip_N = draw_crop_boxes(n, (0.08, 1.0), rng()), draw_flips(n, rng(1))
    for column in box_N4.T:
        assert len(column.unique()) > n / 2
    assert 0.25 < flip_N.float().mean() < 0.75
    got = crop(images(1).expand(n, 3, 8, 8), box_N4, flip_N, 8)
    assert len(got.flatten(1).unique(dim=0)) == n
    _, lambda_N = drawn_masks(torch.full((n,), 0.6), 32, rng())
    assert len(lambda_N.unique()) > 5


def test_an_image_does_not_depend_on_its_neighbours():
    image_NCHW = images(5)
    box_N4, flip_N = draw_crop_boxes(5, (0.1, 1.0), rng()), draw_flips(5, rng())
    whole = crop(image_NCHW, box_N4, flip_N, 8)
    for n in range(5):
        alone = crop(image_NCHW[n : n + 1], box_N4[n : n + 1], flip_N[n : n + 1], 8)
        torch.testing.assert_close(alone[0], whole[n], atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), scale=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted))
def test_crop_boxes_lie_inside_the_image_with_area_and_ratio_in_range(seed, scale):
    left, top, width, height = draw_crop_boxes(50, tuple(scale), rng(seed)).double().T
    assert bool((torch.stack([left, top]) >= 0).all()) and bool((torch.stack([left + width, top + height]) <= 1 + 1e-6).all())
    area, ratio = width * height, width / height
    assert bool((area <= scale[1] + 1e-6).all())
    cut_to_image = (width == 1) | (height == 1)
    assert bool((area[~cut_to_image] >= scale[0] - 1e-6).all())
    assert bool(((ratio >= RATIO_RANGE[0] - 1e-5) & (ratio <= RATIO_RANGE[1] + 1e-5)).all())


def test_crop_boxes_use_the_whole_range():
    left, top, width, height = draw_crop_boxes(4000, (0.1, 0.5), rng()).T
    area, log_ratio = width * height, (width / height).log()
    assert area.mean().item() == pytest.approx(0.3, abs=0.01) and area.min() < 0.11 and area.max() > 0.49
    assert log_ratio.mean().item() == pytest.approx(0.0, abs=0.01) and log_ratio.max() > 0.27 and log_ratio.min() < -0.27
    for start, length in ((left, width), (top, height)):
        assert (start / (1 - length)).mean().item() == pytest.approx(0.5, abs=0.02)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), size=st.integers(4, 40), lam=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12))
def test_cutmix_lambda_is_the_share_of_own_pixels_after_clipping(seed, size, lam):
    """Pitfall 8."""
    mask_N1HW, lambda_N = drawn_masks(torch.tensor(lam), size, rng(seed))
    assert mask_N1HW.shape == (len(lam), 1, size, size) and mask_N1HW.dtype == torch.bool
    for mask_1HW, own, wanted in zip(mask_N1HW, lambda_N.tolist(), lam, strict=True):
        mask = mask_1HW[0].numpy()
        assert own == pytest.approx(sum(not mask[i, j] for i in range(size) for j in range(size)) / size**2, abs=1e-6)
        rows, columns = mask.any(1), mask.any(0)
        assert np.array_equal(mask, rows[:, None] & columns[None, :])
        for line in (rows, columns):
            inside = np.flatnonzero(line)
            assert len(inside) == 0 or np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))
            side = (1 - wanted) ** 0.5 * size
            assert len(inside) <= side + 1 + 1e-4
            if len(inside) and inside[0] > 0 and inside[-1] < size - 1:
                assert len(inside) >= side - 1 - 1e-4


def test_cutmix_boxes_are_clipped_often_and_lambda_one_mixes_nothing():
    mask_N1HW, lambda_N = drawn_masks(torch.full((500,), 0.5), 32, rng())
    assert lambda_N.min().item() >= 0.45 and (lambda_N > 0.55).float().mean() > 0.5
    centre = (mask_N1HW[:, 0].float() * torch.arange(32.0)).sum((1, 2)) / mask_N1HW[:, 0].sum((1, 2))
    assert centre.mean().item() == pytest.approx(15.5, abs=1.0)
    mask_N1HW, lambda_N = drawn_masks(torch.ones(9), 32, rng())
    assert not mask_N1HW.any() and lambda_N.tolist() == [1.0] * 9


def test_mixup_against_a_loop():
    first, second, lambda_N = images(3, 4), images(3, 4, 1), torch.tensor([0.0, 0.3, 1.0])
    got = mixup(first, second, lambda_N)
    for n, lam in enumerate(lambda_N.tolist()):
        torch.testing.assert_close(got[n], lam * first[n] + (1 - lam) * second[n])
    assert torch.equal(got[0], second[0]) and torch.equal(got[2], first[2])


@pytest.mark.parametrize("draw", [lambda g: draw_crop_boxes(9, (0.1, 1.0), g), lambda g: draw_shift_boxes(9, 4, 32, g), lambda g: draw_flips(9, g)])
def test_draws_follow_their_generator_alone(draw):
    first, again, other = draw(rng(5)), draw(rng(5)), draw(rng(6))
    assert torch.equal(first, again) and not torch.equal(first, other)
