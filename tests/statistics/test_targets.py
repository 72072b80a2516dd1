"""The global target against loops and against samples that really have those class shares.

Legend: K classes, F channels.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import targets as reference

from ray_ltdd.statistics import targets
from ray_ltdd.statistics.targets import class_weights

KINDS = ("uniform", "sample", "effective_number")
READINGS = ("mean_of_classes", "mixture")


def mixture_moments(mean_KF, var_KF, weight_K, variance, cuts=(1,)):
    """Mean and variance over the classes, given in parts of consecutive classes."""
    parts = [rows for rows in np.split(np.arange(len(mean_KF)), cuts) if len(rows)]
    given = [(rows.tolist(), {"layer/mean": mean_KF[rows], "layer/var": var_KF[rows]}) for rows in parts]
    whole = targets.mixture_moments(lambda: given, weight_K, variance)
    return whole["layer/mean"], whole["layer/var"]


LONG_TAIL = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(KINDS), count_K=st.lists(st.integers(1, 300), min_size=1, max_size=6), beta=st.floats(0, 0.9999))
def test_weights_against_a_loop(kind, count_K, beta):
    weight_K = class_weights(kind, torch.tensor(count_K), beta)
    np.testing.assert_allclose(weight_K.numpy(), reference.class_weights(kind, count_K, beta), rtol=1e-6)
    assert weight_K.sum().item() == pytest.approx(1.0)


def test_effective_number_goes_from_sample_to_uniform():
    sample, uniform = class_weights("sample", LONG_TAIL), class_weights("uniform", LONG_TAIL)
    torch.testing.assert_close(class_weights("effective_number", LONG_TAIL, 0.0), sample)
    torch.testing.assert_close(class_weights("effective_number", LONG_TAIL, 1 - 1e-9), uniform, rtol=1e-4, atol=0)
    tail = [class_weights("effective_number", LONG_TAIL, beta)[-1].item() for beta in (0.0, 0.9, 0.999, 0.99999)]
    assert tail == sorted(tail) and tail[0] < tail[-1]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), n_classes=st.integers(1, 5), kind=st.sampled_from(KINDS), variance=st.sampled_from(READINGS))
def test_target_against_a_loop(seed, n_classes, kind, variance):
    rng = np.random.default_rng(seed)
    mean_KF, var_KF = rng.normal(0, 2, (n_classes, 3)), rng.uniform(0, 2, (n_classes, 3))
    count_K = rng.integers(1, 100, n_classes)
    weight_K = class_weights(kind, torch.from_numpy(count_K), 0.9)
    got = mixture_moments(torch.from_numpy(mean_KF), torch.from_numpy(var_KF), weight_K, variance)
    expected = reference.global_target(mean_KF, var_KF, reference.class_weights(kind, count_K, 0.9), variance)
    for got_F, expected_F in zip(got, expected, strict=True):
        np.testing.assert_allclose(got_F.numpy(), expected_F, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", READINGS)
def test_targets_do_not_shrink_on_unbalanced_data(kind, variance):
    """Pitfall 11: divided by the size of the balanced set, the target of CIFAR-10-LT at IF 100 came out at a quarter."""
    mean_KF, var_KF = torch.full((10, 2), 3.0, dtype=torch.float64), torch.full((10, 2), 0.7, dtype=torch.float64)
    mean_F, var_F = mixture_moments(mean_KF, var_KF, class_weights(kind, LONG_TAIL), variance)
    assert mean_F.tolist() == pytest.approx([3.0, 3.0]) and var_F.tolist() == pytest.approx([0.7, 0.7])


def test_uniform_weights_ignore_how_many_images_a_class_has():
    mean_KF, var_KF = torch.randn(10, 3, dtype=torch.float64), torch.rand(10, 3, dtype=torch.float64)
    balanced = mixture_moments(mean_KF, var_KF, class_weights("uniform", torch.full((10,), 50)), "mixture")
    unbalanced = mixture_moments(mean_KF, var_KF, class_weights("uniform", LONG_TAIL), "mixture")
    assert torch.equal(balanced[0], unbalanced[0]) and torch.equal(balanced[1], unbalanced[1])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_the_mixture_has_the_moments_of_a_sample_with_those_class_shares(seed):
    """`uniform`: every class equally often; `sample`: the classes as often as they come. mean_of_classes is smaller wherever class means differ."""
    rng = np.random.default_rng(seed)
    values = [rng.normal(rng.normal(0, 3), rng.uniform(0.1, 2), n) for n in (60, 20, 5)]
    mean_KF = torch.tensor([[v.mean()] for v in values])
    var_KF = torch.tensor([[v.var()] for v in values])
    count_K = torch.tensor([len(v) for v in values])
    balanced = np.concatenate([np.tile(v, 60 // len(v)) for v in values])
    for kind, sample in (("uniform", balanced), ("sample", np.concatenate(values))):
        mean_F, var_F = mixture_moments(mean_KF, var_KF, class_weights(kind, count_K), "mixture")
        assert mean_F.item() == pytest.approx(sample.mean(), abs=1e-9) and var_F.item() == pytest.approx(sample.var(), rel=1e-9)
        assert mixture_moments(mean_KF, var_KF, class_weights(kind, count_K), "mean_of_classes")[1].item() < sample.var()
