"""Alignment terms and smoothing against loops.

Legend: K classes of the unit, A all classes, F channels, L layers.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import alignment as reference

from ray_ltdd.statistics.alignment import ClassSums, LayerTarget, SmoothedMoments, class_alignment, global_alignment

READINGS = ("mean_of_classes", "mixture")


def draw_moments(rng, rows, n_features=3):
    mean = torch.from_numpy(rng.normal(0, 1, (rows, n_features))).float()
    return mean, torch.from_numpy(rng.uniform(0.1, 2, (rows, n_features))).float()


def draw_problem(seed, n_own, n_all, n_layers):
    rng = np.random.default_rng(seed)
    synthetic_L = [draw_moments(rng, n_own) for _ in range(n_layers)]
    others_L = [draw_moments(rng, n_all) for _ in range(n_layers)]
    own = rng.permutation(n_all)[:n_own].tolist()
    weights = rng.uniform(0.5, 10, n_layers).tolist()
    targets = []
    for weight in weights:
        whole = draw_moments(rng, 1)
        targets.append(LayerTarget(draw_moments(rng, n_own), (whole[0][0], whole[1][0]), weight))
    return synthetic_L, others_L, own, targets


def rest_of(others_L, own, targets):
    """What the exchange tells the unit: sums over all classes less its own, about the targets' means."""
    sums = []
    for (mean_AF, var_AF), target in zip(others_L, targets, strict=True):
        origin_F = target.global_moments[0].double()
        whole = ClassSums.of(mean_AF.double(), var_AF.double(), origin_F)
        sums.append(whole.plus(ClassSums.of(mean_AF[own].double(), var_AF[own].double(), origin_F), -1).to(torch.device("cpu")))
    return sums


def as_numpy(moments_L):
    return [(mean.detach().numpy(), var.detach().numpy()) for mean, var in moments_L]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), n_own=st.integers(1, 4), n_layers=st.integers(1, 3))
def test_class_term_against_a_loop(seed, n_own, n_layers):
    synthetic_L, _, _, targets = draw_problem(seed, n_own, 5, n_layers)
    expected = reference.class_term(as_numpy(synthetic_L), as_numpy([t.class_moments for t in targets]), [t.weight for t in targets])
    assert class_alignment(synthetic_L, targets).item() == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), n_own=st.integers(1, 4), n_layers=st.integers(1, 3), variance=st.sampled_from(READINGS))
def test_global_term_against_a_loop(seed, n_own, n_layers, variance):
    synthetic_L, others_L, own, targets = draw_problem(seed, n_own, 5, n_layers)
    whole = as_numpy([t.global_moments for t in targets])
    expected = reference.global_term(as_numpy(synthetic_L), as_numpy(others_L), own, whole, [t.weight for t in targets], variance)
    got = global_alignment(synthetic_L, rest_of(others_L, own, targets), targets, variance)
    assert got.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("variance", READINGS)
def test_the_units_own_rows_of_the_exchanged_moments_are_not_used(variance):
    synthetic_L, others_L, own, targets = draw_problem(1, 2, 5, 2)
    before = global_alignment(synthetic_L, rest_of(others_L, own, targets), targets, variance)
    changed = [(mean.index_fill(0, torch.tensor(own), 1e4), var.index_fill(0, torch.tensor(own), 1e4)) for mean, var in others_L]
    assert global_alignment(synthetic_L, rest_of(changed, own, targets), targets, variance).item() == pytest.approx(before.item(), rel=1e-6)
    stranger = next(k for k in range(5) if k not in own)
    others_L[0][0][stranger] += 1
    assert not torch.equal(before, global_alignment(synthetic_L, rest_of(others_L, own, targets), targets, variance))


def test_each_class_is_matched_to_its_own_target():
    """Pitfall 21: two classes that swap their statistics have the right batch statistics, and are far from aligned."""
    mean_KF, var_KF = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [2.0]])
    target = LayerTarget((mean_KF, var_KF), (mean_KF.mean(0), var_KF.mean(0)), 1.0)
    swapped = [(mean_KF.flip(0), var_KF.flip(0))]
    assert class_alignment([(mean_KF, var_KF)], [target]).item() < 1e-5
    assert class_alignment(swapped, [target]).item() == pytest.approx(5.0)
    assert global_alignment(swapped, rest_of(swapped, [0, 1], [target]), [target], "mean_of_classes").item() < 1e-5


def test_a_unit_of_one_class_is_not_pulled_to_the_global_target():
    """Pitfall 22: class-major batches matched to the global target; here the whole balanced set is what is matched."""
    mean_AF, var_AF = torch.tensor([[-3.0], [0.0], [6.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    global_mean_F, global_var_F = mean_AF.mean(0), var_AF.mean(0) + mean_AF.var(0, unbiased=False)
    for own in range(3):
        moments = (mean_AF[own : own + 1], var_AF[own : own + 1])
        target = LayerTarget(moments, (global_mean_F, global_var_F), 1.0)
        others = (mean_AF.index_fill(0, torch.tensor([own]), 99.0), var_AF.index_fill(0, torch.tensor([own]), 99.0))
        assert global_alignment([moments], rest_of([others], [own], [target]), [target], "mixture").item() < 1e-4
        assert class_alignment([moments], [target]).item() < 1e-4


@pytest.mark.parametrize("variance", READINGS)
def test_gradients_are_finite_at_zero_distance(variance):
    mean_KF, var_KF = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[0.5, 0.25]], requires_grad=True)
    exact = (mean_KF.detach(), var_KF.detach())
    target = LayerTarget(exact, (exact[0][0], exact[1][0]), 1.0)
    nothing = ClassSums(torch.zeros(2), torch.zeros(2), torch.zeros(2), 0)
    loss = class_alignment([(mean_KF, var_KF)], [target])
    loss = loss + global_alignment([(mean_KF, var_KF)], [nothing], [target], variance)
    gradients = torch.autograd.grad(loss, [mean_KF, var_KF])
    assert loss.item() < 1e-5 and all(bool(g.isfinite().all()) for g in gradients)


def test_the_global_gradient_is_that_of_the_distance():
    synthetic_L, others_L, own, targets = draw_problem(7, 2, 4, 1)
    mean_KF = synthetic_L[0][0].requires_grad_(True)
    loss = global_alignment(synthetic_L, rest_of(others_L, own, targets), targets, "mean_of_classes")
    (gradient,) = torch.autograd.grad(loss, mean_KF)
    mean_AF = others_L[0][0].clone()
    mean_AF[own] = mean_KF.detach()
    gap_F = mean_AF.mean(0) - targets[0].global_moments[0]
    torch.testing.assert_close(gradient, (targets[0].weight * gap_F / gap_F.norm() / 4).expand(2, -1), rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), momentum=st.floats(0, 0.99), n_steps=st.integers(1, 6))
def test_smoothing_against_a_loop(seed, momentum, n_steps):
    rng = np.random.default_rng(seed)
    batches = [[draw_moments(rng, 2), draw_moments(rng, 2)] for _ in range(n_steps)]
    smoothing = SmoothedMoments(momentum)
    for batch in batches:
        out = smoothing.update(batch)
    for layer in range(2):
        for part in range(2):
            expected = reference.smoothed([batch[layer][part].double().numpy() for batch in batches], momentum)
            np.testing.assert_allclose(out[layer][part].numpy(), expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(out[layer][part], smoothing.state[layer][part])


def test_smoothing_starts_at_the_first_batch_and_anew_for_a_new_unit():
    """Pitfall 23: it started at zero and ran on into batches of other classes."""
    first, second = (torch.full((1, 2), 3.0), torch.full((1, 2), 0.5)), (torch.full((1, 2), -8.0), torch.full((1, 2), 9.0))
    for batch in (first, second):
        ((mean_KF, var_KF),) = SmoothedMoments(0.8).update([batch])
        assert torch.equal(mean_KF, batch[0]) and torch.equal(var_KF, batch[1])


def test_smoothing_passes_gradients_to_the_current_batch_only():
    old, new = (torch.full((1, 2), value, requires_grad=True) for value in (1.0, 2.0))
    smoothing = SmoothedMoments(0.8)
    ((first_KF, _),) = smoothing.update([(old, old.detach())])
    assert torch.autograd.grad(first_KF.sum(), old)[0].tolist() == [[1.0, 1.0]]
    ((second_KF, _),) = smoothing.update([(new, new.detach())])
    gradient_old, gradient_new = torch.autograd.grad(second_KF.sum(), [old, new], allow_unused=True)
    assert gradient_old is None and gradient_new.tolist() == [[pytest.approx(0.2)] * 2]
    assert not any(part.requires_grad for part in smoothing.state[0])


def test_smoothing_continues_from_its_state():
    batches = [[draw_moments(np.random.default_rng(i), 2)] for i in range(5)]
    whole, first = SmoothedMoments(0.7), SmoothedMoments(0.7)
    for batch in batches:
        expected = whole.update(batch)
    for batch in batches[:2]:
        first.update(batch)
    second = SmoothedMoments(0.7, first.state)
    for batch in batches[2:]:
        got = second.update(batch)
    assert torch.equal(expected[0][0], got[0][0]) and torch.equal(expected[0][1], got[0][1])
