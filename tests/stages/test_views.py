"""The students' views: replayable, complete, and mixed in the share their lambda says.

Legend: N images, B batch, S batches of an epoch, C H W, K classes.
"""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_ltdd.data.augment import cutmix_masks
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.seeding import derive_seed, generator
from ray_ltdd.stages.colours import colour_matrices
from ray_ltdd.stages.views import ViewsConfig, draw_epoch_views, make_batch, mix_labels, n_batches

CPU = torch.device("cpu")


def build_bank(n=23, flat=False, size=8):
    rng = np.random.default_rng(0)
    image_NCHW = rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    if flat:
        image_NCHW = np.broadcast_to((np.arange(n, dtype=np.uint8) * 10)[:, None, None, None], image_NCHW.shape).copy()
    return ImageBank(image_NCHW, np.arange(n) % 4, np.arange(n), CPU)


def render(config, bank, seed=0, epoch=0):
    views = draw_epoch_views(config, len(bank), bank.image_size, seed, epoch, CPU)
    return views, [make_batch(config, bank, views, step) for step in range(len(views.index_SB))]


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
@pytest.mark.parametrize("hue", [0.0, 0.3])
def test_the_same_seed_and_epoch_give_the_same_bytes_in_any_order(mix, hue):
    bank, config = build_bank(), ViewsConfig(batch_size=6, mix=mix, hue=hue)
    _, batches = render(config, bank, 4, 2)
    again = draw_epoch_views(config, len(bank), bank.image_size, 4, 2, CPU)
    for step in reversed(range(len(batches))):
        for first, second in zip(batches[step], make_batch(config, bank, again, step), strict=True):
            assert torch.equal(first, second)
    for seed, epoch in ((4, 3), (5, 2)):
        _, others = render(config, bank, seed, epoch)
        assert not any(torch.equal(first[0], second[0]) for first, second in zip(batches, others, strict=True))


@settings(deadline=None, max_examples=60)
@given(n_images=st.integers(1, 60), batch_size=st.integers(2, 70), epoch=st.integers(0, 5))
def test_every_image_is_seen_at_least_once_an_epoch_in_batches_of_one_shape(n_images, batch_size, epoch):
    config = ViewsConfig(batch_size=batch_size)
    views = draw_epoch_views(config, n_images, 8, 0, epoch, CPU)
    shape = (n_batches(config, n_images), min(batch_size, n_images))
    assert views.index_SB.shape == views.partner_SB.shape == views.lambda_SB.shape == views.flip_SB.shape == shape
    assert views.box_SB4.shape == (*shape, 4)
    seen_N = torch.bincount(views.index_SB.flatten(), minlength=n_images)
    assert seen_N.min() >= 1 and seen_N.max() <= 2 and shape[0] * shape[1] - n_images < shape[1]
    assert bool((views.partner_SB.sort(dim=1).values == torch.arange(shape[1])).all()), "every image of a batch is partner once"


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_views_show_both_images_in_the_share_of_lambda(mix):
    """Flat images tell each pixel's origin. Pitfall 8 for CutMix: lambda is what the clipped box left."""
    bank, config = build_bank(flat=True, size=16), ViewsConfig(batch_size=10, mix=mix)
    views, batches = render(config, bank)
    for step, (view_BCHW, partner_B, lambda_B) in enumerate(batches):
        own_B = views.index_SB[step] * 10 / 255
        expected_B = lambda_B * own_B + (1 - lambda_B) * own_B[partner_B]
        torch.testing.assert_close(view_BCHW.mean((1, 2, 3)), expected_B, atol=1e-5, rtol=0)
        assert torch.equal(lambda_B, views.lambda_SB[step])
        if mix == "cutmix":
            pixel_BP = view_BCHW.flatten(1)
            distance = torch.minimum((pixel_BP - own_B[:, None]).abs(), (pixel_BP - own_B[partner_B][:, None]).abs())
            assert distance.max() < 1e-5


def test_a_cutmix_batch_is_its_draw_written_out():
    """Every batch of an epoch has its own generator on the CPU; the box that is kept with the epoch is the mask of that draw."""
    bank, config = build_bank(n=40, size=9), ViewsConfig(batch_size=8, mix_probability=0.8)
    views, batches = render(config, bank, 3, 1)
    plain = [make_batch(config.model_copy(update={"mix": "none"}), bank, views, step)[0] for step in range(5)]
    draw = np.random.default_rng(derive_seed(3, "views-lambda", 1))
    beta_SB = draw.beta(1.0, 1.0, (5, 8))
    drawn_SB = torch.tensor(np.where(draw.random((5, 8)) < 0.8, beta_SB, 1.0), dtype=torch.float32)
    for step, (view_BCHW, partner_B, lambda_B) in enumerate(batches):
        rng = generator("cpu", derive_seed(3, "views-centre", 1), "cutmix", step)
        mask_B1HW, share_B = cutmix_masks(drawn_SB[step], torch.rand(2, len(drawn_SB[step]), generator=rng), 9)
        assert torch.equal(view_BCHW, torch.where(mask_B1HW, plain[step][partner_B], plain[step])) and torch.equal(lambda_B, share_B)


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_nothing_is_drawn_on_the_device(mix):
    """A GPU's generator gives other numbers. The device here has no memory and no generator: drawing on it raises."""
    views = draw_epoch_views(ViewsConfig(batch_size=6, mix=mix, hue=0.1), 23, 8, 0, 0, torch.device("meta"))
    assert all(getattr(views, field.name).device.type == "meta" for field in fields(views))
    with pytest.raises(RuntimeError):
        generator("meta", 0, "views")


def test_without_mixing_views_are_crops_of_their_own_images():
    bank = build_bank(flat=True)
    views, batches = render(ViewsConfig(batch_size=10, mix="none"), bank)
    for step, (view_BCHW, _, lambda_B) in enumerate(batches):
        assert lambda_B.tolist() == [1.0] * 10
        torch.testing.assert_close(view_BCHW, (views.index_SB[step] * 10 / 255).view(-1, 1, 1, 1).expand_as(view_BCHW), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_images_that_are_not_mixed_have_lambda_one_and_their_own_pixels(mix):
    bank = build_bank(n=40)
    config = ViewsConfig(batch_size=40, mix=mix, mix_probability=0.5)
    views = draw_epoch_views(config, 40, 8, 0, 0, CPU)
    unmixed_B = views.lambda_SB[0] == 1
    assert 8 <= unmixed_B.sum() <= 32
    plain_BCHW, _, _ = make_batch(config.model_copy(update={"mix": "none"}), bank, views, 0)
    view_BCHW, _, lambda_B = make_batch(config, bank, views, 0)
    assert torch.equal(view_BCHW[unmixed_B], plain_BCHW[unmixed_B]) and bool((lambda_B[unmixed_B] == 1).all())
    changed_B = (view_BCHW != plain_BCHW).flatten(1).any(1)
    assert changed_B[~unmixed_B].float().mean() > 0.5
    never = draw_epoch_views(config.model_copy(update={"mix_probability": 0.0}), 40, 8, 0, 0, CPU)
    assert bool((never.lambda_SB == 1).all())


def test_settings_change_their_own_draw_and_no_other():
    base = ViewsConfig(batch_size=8)
    views = draw_epoch_views(base, 30, 8, 0, 0, CPU)
    smaller = draw_epoch_views(base.model_copy(update={"min_scale": 0.9, "flip": False, "mix_alpha": 0.2}), 30, 8, 0, 0, CPU)
    assert torch.equal(views.index_SB, smaller.index_SB) and torch.equal(views.partner_SB, smaller.partner_SB)
    area = smaller.box_SB4[..., 2] * smaller.box_SB4[..., 3]
    assert views.flip_SB.any() and not smaller.flip_SB.any()
    assert (views.box_SB4[..., 2] * views.box_SB4[..., 3]).min() < 0.4 < 0.7 < area.min()
    assert smaller.lambda_SB.var() > views.lambda_SB.var()


def test_every_view_has_its_own_crop():
    """Pitfall 24."""
    views = draw_epoch_views(ViewsConfig(batch_size=25, mix="mixup"), 100, 8, 0, 0, CPU)
    assert len(views.box_SB4.flatten(0, 1).unique(dim=0)) == 100
    assert 0.3 < views.flip_SB.float().mean() < 0.7
    assert len(views.lambda_SB.unique()) == 100


def test_mixed_labels_against_a_loop():
    label_BK, partner_B, lambda_B = torch.randn(5, 3), torch.tensor([1, 0, 4, 3, 2]), torch.tensor([0.0, 1.0, 0.25, 0.5, 0.9])
    got_BK = mix_labels(label_BK, partner_B, lambda_B)
    for b in range(5):
        lam = lambda_B[b].item()
        expected = [lam * label_BK[b, k].item() + (1 - lam) * label_BK[partner_B[b], k].item() for k in range(3)]
        assert got_BK[b].tolist() == pytest.approx(expected, abs=1e-6)
    one_hot = mix_labels(torch.eye(3)[torch.tensor([0, 1, 2, 0, 1])], partner_B, lambda_B)
    torch.testing.assert_close(one_hot.sum(1), torch.ones(5))


def turned(colour, angle, saturation):
    """A colour's distance from its grey turned in the plane across the grey axis, in that plane's own coordinates."""
    grey = np.full(3, colour.mean())
    first = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
    second = np.cross(np.ones(3) / np.sqrt(3), first)
    u, v = saturation * ((colour - grey) @ first), saturation * ((colour - grey) @ second)
    return grey + (u * np.cos(angle) - v * np.sin(angle)) * first + (u * np.sin(angle) + v * np.cos(angle)) * second


def test_colours_are_turned_as_written_out():
    """Eq. V, pixel by pixel."""
    bank, config = build_bank(n=12), ViewsConfig(batch_size=12, mix="none", hue=0.8, saturation=0.6)
    views = draw_epoch_views(config, 12, 8, 5, 1, CPU)
    before_BCHW = make_batch(config, bank, draw_epoch_views(ViewsConfig(batch_size=12, mix="none"), 12, 8, 5, 1, CPU), 0)[0].double().numpy()
    after_BCHW = make_batch(config, bank, views, 0)[0].numpy()
    turn_B, change_B = torch.rand(2, 1, 12, generator=generator("cpu", 5, "views-colour", 1)).mul(2).sub(1)[:, 0].double().numpy()
    for image, seen, turn, change in zip(before_BCHW, after_BCHW, turn_B, change_B, strict=True):
        expected = np.apply_along_axis(turned, 0, image, np.pi * 0.8 * turn, 1 + 0.6 * change)
        np.testing.assert_allclose(seen, expected.clip(0, 1), atol=1e-5)
    assert np.abs(after_BCHW - before_BCHW).mean() > 0.05 and after_BCHW.min() >= 0 and after_BCHW.max() <= 1


@settings(deadline=None, max_examples=60)
@given(hue=st.floats(0, 1), saturation=st.floats(0, 1), turn=st.floats(-1, 1), change=st.floats(-1, 1))
def test_changed_colours_keep_their_grey(hue, saturation, turn, change):
    matrix = colour_matrices(torch.tensor([turn]), torch.tensor([change]), ViewsConfig(hue=hue, saturation=saturation))[0]
    torch.testing.assert_close(matrix.sum(0), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix.sum(1), torch.ones(3), atol=1e-5, rtol=0)


def test_colours_change_nothing_else_and_are_only_drawn_where_asked_for():
    plain, other = (draw_epoch_views(ViewsConfig(batch_size=8, saturation=s), 30, 8, 0, 0, CPU) for s in (0.0, 0.5))
    assert plain.colour_SBCC.shape == (4, 8, 0, 0) and other.colour_SBCC.shape == (4, 8, 3, 3)
    same = [field.name for field in fields(plain) if field.name != "colour_SBCC"]
    assert all(torch.equal(getattr(plain, name), getattr(other, name)) for name in same)


def test_colours_that_stay_go_unnamed():
    """Labels and students of before there were any keep their keys."""
    assert set(ViewsConfig.model_fields) - set(ViewsConfig().outcome()) == {"hue", "saturation"}
    assert ViewsConfig(saturation=0.5).outcome() == ViewsConfig().outcome() | {"saturation": 0.5}
