"""Running class moments against every pixel of every image.

Legend: N images, K classes, F channels, H W pixels.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.moments import exact_class_moments, running_class_moments

from ray_ltdd.statistics.moments import ClassMoments, image_moments, membership, pool_by_class
from ray_ltdd.statistics.schedules import MomentumConfig

K, F = 3, 2
CUMULATIVE = MomentumConfig()
SCHEDULES = [
    MomentumConfig(),
    MomentumConfig(schedule="constant", value=0.3),
    MomentumConfig(schedule="power", exponent=0.5),
    MomentumConfig(schedule="power", exponent=2.0),
    MomentumConfig(schedule="warmup", value=0.4),
]


def draw_images(seed, n=11):
    """Images whose means differ a lot between images, and little inside one: what a mean of within-image variances would miss."""
    rng = np.random.default_rng(seed)
    level_NF = rng.normal(5.0, 3.0, (n, F))
    x_NFHW = (level_NF[:, :, None, None] + rng.normal(0.0, 0.5, (n, F, 2, 3))).astype(np.float32)
    return x_NFHW, rng.integers(0, K, n)


def running(config, batches):
    moments = ClassMoments(K, F, config)
    for x_NFHW, label_N in batches:
        moments.update(*image_moments(torch.from_numpy(x_NFHW)), torch.from_numpy(label_N))
    return moments


def cut(x_NFHW, label_N, batch_size):
    return [(x_NFHW[i : i + batch_size], label_N[i : i + batch_size]) for i in range(0, len(label_N), batch_size)]


def assert_equals(moments, mean_KF, var_KF, count_K):
    got_mean, got_var, got_count = moments.compute()
    assert got_count.tolist() == list(count_K)
    np.testing.assert_allclose(got_mean.numpy(), mean_KF, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got_var.numpy(), var_KF, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), batch_size=st.integers(1, 12), order=st.permutations(range(11)))
def test_cumulative_moments_are_those_of_all_images_for_every_batch_size_and_order(seed, batch_size, order):
    x_NFHW, label_N = draw_images(seed)
    moments = running(CUMULATIVE, cut(x_NFHW[order], label_N[order], batch_size))
    assert_equals(moments, *exact_class_moments(x_NFHW, label_N, K), np.bincount(label_N, minlength=K))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), part_N=st.lists(st.integers(0, 3), min_size=11, max_size=11), order=st.permutations(range(4)))
def test_cumulative_moments_merge_in_any_order(seed, part_N, order):
    x_NFHW, label_N = draw_images(seed)
    whole = ClassMoments(K, F, CUMULATIVE)
    for part in order:
        own = np.array(part_N) == part
        whole.merge(running(CUMULATIVE, cut(x_NFHW[own], label_N[own], 2)))
    assert_equals(whole, *exact_class_moments(x_NFHW, label_N, K), np.bincount(label_N, minlength=K))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), batch_size=st.integers(1, 5), config=st.sampled_from(SCHEDULES))
def test_every_schedule_equals_a_plain_loop(seed, batch_size, config):
    batches = cut(*draw_images(seed), batch_size)
    expected = running_class_moments(batches, K, config.schedule, config.value, config.exponent)
    assert_equals(running(config, batches), *expected)


@pytest.mark.parametrize("config", SCHEDULES[1:], ids=lambda c: f"{c.schedule}-{c.value}-{c.exponent}")
def test_a_schedule_is_read_and_changes_the_outcome(config):
    """Pitfall 15: the momentum was set on an attribute that nothing read."""
    batches = cut(*draw_images(0), 2)
    cumulative, other = running(CUMULATIVE, batches), running(config, batches)
    assert (cumulative.mean_KF - other.mean_KF).abs().max() > 0.05
    assert (cumulative.var_KF - other.var_KF).abs().max() > 0.05


def test_the_variance_contains_the_differences_between_images():
    """Pitfall 12: two flat images of 0 and 2 have no variance inside, and a class variance of 1."""
    x_NFHW = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 2.0)])
    mean_NF, var_NF = image_moments(x_NFHW)
    assert var_NF.tolist() == [[0.0], [0.0]]
    for batches in ([[0, 1]], [[0], [1]]):
        moments = ClassMoments(1, 1, CUMULATIVE)
        for index in batches:
            moments.update(mean_NF[index], var_NF[index], torch.zeros(len(index), dtype=torch.int64))
        assert moments.compute()[0].item() == 1.0 and moments.compute()[1].item() == 1.0


def test_mean_and_variance_are_returned_in_this_order():
    """Pitfall 14: they were swapped when saved."""
    x_NFHW = torch.tensor([5.0, 5.0, 5.0, 5.4]).view(1, 1, 2, 2)
    mean_NF, var_NF = image_moments(x_NFHW)
    assert mean_NF.item() == pytest.approx(5.1) and var_NF.item() == pytest.approx(0.03, rel=1e-5)
    moments = ClassMoments(1, 1, CUMULATIVE)
    moments.update(mean_NF, var_NF, torch.tensor([0]))
    mean_KF, var_KF, count_K = moments.compute()
    assert mean_KF.item() == pytest.approx(5.1) and var_KF.item() == pytest.approx(0.03, rel=1e-5) and count_K.tolist() == [1]


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda c: f"{c.schedule}-{c.value}-{c.exponent}")
def test_placeholders_count_for_nothing(config):
    """Pitfall 20: rows labelled -1 change no byte, whatever they hold, be it in a batch of their own."""
    x_NFHW, label_N = draw_images(3)
    plain, padded = ClassMoments(K, F, config), ClassMoments(K, F, config)
    for x, label in cut(x_NFHW, label_N, 4):
        mean_NF, var_NF = image_moments(torch.from_numpy(x))
        plain.update(mean_NF, var_NF, torch.from_numpy(label))
        free_label = torch.cat([torch.from_numpy(label), torch.tensor([-1, -1])])
        padded.update(torch.cat([mean_NF, torch.full((2, F), 1e6)]), torch.cat([var_NF, torch.full((2, F), 1e6)]), free_label)
        padded.update(torch.full((3, F), 7.0), torch.ones(3, F), torch.full((3,), -1))
    assert torch.equal(plain.count_K, padded.count_K)
    torch.testing.assert_close(plain.mean_KF, padded.mean_KF, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain.var_KF, padded.var_KF, rtol=1e-12, atol=1e-12)


def test_a_class_never_seen_stays_zero_and_is_not_moved_by_others():
    moments = running(MomentumConfig(schedule="constant", value=0.5), [(draw_images(1)[0], np.zeros(11, dtype=np.int64))])
    assert moments.count_K.tolist() == [11, 0, 0]
    assert moments.mean_KF[1:].abs().sum() == 0 and moments.var_KF[1:].abs().sum() == 0


def test_the_state_is_float64_and_survives_large_offsets():
    x_NFHW, label_N = draw_images(5)
    x_NFHW += 4096
    moments = running(CUMULATIVE, cut(x_NFHW, label_N, 1))
    assert moments.mean_KF.dtype == moments.var_KF.dtype == torch.float64
    mean_KF, var_KF = exact_class_moments(x_NFHW, label_N, K)
    np.testing.assert_allclose(moments.mean_KF.numpy(), mean_KF, rtol=1e-6)
    np.testing.assert_allclose(moments.var_KF.numpy(), var_KF, rtol=2e-2)


def test_order_dependent_schedules_refuse_to_merge_one_class_but_join_different_ones():
    config = SCHEDULES[1]
    x_NFHW, _ = draw_images(2)
    first = running(config, cut(x_NFHW, np.zeros(11, dtype=np.int64), 3))
    second = running(config, cut(x_NFHW + 1, np.ones(11, dtype=np.int64), 3))
    with pytest.raises(ValueError, match="cumulative schedule only, not under constant"):
        first.merge(running(config, cut(x_NFHW, np.zeros(11, dtype=np.int64), 3)))
    whole = ClassMoments(K, F, config)
    for part in (second, first):
        whole.merge(part)
    assert torch.equal(whole.mean_KF[0], first.mean_KF[0]) and torch.equal(whole.var_KF[1], second.var_KF[1])
    assert whole.count_K.tolist() == [11, 11, 0]


def test_pooling_is_the_law_of_total_variance_and_lets_gradients_through():
    x_NFHW, label_N = draw_images(4)
    image = torch.from_numpy(x_NFHW).requires_grad_(True)
    member_KN, weight_KN = membership(torch.from_numpy(label_N), K, torch.float32)
    mean_KF, var_KF = pool_by_class(*image_moments(image), member_KN, weight_KN)
    expected_mean, expected_var = exact_class_moments(x_NFHW, label_N, K)
    np.testing.assert_allclose(mean_KF.detach().numpy(), expected_mean, rtol=1e-5)
    np.testing.assert_allclose(var_KF.detach().numpy(), expected_var, rtol=1e-4)
    k = int(label_N[0])
    (gradient,) = torch.autograd.grad(var_KF[k, 0], image)
    members = label_N == k
    expected = 2 * (x_NFHW[members, 0] - expected_mean[k, 0]) / (members.sum() * x_NFHW[0, 0].size)
    np.testing.assert_allclose(gradient[members, 0].numpy(), expected, rtol=1e-3, atol=1e-5)
    assert gradient[~members].abs().sum() == 0 and gradient[:, 1].abs().sum() == 0
