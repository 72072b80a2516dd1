"""Batch norm of training by our kernel against torch's own in float64.

Shapes: N images, C channels, H x W pixels.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from ray_ltdd.kernels import build, serving
from ray_ltdd.kernels.batch_norm import batch_norm
from ray_ltdd.models import normalization
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert
from ray_ltdd.models.normalization import BatchNorm, norm_relu

pytestmark = pytest.mark.skipif(build.library() is None, reason="needs a C compiler")


def close(ours, reference, tolerance=2e-5):
    return (ours.double() - reference).abs().max().item() <= tolerance * (reference.abs().max().item() + 1e-12)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 6),
    channels=st.sampled_from([16, 32, 48, 64, 128]),
    height=st.integers(1, 9),
    width=st.integers(2, 9),
    relu=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_batch_norm_and_its_gradients_are_torchs(n, channels, height, width, relu, last, seed):
    # of two values a channel the gradient is zero but for epsilon, see below
    assume(n * height * width > 2)
    rng = torch.Generator().manual_seed(seed)
    memory = torch.channels_last if last else torch.contiguous_format
    map_NCHW = (torch.randn(n, channels, height, width, generator=rng) * 3 + 5).contiguous(memory_format=memory).requires_grad_()
    scale_C = (torch.rand(channels, generator=rng) - 0.3).requires_grad_()
    shift_C = torch.randn(channels, generator=rng).requires_grad_()
    gradient_NCHW = torch.randn(n, channels, height, width, generator=rng)
    exact = [t.detach().double().requires_grad_() for t in (map_NCHW, scale_C, shift_C)]
    normal_NCHW = F.batch_norm(exact[0], None, None, exact[1], exact[2], training=True)
    # where a value is zero up to rounding, either side of the ReLU is right
    assume(not relu or normal_NCHW.abs().min() > 1e-5)
    # few values may be nearly alike: their gradient is a difference of large numbers, in torch's float32 as here
    assume(exact[0].var((0, 2, 3)).min() > 0.1)
    reference_NCHW = F.relu(normal_NCHW) if relu else normal_NCHW
    reference = [reference_NCHW, *torch.autograd.grad(reference_NCHW, exact, gradient_NCHW.double())]
    out_NCHW, mean_C, var_C = batch_norm(map_NCHW, scale_C, shift_C, 1e-5, relu)
    ours = [out_NCHW, *torch.autograd.grad(out_NCHW, (map_NCHW, scale_C, shift_C), gradient_NCHW)]
    assert all(close(a, b, 1e-4) for a, b in zip(ours, reference, strict=True))
    assert close(mean_C, exact[0].mean((0, 2, 3))) and close(var_C, exact[0].var((0, 2, 3), correction=0))


def test_two_values_a_channel_have_next_to_no_gradient():
    """They normalise to 1 and -1, wherever they are."""
    rng = torch.Generator().manual_seed(0)
    map_NCHW = (torch.randn(1, 16, 1, 2, generator=rng) + torch.tensor([0.0, 9.0])).requires_grad_()
    gradient_NCHW = torch.randn(1, 16, 1, 2, generator=rng)
    out_NCHW = batch_norm(map_NCHW, torch.ones(16), torch.zeros(16), 1e-5, False)[0]
    assert out_NCHW.detach().abs().sub(1).abs().max() < 1e-4
    assert torch.autograd.grad(out_NCHW, map_NCHW, gradient_NCHW)[0].abs().max() < 1e-4


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance():
    map_NCHW = torch.randn(64, 16, 8, 8, generator=torch.Generator().manual_seed(0)) + 1000
    _, _, var_C = batch_norm(map_NCHW, torch.ones(16), torch.zeros(16), 1e-5, False)
    torch.testing.assert_close(var_C.double(), map_NCHW.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("relu", [False, True])
def test_the_layer_is_torchs_with_its_running_estimates(relu):
    ours, torchs = BatchNorm(32), nn.BatchNorm2d(32)
    rng = torch.Generator().manual_seed(0)
    for step in range(3):
        map_NCHW = torch.randn(5, 32, 4, 3, generator=rng) * 2 + step
        assert ours.kernel_serves(map_NCHW)
        expected = F.relu(torchs(map_NCHW)) if relu else torchs(map_NCHW)
        torch.testing.assert_close(norm_relu(ours, map_NCHW) if relu else ours(map_NCHW), expected, rtol=1e-4, atol=1e-5)
    assert ours.num_batches_tracked == 3
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    ours.eval(), torchs.eval()
    torch.testing.assert_close(norm_relu(ours, map_NCHW), F.relu(torchs(map_NCHW)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "map_NCHW"),
    [
        (BatchNorm(16).eval(), torch.rand(2, 16, 4, 4)),
        (BatchNorm(10), torch.rand(2, 10, 4, 4)),
        (BatchNorm(16).double(), torch.rand(2, 16, 4, 4, dtype=torch.float64)),
    ],
    ids=["running estimates", "ten channels", "float64"],
)
def test_what_the_kernel_does_not_take_goes_to_torch(layer, map_NCHW):
    assert not layer.kernel_serves(map_NCHW)
    expected = nn.BatchNorm2d(layer.num_features, dtype=map_NCHW.dtype).train(layer.training)
    assert torch.equal(layer(map_NCHW), expected(map_NCHW)) and torch.equal(norm_relu(layer, map_NCHW), F.relu(layer(map_NCHW)))


@pytest.mark.parametrize(
    ("shape", "error", "sentence"),
    [
        ((1, 16, 1, 1), ValueError, "more than 1 value per channel"),
        ((2, 32, 4, 4), RuntimeError, "should contain 32 elements"),
        ((2, 16), ValueError, "expected 4D input"),
    ],
)
def test_what_torch_refuses_is_refused(shape, error, sentence):
    with pytest.raises(error, match=sentence):
        BatchNorm(16)(torch.rand(shape))


def test_who_watches_the_layer_in_training_sees_its_input():
    layer, map_NCHW, seen = BatchNorm(16), torch.rand(2, 16, 4, 4), []
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    out_NCHW = norm_relu(layer, map_NCHW)
    assert seen[0] is map_NCHW and (out_NCHW >= 0).all()


def test_what_is_no_number_stays_visible():
    map_NCHW = torch.rand(2, 32, 4, 4)
    map_NCHW[0, 3, 0, 0] = float("nan")
    out_NCHW = norm_relu(BatchNorm(32), map_NCHW)
    assert out_NCHW[:, 3].isnan().all() and not out_NCHW[:, :3].isnan().any()


def forward_and_backward(threads, relu):
    rng = torch.Generator().manual_seed(0)
    inputs = [torch.randn(9, 64, 7, 7, generator=rng), torch.rand(64, generator=rng), torch.randn(64, generator=rng)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = batch_norm(*(t.requires_grad_() for t in inputs), 1e-5, relu)
        return [*out, *torch.autograd.grad(out[0].cos().sum(), inputs)]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("relu", [False, True])
def test_every_number_of_threads_gives_the_same_bytes(relu):
    one = forward_and_backward(1, relu)
    for threads in (2, 3, 5):
        assert all(torch.equal(a, b) for a, b in zip(one, forward_and_backward(threads, relu), strict=True))


@pytest.mark.parametrize("architecture", ["resnet9", "resnet32", "resnet18", "convnet", "vgg11"])
def test_networks_are_trained_alike_with_and_without_the_kernel(architecture, monkeypatch):
    """One step's gradients and running estimates; deep networks enlarge float32's rounding."""
    with_relu = []
    monkeypatch.setattr(normalization, "batch_norm", lambda *given: with_relu.append(given[-1]) or batch_norm(*given))
    config = ModelConfig(architecture=architecture, normalization="batch", width=16 if architecture in ("resnet9", "resnet32", "convnet") else None)
    ours = build_expert(config, 16, 3, 10, [0.5] * 3, [0.2] * 3, 0).train()
    other = copy.deepcopy(ours)
    image_NCHW = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ours(image_NCHW).square().mean().backward()
    assert len(with_relu) == sum(isinstance(module, BatchNorm) for module in ours.modules())
    assert sum(with_relu) == {"resnet9": 8, "resnet32": 16, "resnet18": 0, "convnet": 3, "vgg11": 8}[architecture]
    with serving.switched_off():
        other(image_NCHW).square().mean().backward()
    for (name, a), b in zip(ours.named_parameters(), other.parameters(), strict=True):
        if a.grad is not None:
            assert (a.grad - b.grad).norm() <= 0.02 * b.grad.norm() + 1e-5, name
    for (name, a), b in zip(ours.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_the_kernel_stands_in_compiled_code():
    config = ModelConfig(architecture="resnet9", normalization="batch", width=16)
    eager = build_expert(config, 16, 3, 10, [0.5] * 3, [0.2] * 3, 0).train()
    compiled = copy.deepcopy(eager)
    image_NCHW = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    eager(image_NCHW).square().sum().backward()
    torch.compile(lambda image_NCHW: compiled(image_NCHW).square().sum(), fullgraph=True)(image_NCHW).backward()
    for (name, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        assert a.grad is None or (a.grad - b.grad).norm() <= 1e-3 * a.grad.norm() + 1e-6, name
    for (name, a), b in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
