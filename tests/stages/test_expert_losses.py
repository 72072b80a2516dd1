"""The experts' losses against loops over numbers.

Legend: N images, K classes, P projection.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import losses as reference

from ray_ltdd.stages.expert_losses import debiased_share, inverse_frequency_weights, mixed_cross_entropy, robust_loss

LONG_TAIL = [5000, 1500, 400, 50]


def draw_vectors(seed, n=4, p=6):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn((n, p), generator=rng, requires_grad=True) for _ in range(4)]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_robust_loss_against_a_loop(seed):
    vectors = draw_vectors(seed)
    loss = robust_loss(*vectors).item()
    assert loss == pytest.approx(reference.robust(*[v.tolist() for v in vectors]), abs=1e-5)
    assert -2 <= loss <= 2


def test_robust_loss_pairs_each_prediction_with_the_other_views_projection():
    p_1, z_1, p_2, z_2 = (torch.zeros(1, 4) for _ in range(4))
    p_1[0, 0] = z_2[0, 0] = 1
    p_2[0, 1] = z_1[0, 1] = 1
    assert robust_loss(p_1, z_1, p_2, z_2).item() == pytest.approx(-2.0)
    assert robust_loss(p_1, z_2, p_2, z_1).item() == pytest.approx(0.0)


def test_the_stop_gradient_is_on_the_projection():
    """Pitfall 9: printed on the prediction, it would leave nothing to learn from but the target."""
    prediction_1, projection_1, prediction_2, projection_2 = draw_vectors(0)
    robust_loss(prediction_1, projection_1, prediction_2, projection_2).backward()
    for projection in (projection_1, projection_2):
        assert projection.grad is None or projection.grad.abs().sum() == 0
    for prediction in (prediction_1, prediction_2):
        assert bool((prediction.grad.abs().sum(1) > 0).all())


@settings(deadline=None, max_examples=40)
@given(count_K=st.lists(st.integers(1, 5000), min_size=1, max_size=8), exponent=st.floats(0, 3))
def test_class_weights_against_a_loop_and_sum_to_the_number_of_classes(count_K, exponent):
    """Pitfall 10."""
    weight_K = inverse_frequency_weights(torch.tensor(count_K), exponent)
    assert weight_K.dtype == torch.float32
    np.testing.assert_allclose(weight_K.numpy(), reference.class_weights(count_K, exponent), rtol=1e-5)
    assert weight_K.sum().item() == pytest.approx(len(count_K), rel=1e-5)


def test_class_weights_favour_the_tail_and_are_one_without_exponent():
    weight_K = inverse_frequency_weights(torch.tensor(LONG_TAIL), 0.8).tolist()
    assert weight_K == sorted(weight_K) and weight_K[3] / weight_K[0] == pytest.approx(100**0.8, rel=1e-4)
    assert inverse_frequency_weights(torch.tensor(LONG_TAIL), 0.0).tolist() == [1.0] * 4


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), weighted=st.booleans())
def test_mixed_cross_entropy_against_a_loop(seed, weighted):
    rng = np.random.default_rng(seed)
    logit_NK, lambda_N = rng.normal(0, 3, (5, 4)).astype(np.float32), rng.uniform(0, 1, 5).astype(np.float32)
    first_N, second_N = rng.integers(0, 4, 5), rng.integers(0, 4, 5)
    weight_K = reference.class_weights(LONG_TAIL, 0.8) if weighted else np.ones(4)
    given_weight = torch.tensor(weight_K, dtype=torch.float32) if weighted else None
    got = mixed_cross_entropy(*(torch.from_numpy(a) for a in (logit_NK, first_N, second_N, lambda_N)), given_weight)
    assert got.item() == pytest.approx(reference.mixed_cross_entropy(logit_NK, first_N, second_N, lambda_N, weight_K), rel=1e-5)


def test_an_unmixed_image_counts_its_own_label_only_and_the_mean_is_over_images():
    logit_NK = torch.randn(6, 4)
    label_N, other_N = torch.tensor([3, 3, 3, 3, 3, 3]), torch.zeros(6, dtype=torch.int64)
    weight_K = torch.tensor([0.1, 0.2, 0.7, 3.0])
    plain = torch.nn.functional.cross_entropy(logit_NK, label_N)
    torch.testing.assert_close(mixed_cross_entropy(logit_NK, label_N, other_N, torch.ones(6)), plain)
    torch.testing.assert_close(mixed_cross_entropy(logit_NK, other_N, label_N, torch.zeros(6)), plain)
    torch.testing.assert_close(mixed_cross_entropy(logit_NK, label_N, label_N, torch.rand(6), weight_K), 3 * plain)


@pytest.mark.parametrize("n_steps", [2, 3, 200])
def test_alpha_grows_with_the_square_of_the_step_from_zero_to_one(n_steps):
    """Pitfall 8: it advanced once an epoch."""
    alpha = [debiased_share(step, n_steps) for step in range(n_steps)]
    assert alpha[0] == 0.0 and alpha[-1] == 1.0
    assert alpha == pytest.approx([(t / (n_steps - 1)) ** 2 for t in range(n_steps)])
    assert len(set(alpha)) == n_steps


def test_alpha_of_a_training_of_one_step():
    assert debiased_share(0, 1) == 0.0
