"""The random choices of an expert's epoch, and the views made of them.

Legend: N images, B batch of a stream, S steps, K classes.
"""

import numpy as np
import pytest
import torch
from expert_views import draw_views

from ray_ltdd.data.bank import ImageBank
from ray_ltdd.seeding import generator
from ray_ltdd.stages.colours import recoloured
from ray_ltdd.stages.expert_config import ExpertConfig
from ray_ltdd.stages.experts import ExpertTraining, draw_epoch, draw_epoch_shapes

COUNT_K = torch.tensor([1000, 80, 20])
LABEL_N = torch.repeat_interleave(torch.arange(3), COUNT_K)[torch.randperm(1100, generator=torch.Generator().manual_seed(0))]
N_STEPS = 1100 // 64


def draw(epoch=0, seed=0, **settings):
    return draw_epoch(ExpertTraining(**settings), LABEL_N, COUNT_K, N_STEPS, seed, epoch)


def second_stream(n_epochs=20, **settings):
    return torch.cat([draw(epoch, **settings).weighted_SB.flatten() for epoch in range(n_epochs)])


def chi_square(observed_K, share_K):
    expected_K = np.asarray(share_K) * observed_K.sum()
    return float(((observed_K - expected_K) ** 2 / expected_K).sum())


def test_the_first_stream_sees_no_image_twice():
    uniform_SB = draw().uniform_SB
    assert uniform_SB.shape == (N_STEPS, 64)
    assert len(uniform_SB.unique()) == uniform_SB.numel()
    assert uniform_SB.min() >= 0 and uniform_SB.max() < len(LABEL_N)


def test_every_image_is_seen_in_one_epoch_or_another():
    seen = torch.cat([draw(epoch).uniform_SB.flatten() for epoch in range(3)])
    assert len(seen.unique()) == len(LABEL_N)


@pytest.mark.parametrize("exponent", [0.0, 0.2, 1.0, 2.0])
def test_the_second_streams_classes_come_as_often_as_their_weights_say(exponent):
    """An image of class c weighs n_c^-e, so the class comes with a share of n_c^(1-e)."""
    position = second_stream(sampler_exponent=exponent)
    share_K = COUNT_K.double() ** (1 - exponent)
    # 20 is exceeded once in 22,000 by right draws with 2 degrees of freedom
    assert chi_square(torch.bincount(LABEL_N[position], minlength=3).double().numpy(), (share_K / share_K.sum()).numpy()) < 20


def test_images_of_one_class_are_drawn_alike():
    position = second_stream(sampler_exponent=1.0)
    members = (LABEL_N == 2).nonzero()[:, 0]
    hits = torch.stack([(position == member).sum() for member in members]).double().numpy()
    # 19 degrees of freedom: 60 is exceeded once in 250,000
    assert chi_square(hits, np.full(20, 1 / 20)) < 60


def test_without_debiasing_the_second_stream_is_uniform_over_images():
    position = second_stream(debias=False, sampler_exponent=1.0)
    assert chi_square(torch.bincount(LABEL_N[position], minlength=3).double().numpy(), (COUNT_K / COUNT_K.sum()).numpy()) < 20


@pytest.mark.parametrize("alpha", [0.5, 4.0])
def test_lambda_follows_the_beta_distribution_of_the_settings(alpha):
    """Pitfall 8: the mixing parameter of the options was ignored."""
    lam = torch.cat([draw(epoch, mixup_alpha=alpha).lambda_SB.flatten() for epoch in range(5)])
    assert lam.dtype == torch.float32 and lam.min() >= 0 and lam.max() <= 1
    assert lam.mean().item() == pytest.approx(0.5, abs=0.02)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_an_epoch_is_a_function_of_seed_and_epoch():
    first, again = draw(3, seed=5), draw(3, seed=5)
    for name in ("uniform_SB", "weighted_SB", "lambda_SB"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        for other in (draw(4, seed=5), draw(3, seed=6)):
            assert not torch.equal(getattr(first, name), getattr(other, name))


def test_a_set_smaller_than_a_batch_makes_one_step_of_all_images():
    draws = draw_epoch(ExpertTraining(batch_size=64), LABEL_N[:10], COUNT_K, 1, 0, 0)
    assert sorted(draws.uniform_SB.flatten().tolist()) == list(range(10)) and draws.weighted_SB.shape == (1, 10)


def test_views_mix_pixels_in_the_share_their_lambda_says():
    """Flat images, so that a view's mean tells the share of either image; mixup and CutMix have one lambda, corrected for the clipped box."""
    grey_N = np.arange(60, dtype=np.uint8) * 4
    bank = ImageBank(np.broadcast_to(grey_N[:, None, None, None], (60, 3, 16, 16)).copy(), np.arange(60) % 3, np.arange(60), torch.device("cpu"))
    config = ExpertTraining(batch_size=20, crop_padding=0)
    draws = draw_epoch(config, bank.label_N, torch.tensor([20, 20, 20]), 3, 0, 0)
    for step in range(3):
        view_NCHW, first_N, second_N, lambda_N = draw_views(config, bank, draws, step, generator("cpu", 0, "test", step))
        uniform_B, weighted_B = draws.uniform_SB[step], draws.weighted_SB[step]
        assert torch.equal(first_N, bank.label_N[uniform_B].repeat(2)) and torch.equal(second_N, bank.label_N[weighted_B].repeat(2))
        assert torch.equal(lambda_N[:20], draws.lambda_SB[step])
        grey_first_N, grey_second_N = (torch.from_numpy(grey_N)[p].repeat(2) / 255 for p in (uniform_B, weighted_B))
        torch.testing.assert_close(view_NCHW.mean((1, 2, 3)), lambda_N * grey_first_N + (1 - lambda_N) * grey_second_N, atol=1e-5, rtol=0)
        cutmix = view_NCHW[20:].flatten(1)
        is_first, is_second = ((cutmix - grey[20:, None]).abs() < 1e-5 for grey in (grey_first_N, grey_second_N))
        assert bool((is_first | is_second).all())
        assert bool((lambda_N[20:] >= draws.lambda_SB[step] - 0.13).all()), "clipping can only leave more of the image itself"


def test_views_shift_by_the_padding_and_flip_only_where_allowed():
    image = np.random.default_rng(0).integers(1, 256, (30, 1, 8, 8), dtype=np.uint8)
    bank = ImageBank(image, np.zeros(30, dtype=np.int64), np.arange(30), torch.device("cpu"))
    for settings, is_plain in (({"crop_padding": 0, "flip": False}, True), ({"crop_padding": 0}, False), ({"flip": False}, False)):
        config = ExpertTraining(batch_size=15, **settings)
        draws = draw_epoch(config, bank.label_N, torch.tensor([30]), 2, 0, 0)
        draws.lambda_SB.fill_(1.0)
        view_NCHW, *_ = draw_views(config, bank, draws, 0, generator("cpu", 0, "test"))
        plain = torch.from_numpy(image)[draws.uniform_SB[0].repeat(2)] / 255
        same_N = (view_NCHW - plain).abs().flatten(1).max(1).values < 1e-6
        assert bool(same_N.all()) if is_plain else 0 <= same_N.float().mean() < 0.8


def test_random_resized_crops_replace_shifts():
    """Areas are uniform between the smallest and the whole image, no crop leaves it, and the padding no longer matters."""

    def boxes(**settings):
        return draw_epoch_shapes(ExpertTraining(min_scale=0.3, **settings), 50, 40, 32, generator("cpu", 0, "test")).box_SN4

    left, top, width, height = boxes().unbind(-1)
    assert min(left.min(), top.min()) >= 0 and max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    area = (width * height).flatten().double()
    # a side longer than the image is cut, so large areas come out a little smaller
    assert 0.2999 <= area.min() < 0.31 and area.max() > 0.97 and area.mean().item() == pytest.approx(0.64, abs=0.02)
    assert torch.equal(boxes(), boxes(crop_padding=9))


def test_both_images_of_a_pair_have_colours_of_their_own_before_they_are_mixed():
    """Eq. V; with lambda 1 and 0 a view is one image or the other in its own colours."""
    bank = ImageBank(
        np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8), np.zeros(30, dtype=np.int64), np.arange(30), torch.device("cpu")
    )
    plain, config = (ExpertTraining(batch_size=10, crop_padding=0, flip=False, **colours) for colours in ({}, {"hue": 0.4, "saturation": 0.7}))
    draws = draw_epoch(config, bank.label_N, torch.tensor([30]), 1, 0, 0)
    colour_NCC = draw_epoch_shapes(config, 1, 10, 8, generator("cpu", 0, "test")).colour_SNCC[0]
    assert colour_NCC.shape == (20, 3, 3) and len(colour_NCC.unique(dim=0)) == 20
    for share, stream, colours in ((1.0, draws.uniform_SB, colour_NCC[:10]), (0.0, draws.weighted_SB, colour_NCC[10:])):
        draws.lambda_SB.fill_(share)
        view_NCHW, *_ = draw_views(config, bank, draws, 0, generator("cpu", 0, "test"))
        torch.testing.assert_close(view_NCHW[:10], recoloured(bank.take(stream[0]), colours), atol=1e-5, rtol=0)
        before_NCHW, *_ = draw_views(plain, bank, draws, 0, generator("cpu", 0, "test"))
        assert (view_NCHW - before_NCHW)[:10].abs().mean() > 0.05


def test_experts_of_before_there_were_crops_and_colours_are_still_found():
    def named(**training):
        return ExpertConfig(training=ExpertTraining(**training)).outcome()["training"]

    assert not {"min_scale", "hue", "saturation"} & set(named()) and "crop_padding" in named()
    assert named(hue=0.1) == named() | {"hue": 0.1}
    assert named(min_scale=0.5) == {name: value for name, value in named().items() if name != "crop_padding"} | {"min_scale": 0.5}
