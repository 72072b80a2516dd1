"""Class moments of a real network's layers against every pixel they were given.

Legend: N images, B batch, K classes of a unit, A all classes, F channels, L layers.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import targets as reference_targets
from reference.moments import exact_class_moments, running_class_moments

from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert
from ray_ltdd.stages.calibrate import (
    CalibrateConfig,
    MomentsConfig,
    alignment_targets,
    check_layers,
    class_batches,
    class_moments,
    resolve_layers,
)
from ray_ltdd.statistics.observe import observing
from ray_ltdd.statistics.schedules import MomentumConfig
from ray_ltdd.statistics.targets import class_weights, mixture_moments

BACKEND = Backend(torch.device("cpu"), torch.float32, "off")
COUNT_A = [13, 6, 3, 1]
CLASSES = [0, 1, 2, 3]


def build_observer(normalization="batch"):
    observer = build_expert(ModelConfig(width=3, depth=2, normalization=normalization), 8, 3, 4, [0.4, 0.5, 0.6], [0.2] * 3, 1)
    rng = torch.Generator().manual_seed(0)
    for module in observer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(3, generator=rng))
            module.running_var.copy_(torch.rand(3, generator=rng) + 0.5)
    return observer.requires_grad_(False).eval()


def build_bank():
    """Images of very different brightness, in an order that mixes the classes."""
    rng = np.random.default_rng(0)
    label_N = rng.permutation(np.repeat(CLASSES, COUNT_A))
    level_N = rng.integers(20, 180, len(label_N))
    image_NCHW = (level_N[:, None, None, None] + rng.integers(0, 60, (len(label_N), 3, 8, 8))).astype(np.uint8)
    return ImageBank(image_NCHW, label_N, np.arange(len(label_N)), BACKEND.device)


def moments(bank, classes=CLASSES, batch_size=5, momentum=None, seed=0, advance=lambda _: None):
    config = MomentsConfig(layers="batch_norm", momentum=momentum or MomentumConfig(), batch_size=batch_size)
    with observing(build_observer(), "batch_norm", BACKEND) as observe:
        return class_moments(config, observe, bank, classes, BACKEND, seed, advance)


def layer_inputs(bank):
    """What every batch-norm layer is given for every image, one image at a time."""
    observer, inputs = build_observer(), {}
    for name, module in observer.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0][0].double().numpy()))
    for n in range(len(bank)):
        observer(bank.take(torch.tensor([n])))
    return {name: np.stack(images) for name, images in inputs.items()}


@pytest.fixture(scope="module")
def bank():
    return build_bank()


@pytest.fixture(scope="module")
def inputs(bank):
    return layer_inputs(bank)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_moments_are_those_of_everything_the_layers_were_given(bank, inputs, batch_size):
    """Eq. 8, pitfalls 12, 14 and 20: batches of 5 and 64 have placeholders."""
    payload = moments(bank, batch_size=batch_size, seed=batch_size)
    assert payload.record == {"layers": list(inputs), "classes": CLASSES}
    assert payload.tensors["count"].tolist() == COUNT_A
    assert set(payload.tensors) == {"count"} | {f"{name}/{part}" for name in inputs for part in ("mean", "var")}
    for name, x_NFHW in inputs.items():
        expected = exact_class_moments(x_NFHW, bank.label_N.tolist(), 4)
        for part, expected_KF in zip(("mean", "var"), expected, strict=True):
            got_KF = payload.tensors[f"{name}/{part}"]
            assert got_KF.dtype == torch.float64
            np.testing.assert_allclose(got_KF.numpy(), expected_KF, rtol=2e-5, atol=1e-6)


def test_an_order_dependent_schedule_goes_through_each_class_in_batches_of_its_own(bank, inputs):
    momentum = MomentumConfig(schedule="constant", value=0.3)
    payload = moments(bank, batch_size=5, momentum=momentum)
    batches = list(class_batches(bank.label_N, CLASSES, 5, 0))
    for name, x_NFHW in inputs.items():
        expected = running_class_moments([(x_NFHW[p.numpy()], r.numpy()) for p, r in batches], 4, "constant", 0.3)
        np.testing.assert_allclose(payload.tensors[f"{name}/mean"].numpy(), expected[0], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(payload.tensors[f"{name}/var"].numpy(), expected[1], rtol=2e-4, atol=1e-6)
    exact = moments(bank).tensors
    assert any((payload.tensors[key] - exact[key]).abs().max() > 1e-3 for key in exact if key != "count")


@pytest.mark.parametrize("units", [[[0], [1], [2], [3]], [[3, 1], [0, 2]], [[2], [0, 1, 3]]])
@pytest.mark.parametrize("momentum", [MomentumConfig(), MomentumConfig(schedule="constant", value=0.3)])
def test_a_class_does_not_depend_on_which_classes_share_its_unit(bank, units, momentum):
    together = moments(bank, momentum=momentum).tensors
    parts = [(classes, moments(bank, classes, momentum=momentum).tensors) for classes in units]
    for name, tensor in together.items():
        for classes, part in parts:
            torch.testing.assert_close(part[name], tensor[list(classes)], rtol=1e-6, atol=1e-6)


def test_the_same_unit_twice_gives_the_same_bytes_and_progress_counts_images(bank):
    done = []
    first, again = moments(bank, advance=done.append).tensors, moments(bank).tensors
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert sum(done) == sum(COUNT_A)


@settings(deadline=None, max_examples=60)
@given(count_K=st.lists(st.integers(1, 20), min_size=1, max_size=6), batch_size=st.integers(1, 25), seed=st.integers(0, 100))
def test_passes_show_every_image_once_in_one_shape_and_split_no_piece(count_K, batch_size, seed):
    order = torch.randperm(sum(count_K), generator=torch.Generator().manual_seed(seed))
    label_N = torch.cat([torch.full((n,), k) for k, n in enumerate(count_K)])[order]
    classes = list(range(len(count_K)))[::-1]
    seen, pieces = [], {label: [] for label in classes}
    for position_B, row_B in class_batches(label_N, classes, batch_size, seed):
        assert position_B.shape == row_B.shape == (batch_size,)
        real_B = row_B >= 0
        assert not bool(real_B[int(real_B.sum()) :].any()), "placeholders stand at the end"
        assert label_N[position_B[real_B]].tolist() == [classes[row] for row in row_B[real_B].tolist()]
        seen += position_B[real_B].tolist()
        for row in row_B[real_B].unique().tolist():
            pieces[classes[row]].append(int((row_B == row).sum()))
    assert sorted(seen) == list(range(len(label_N)))
    for label, n in enumerate(count_K):
        # a class in whole batches and a remainder; two pieces of one class never share a pass, since they would not fit
        assert sorted(pieces[label], reverse=True) == [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)


def test_the_order_inside_a_class_follows_seed_and_class_only():
    label_N = torch.tensor([0, 1] * 20)

    def order(classes, seed, label):
        passes = class_batches(label_N, classes, 7, seed)
        return [p for position_B, row_B in passes for p in position_B[row_B == classes.index(label)].tolist()]

    assert order([0, 1], 0, 1) == order([1], 0, 1) == order([1, 0], 0, 1)
    assert order([0, 1], 0, 1) != order([0, 1], 1, 1) and order([0], 0, 0) != sorted(order([0], 0, 0))
    assert [p // 2 for p in order([0], 0, 0)] != [p // 2 for p in order([1], 0, 1)]


@pytest.mark.parametrize("weights", ["uniform", "sample", "effective_number"])
@pytest.mark.parametrize("variance", ["mean_of_classes", "mixture"])
def test_targets_against_a_loop(weights, variance):
    """Eq. 9 is formed (pitfall 13), from all classes; the class targets are the unit's own rows."""
    rng = np.random.default_rng(0)
    moments_A = {"count": torch.tensor(COUNT_A)}
    for name in ("x", "y"):
        moments_A |= {f"{name}/mean": torch.from_numpy(rng.normal(0, 2, (4, 3))), f"{name}/var": torch.from_numpy(rng.uniform(0, 2, (4, 3)))}
    named = {name: value for name, value in moments_A.items() if name != "count"}
    units = [[2], [0, 3], [1]]
    weight = class_weights(weights, torch.tensor(COUNT_A), 0.9)
    whole = mixture_moments(lambda: ((unit, {name: value[unit] for name, value in named.items()}) for unit in units), weight, variance)
    targets = alignment_targets({name: value[[3, 1]] for name, value in named.items()}, whole, ["x", "y"], [10.0, 1.0], BACKEND.device)
    assert [target.weight for target in targets] == [10.0, 1.0]
    weight_A = reference_targets.class_weights(weights, COUNT_A, 0.9)
    for name, target in zip(("x", "y"), targets, strict=True):
        mean_AF, var_AF = moments_A[f"{name}/mean"], moments_A[f"{name}/var"]
        expected = reference_targets.global_target(mean_AF.numpy(), var_AF.numpy(), weight_A, variance)
        for got_F, expected_F in zip(target.global_moments, expected, strict=True):
            assert got_F.dtype == torch.float32
            np.testing.assert_allclose(got_F.numpy(), expected_F, rtol=1e-5, atol=1e-6)
        assert torch.equal(target.class_moments[0], mean_AF[[3, 1]].float())
        assert torch.equal(target.class_moments[1], var_AF[[3, 1]].float())


def test_the_global_target_is_not_the_observers_running_estimate(bank, inputs):
    """Pitfall 13: the biased running mean and variance of the network itself were the target."""
    payload = moments(bank)
    layers = payload.record["layers"]
    named = {name: value for name, value in payload.tensors.items() if name != "count"}
    whole = mixture_moments(lambda: [(CLASSES, named)], class_weights("uniform", payload.tensors["count"]), "mixture")
    targets = alignment_targets(named, whole, layers, [1.0] * len(layers), BACKEND.device)
    for name, target in zip(layers, targets, strict=True):
        per_class = [exact_class_moments(inputs[name], np.where(bank.label_N.numpy() == k, 0, -1), 1)[0][0] for k in CLASSES]
        np.testing.assert_allclose(target.global_moments[0].numpy(), np.mean(per_class, axis=0), rtol=1e-4, atol=1e-5)
        running = build_observer().get_submodule(name).running_mean
        assert (target.global_moments[0] - running).abs().max() > 0.05


def test_weights_of_layers_the_observer_has_not_are_refused_before_training():
    check_layers(CalibrateConfig(layers="batch_norm"), ["encoder.blocks.0.1"], build_observer())
    with pytest.raises(InputError, match=r"recover.layer_weights: the observer has no monitored layer 'conv1': choose among encoder\."):
        check_layers(CalibrateConfig(), ["conv1"], build_observer())
    with pytest.raises(InputError, match="no batch_norm layer to monitor"):
        check_layers(CalibrateConfig(layers="batch_norm"), [], build_observer(normalization="instance"))


@pytest.mark.parametrize(
    ("normalization", "asked", "resolved"),
    [("batch", "auto", "batch_norm"), ("instance", "auto", "all"), ("none", "auto", "all"), ("batch", "convolution", "convolution")],
)
def test_auto_monitors_batch_norm_where_there_is_one(normalization, asked, resolved):
    """Pitfall 17."""
    assert resolve_layers(CalibrateConfig(layers=asked), build_observer(normalization)) == resolved
