"""The kernels against torch's own operators in float64, their refusals, and the same bytes for every number of threads.

Shapes: N images, I input and O output channels, H x W pixels.
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from ray_ltdd.kernels import build, ops, serving
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.convnet import ConvBlock
from ray_ltdd.models.convolution import Conv3x3, Convolution, use_own_kernels
from ray_ltdd.models.expert import build_expert
from ray_ltdd.models.monitor import capture_inputs, monitored_layers

pytestmark = pytest.mark.skipif(build.library() is None, reason="needs a C compiler")

SIZES = st.tuples(
    st.integers(1, 5),
    st.sampled_from([1, 2, 3, 4, 16, 32, 48, 64]),
    st.sampled_from([16, 32, 64, 80]),
    st.integers(3, 18),
    st.integers(3, 18),
)
MANY_TILES = (9, 64, 64, 17, 18)
"""225 tiles: more than the weights' gradient takes in at a time, and an odd number; several panels on both sides."""


def close(ours, reference, tolerance=2e-5):
    """Winograd's way trades a digit of float32 for speed; a wrong index is off by the whole value."""
    scale = reference.abs().max().item() + 1e-12
    return (ours.double() - reference).abs().max().item() <= tolerance * scale


@settings(deadline=None, max_examples=60)
@example(size=MANY_TILES, with_bias=True, channels_last=True, seed=0)
@given(size=SIZES, with_bias=st.booleans(), channels_last=st.booleans(), seed=st.integers(0, 1000))
def test_convolution_and_its_gradients_are_torchs(size, with_bias, channels_last, seed):
    n, n_in, n_out, height, width = size
    rng = torch.Generator().manual_seed(seed)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    map_NIHW = torch.randn(n, n_in, height, width, generator=rng).contiguous(memory_format=memory).requires_grad_()
    weight_OIHW = torch.randn(n_out, n_in, 3, 3, generator=rng).contiguous(memory_format=memory).requires_grad_()
    bias_O = torch.randn(n_out, generator=rng).requires_grad_() if with_bias else None
    gradient_NOHW = torch.randn(n, n_out, height, width, generator=rng)
    given_ = [t for t in (map_NIHW, weight_OIHW, bias_O) if t is not None]
    out_NOHW = ops.conv3x3(map_NIHW, weight_OIHW, bias_O)
    ours = [out_NOHW, *torch.autograd.grad(out_NOHW, given_, gradient_NOHW)]
    exact = [t.detach().double().requires_grad_() for t in given_]
    out_NOHW = F.conv2d(exact[0], exact[1], exact[2] if with_bias else None, padding=1)
    reference = [out_NOHW, *torch.autograd.grad(out_NOHW, exact, gradient_NOHW.double())]
    assert all(close(a, b) for a, b in zip(ours, reference, strict=True))


needs_bfloat16 = pytest.mark.skipif(not serving.multiply_bfloat16(), reason="needs a processor with AVX512-BF16")


def relative_error(ours, reference):
    return ((ours.double() - reference).norm() / (reference.norm() + 1e-12)).item()


@needs_bfloat16
@settings(deadline=None, max_examples=60)
@example(size=MANY_TILES, with_bias=True, seed=0)
@given(size=SIZES, with_bias=st.booleans(), seed=st.integers(0, 1000))
def test_products_of_bfloat16_values_err_by_few_percent(size, with_bias, seed):
    """1.2 % where there are many; a wrong word, tile or frequency would err by ten times as much. Odd numbers of tiles are among the sizes."""
    n, n_in, n_out, height, width = size
    rng = torch.Generator().manual_seed(seed)
    map_NIHW = torch.randn(n, n_in, height, width, generator=rng).requires_grad_()
    weight_OIHW = torch.randn(n_out, n_in, 3, 3, generator=rng).requires_grad_()
    bias_O = torch.randn(n_out, generator=rng).requires_grad_() if with_bias else None
    gradient_NOHW = torch.randn(n, n_out, height, width, generator=rng)
    given_ = [t for t in (map_NIHW, weight_OIHW, bias_O) if t is not None]
    with serving.bfloat16_products():
        out_NOHW = ops.conv3x3(map_NIHW, weight_OIHW, bias_O)
    # the gradient follows the forward pass, wherever it is computed
    ours = [out_NOHW, *torch.autograd.grad(out_NOHW, given_, gradient_NOHW)]
    exact = [t.detach().double().requires_grad_() for t in given_]
    out_NOHW = F.conv2d(exact[0], exact[1], exact[2] if with_bias else None, padding=1)
    reference = [out_NOHW, *torch.autograd.grad(out_NOHW, exact, gradient_NOHW.double())]
    errors = [relative_error(a, b) for a, b in zip(ours, reference, strict=True)]
    assert max(errors) < 0.025
    if n_in > serving.MOST_DIRECT_CHANNELS:
        assert min(errors[:3]) > 1e-3, "it did multiply bfloat16 values"


@needs_bfloat16
@settings(deadline=None, max_examples=40)
@given(size=SIZES.filter(lambda size: size[1] <= serving.MOST_DIRECT_CHANNELS), with_bias=st.booleans(), seed=st.integers(0, 1000))
def test_a_first_block_of_bfloat16_products_is_close_to_torchs(size, with_bias, seed):
    n, n_in, n_out, height, width = size
    rng = torch.Generator().manual_seed(seed)
    map_NIHW, weight_OIHW = torch.randn(n, n_in, height, width, generator=rng), torch.randn(n_out, n_in, 3, 3, generator=rng)
    # a positive shift keeps the ReLU open, whose jumps would turn rounding into larger differences
    bias_O = torch.randn(n_out, generator=rng) if with_bias else None
    scale_O, shift_O = torch.rand(n_out, generator=rng) + 0.5, torch.full((n_out,), 20.0)
    given_ = [map_NIHW.requires_grad_(), weight_OIHW.requires_grad_(), scale_O.requires_grad_(), shift_O.requires_grad_()]
    gradient_NOHW = torch.randn(n, n_out, height // 2, width // 2, generator=rng)
    exact = [t.detach().double().requires_grad_() for t in given_]
    normal_NOHW = F.group_norm(F.conv2d(exact[0], exact[1], padding=1), n_out, exact[2], exact[3], 1e-5)
    out_NOHW = F.avg_pool2d(F.relu(normal_NOHW), 2)
    reference = [out_NOHW, *torch.autograd.grad(out_NOHW, exact, gradient_NOHW.double())]
    with serving.bfloat16_products():
        out_NOHW = ops.first_block(map_NIHW, weight_OIHW, bias_O, scale_O, shift_O, 1e-5)
    ours = [out_NOHW, *torch.autograd.grad(out_NOHW, given_, gradient_NOHW)]
    assert max(relative_error(a, b) for a, b in zip(ours, reference, strict=True)) < 0.02


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 5), channels=st.sampled_from([16, 48, 128]), height=st.integers(3, 17), width=st.integers(3, 17), seed=st.integers(0, 1000))
def test_norm_relu_pool_and_its_gradients_are_torchs(n, channels, height, width, seed):
    rng = torch.Generator().manual_seed(seed)
    map_NCHW = (torch.randn(n, channels, height, width, generator=rng) * 3 + 5).requires_grad_()
    scale_C = (torch.rand(channels, generator=rng) + 0.5).requires_grad_()
    shift_C = torch.randn(channels, generator=rng).requires_grad_()
    gradient_NCHW = torch.randn(n, channels, height // 2, width // 2, generator=rng)
    exact = [t.detach().double().requires_grad_() for t in (map_NCHW, scale_C, shift_C)]
    normal_NCHW = F.group_norm(exact[0], channels, exact[1], exact[2], 1e-5)
    # where a value is zero up to rounding, either side of the ReLU is right
    assume(normal_NCHW.abs().min() > 1e-5)
    out_NCHW = F.avg_pool2d(F.relu(normal_NCHW), 2)
    reference = [out_NCHW, *torch.autograd.grad(out_NCHW, exact, gradient_NCHW.double())]
    out_NCHW = ops.norm_relu_pool(map_NCHW, scale_C, shift_C, 1e-5)
    ours = [out_NCHW, *torch.autograd.grad(out_NCHW, (map_NCHW, scale_C, shift_C), gradient_NCHW)]
    assert all(close(a, b) for a, b in zip(ours, reference, strict=True))


@settings(deadline=None, max_examples=40)
@given(size=SIZES.filter(lambda size: size[1] <= serving.MOST_DIRECT_CHANNELS), with_bias=st.booleans(), seed=st.integers(0, 1000))
def test_the_first_block_in_one_is_torchs(size, with_bias, seed):
    n, n_in, n_out, height, width = size
    rng = torch.Generator().manual_seed(seed)
    shapes = [(n, n_in, height, width), (n_out, n_in, 3, 3), (n_out,), (n_out,), (n_out,)]
    given_ = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]
    if not with_bias:
        given_[2] = None
    gradient_NOHW = torch.randn(n, n_out, height // 2, width // 2, generator=rng)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in given_]
    normal_NOHW = F.group_norm(F.conv2d(*exact[:3], padding=1), n_out, *exact[3:], 1e-5)
    assume(normal_NOHW.abs().min() > 1e-5)
    out_NOHW = F.avg_pool2d(F.relu(normal_NOHW), 2)
    reference = [out_NOHW, *torch.autograd.grad(out_NOHW, [t for t in exact if t is not None], gradient_NOHW.double())]
    out_NOHW = ops.first_block(*given_, 1e-5)
    ours = [out_NOHW, *torch.autograd.grad(out_NOHW, [t for t in given_ if t is not None], gradient_NOHW)]
    if with_bias:
        # zero but for rounding
        assert not ours.pop(3).any() and reference.pop(3).abs().max() < 1e-9
    assert all(close(a, b, 1e-4) for a, b in zip(ours, reference, strict=True))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 5), channels=st.sampled_from([16, 48]), height=st.integers(3, 17), width=st.integers(3, 17), seed=st.integers(0, 1000))
def test_moments_of_images_and_their_gradients_are_torchs(n, channels, height, width, seed):
    rng = torch.Generator().manual_seed(seed)
    map_NCHW = (torch.randn(n, channels, height, width, generator=rng) * 3 + 5).requires_grad_()
    gradients = [torch.randn(n, channels, generator=rng) for _ in range(2)]
    exact_NCHW = map_NCHW.detach().double().requires_grad_()
    moments = torch.var_mean(exact_NCHW, (2, 3), correction=0)[::-1]
    reference = [*moments, *torch.autograd.grad(moments, exact_NCHW, [g.double() for g in gradients])]
    moments = ops.image_moments(map_NCHW)
    ours = [*moments, *torch.autograd.grad(moments, map_NCHW, gradients)]
    assert all(close(a, b) for a, b in zip(ours, reference, strict=True))


def test_a_frozen_first_block_gives_the_image_its_gradient_alone():
    block = ConvBlock(3, 16, "instance")
    use_own_kernels(block)
    image_NCHW = torch.rand(2, 3, 8, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(block(image_NCHW).square().sum(), image_NCHW)
    block.requires_grad_(False)
    (found,) = torch.autograd.grad(block(image_NCHW).square().sum(), image_NCHW)
    assert torch.equal(found, expected)


def test_a_constant_map_gives_the_shift_and_no_gradient():
    map_NCHW = torch.full((2, 16, 4, 4), 7.0, requires_grad=True)
    out_NCHW = ops.norm_relu_pool(map_NCHW, torch.ones(16), torch.full((16,), 0.5), 1e-5)
    assert torch.equal(out_NCHW, torch.full((2, 16, 2, 2), 0.5))
    (gradient_NCHW,) = torch.autograd.grad(out_NCHW.sum(), map_NCHW)
    assert gradient_NCHW.abs().max() < 1e-4


def forward_and_backward(threads, n_in, size, products):
    rng = torch.Generator().manual_seed(0)
    map_NIHW, weight_OIHW = torch.randn(9, n_in, size, size, generator=rng), torch.randn(64, n_in, 3, 3, generator=rng)
    gradient_NOHW, scale_O, shift_O = torch.randn(9, 64, size, size, generator=rng), torch.rand(64, generator=rng), torch.randn(64, generator=rng)
    inputs = [t.requires_grad_() for t in (map_NIHW, weight_OIHW, scale_O, shift_O)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with products():
            out_NOHW = ops.conv3x3(map_NIHW, weight_OIHW, None)
            pooled_NOHW = ops.norm_relu_pool(out_NOHW, scale_O, shift_O, 1e-5)
            outputs = [out_NOHW, pooled_NOHW, *ops.image_moments(out_NOHW)]
            if n_in <= serving.MOST_DIRECT_CHANNELS:
                outputs.append(ops.first_block(map_NIHW, weight_OIHW, shift_O, scale_O, shift_O, 1e-5))
        return [*outputs, *torch.autograd.grad(outputs, inputs, [gradient_NOHW, *map(torch.cos, outputs[1:])])]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("products", [nullcontext, pytest.param(serving.bfloat16_products, marks=needs_bfloat16)])
@pytest.mark.parametrize(("n_in", "size"), [(3, 32), (32, 17)])
def test_every_number_of_threads_gives_the_same_bytes(n_in, size, products):
    one = forward_and_backward(1, n_in, size, products)
    for threads in (2, 3, 5):
        assert all(torch.equal(a, b) for a, b in zip(one, forward_and_backward(threads, n_in, size, products), strict=True))


def test_a_processor_without_bfloat16_products_refuses_them(monkeypatch):
    monkeypatch.setattr(serving, "library", lambda: None)
    with pytest.raises(RuntimeError, match="does not multiply"), serving.bfloat16_products():
        pass


@pytest.mark.parametrize("products", [nullcontext, pytest.param(serving.bfloat16_products, marks=needs_bfloat16)])
def test_what_is_no_number_stays_visible(products):
    network = nn.Sequential(ConvBlock(3, 16, "instance"), nn.Conv2d(16, 16, 3, padding=1))
    use_own_kernels(network)
    image_NCHW = torch.rand(2, 3, 8, 8)
    image_NCHW[0, 0, 0, 0] = float("nan")
    with products():
        out_NCHW = network(image_NCHW)
    assert out_NCHW[0].isnan().any() and not out_NCHW[1].isnan().any()


def small_convnet():
    return build_expert(ModelConfig(width=16), 32, 3, 10, [0.5] * 3, [0.2] * 3, 0)


def test_a_network_is_the_same_with_and_without_the_kernels():
    image_NCHW = torch.rand(4, 3, 32, 32)
    expert = small_convnet()
    ours = expert(image_NCHW)
    with serving.switched_off():
        assert torch.allclose(ours, expert(image_NCHW), rtol=1e-4, atol=1e-5)
        other = small_convnet()
    assert all(torch.equal(a, b) for a, b in zip(expert.state_dict().values(), other.state_dict().values(), strict=True))


def test_who_watches_a_layer_sees_its_input():
    expert, image_NCHW = small_convnet(), torch.rand(2, 3, 32, 32)
    layers = monitored_layers(expert, "all")
    assert len(layers) == 6
    with capture_inputs(expert, layers) as seen, torch.no_grad():
        expert(image_NCHW)
        ours = dict(seen)
        with serving.switched_off():
            expert(image_NCHW)
        assert list(ours) == list(layers)
        assert all(torch.allclose(ours[name], seen[name], rtol=1e-4, atol=1e-4) for name in layers)


@pytest.mark.parametrize(
    ("conv", "own"),
    [
        (nn.Conv2d(3, 16, 3, padding=1), True),
        (nn.Conv2d(3, 16, 3, padding=1, bias=False), True),
        (nn.Conv2d(3, 16, 3, stride=2, padding=1), False),
        (nn.Conv2d(3, 16, 3), False),
        (nn.Conv2d(3, 16, 5, padding=1), False),
        (nn.Conv2d(16, 16, 3, padding=1, groups=2), False),
        (nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), False),
    ],
)
def test_convolutions_are_replaced_by_the_same_in_the_form_the_kernels_take_or_another(conv, own):
    network = nn.Sequential(nn.Sequential(conv))
    map_NIHW = torch.rand(2, conv.in_channels, 7, 6)
    expected_NOHW, weight, state = conv(map_NIHW), conv.weight, torch.random.get_rng_state()
    use_own_kernels(network)
    assert type(network[0][0]) is (Conv3x3 if own else Convolution) and network[0][0].weight is weight
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(network(map_NIHW), expected_NOHW)


@pytest.mark.parametrize(
    ("map_NIHW", "n_out"),
    [
        (torch.rand(2, 16, 8, 8, dtype=torch.float64), 16),
        (torch.rand(2, 16, 2, 8), 16),
        (torch.rand(0, 16, 8, 8), 16),
        (torch.rand(2, 5, 8, 8), 16),
        (torch.rand(2, 16, 8, 8), 10),
    ],
    ids=["float64", "small map", "no image", "five channels in", "ten channels out"],
)
def test_what_the_kernels_do_not_take_goes_to_torch(map_NIHW, n_out):
    conv = Conv3x3(map_NIHW.shape[1], n_out).to(map_NIHW.dtype)
    assert torch.equal(conv(map_NIHW), F.conv2d(map_NIHW, conv.weight, conv.bias, padding=1))


def test_half_precision_goes_to_torch():
    conv = Conv3x3(16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.rand(2, 16, 8, 8)).dtype is torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("products", [nullcontext, pytest.param(serving.bfloat16_products, marks=needs_bfloat16)])
def test_the_kernels_stand_in_compiled_code(products):
    expert = small_convnet()
    image_NCHW = torch.rand(4, 3, 32, 32)

    def loss(image_NCHW):
        with products():
            return expert(image_NCHW).square().sum()

    value = torch.compile(loss, fullgraph=True)(image_NCHW)
    value.backward()
    compiled = [p.grad.clone() for p in expert.encoder.parameters()]
    expert.zero_grad()
    loss(image_NCHW).backward()
    for a, p in zip(compiled, expert.encoder.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-3)
