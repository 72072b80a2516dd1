"""Convolutions that the kernels do not take, in bfloat16 products, against a float64 convolution of rounded operands.

Shapes: N images, I input and O output channels, H height, W width.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ray_ltdd.kernels import ops, serving
from ray_ltdd.models.convolution import Conv3x3, use_own_kernels

pytestmark = pytest.mark.skipif(not serving.multiply_bfloat16(), reason="needs a processor with AVX512-BF16")

FORMS = {
    "5x5": dict(kernel_size=5, padding=2),
    "stride 2": dict(kernel_size=3, stride=2, padding=1, bias=False),
    "1x1": dict(kernel_size=1, stride=2),
    "dilated": dict(kernel_size=3, padding=2, dilation=2),
    "groups": dict(kernel_size=3, padding=1, groups=2),
    "reflected border": dict(kernel_size=3, padding=1, padding_mode="reflect"),
    "ten channels out": dict(kernel_size=3, padding=1, out_channels=10),
}


def replaced(conv):
    network = nn.Sequential(conv)
    use_own_kernels(network)
    return network[0]


def convolution(in_channels=16, out_channels=32, **form):
    return replaced(nn.Conv2d(in_channels, out_channels, **form))


def relative_error(ours, reference):
    return ((ours.double() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_operands_are_rounded_and_nothing_else(form):
    torch.manual_seed(0)
    conv = convolution(**form)
    map_NIHW = torch.randn(3, 16, 9, 8, requires_grad=True)
    with serving.bfloat16_products():
        out_NOHW = conv(map_NIHW)
    gradient_NOHW = torch.randn_like(out_NOHW)
    ours = torch.autograd.grad(out_NOHW, [map_NIHW, *conv.parameters()], gradient_NOHW)
    assert out_NOHW.dtype is torch.float32 and all(g.dtype is torch.float32 for g in ours)

    exact = nn.Conv2d(16, conv.out_channels, **{k: v for k, v in form.items() if k != "out_channels"}).double()
    exact.load_state_dict({"weight": conv.weight.bfloat16().double()} | ({} if conv.bias is None else {"bias": conv.bias.double()}))
    rounded_NIHW = map_NIHW.detach().bfloat16().double().requires_grad_()
    reference_NOHW = exact(rounded_NIHW)
    references = torch.autograd.grad(reference_NOHW, [rounded_NIHW, *exact.parameters()], gradient_NOHW.bfloat16().double())
    # what comes out was a bfloat16, half a unit in its ninth bit off at most
    assert (out_NOHW - reference_NOHW).abs().max() <= 2**-8 * reference_NOHW.abs().max()
    for found, reference in zip(ours, references, strict=True):
        assert relative_error(found, reference) < 4e-3


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_without_such_products_it_is_torchs(form):
    torch.manual_seed(0)
    conv = nn.Conv2d(16, **({"out_channels": 32} | form))
    map_NIHW = torch.randn(3, 16, 9, 8)
    expected_NOHW = conv(map_NIHW)
    torch.testing.assert_close(replaced(conv)(map_NIHW), expected_NOHW)


@pytest.mark.parametrize("in_channels", [3, 15])
@pytest.mark.parametrize("form", [FORMS["5x5"], FORMS["stride 2"]], ids=["5x5", "stride 2"])
def test_images_and_narrow_maps_are_convolved_in_float32(form, in_channels):
    conv, image_NIHW = convolution(in_channels=in_channels, **form), torch.randn(2, in_channels, 9, 8)
    expected_NOHW = conv(image_NIHW)
    with serving.bfloat16_products():
        assert torch.equal(conv(image_NIHW), expected_NOHW)


def test_switched_off_and_in_autocast_it_is_torchs():
    conv, map_NIHW = convolution(kernel_size=5), torch.randn(2, 16, 9, 8)
    with serving.bfloat16_products():
        with serving.switched_off():
            assert torch.equal(conv(map_NIHW), F.conv2d(map_NIHW, conv.weight, conv.bias))
        with torch.autocast("cpu", torch.bfloat16):
            assert conv(map_NIHW).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("size", "channels", "goes_to_torch"),
    [((4, 4), 256, True), ((2, 8), 256, True), ((2, 2), 256, True), ((4, 5), 256, False), ((4, 4), 240, False)],
)
def test_maps_that_the_weights_outweigh_are_left_to_torch(monkeypatch, size, channels, goes_to_torch):
    torch.manual_seed(0)
    asked, kernel = [], ops.conv3x3
    monkeypatch.setattr(ops, "conv3x3", lambda *given: asked.append(1) or kernel(*given))
    conv, map_NIHW = Conv3x3(channels, 256), torch.randn(2, channels, *size)
    reference_NOHW = F.conv2d(map_NIHW.double(), conv.weight.double(), conv.bias.double(), padding=1)
    with torch.no_grad(), serving.bfloat16_products():
        out_NOHW = conv(map_NIHW)
        assert (not asked) == goes_to_torch
        alone_NOHW = torch.cat([conv(map_1IHW) for map_1IHW in map_NIHW.split(1)])
    assert relative_error(out_NOHW, reference_NOHW) < (5e-3 if goes_to_torch else 2e-2)
    torch.testing.assert_close(alone_NOHW, out_NOHW, rtol=2**-7, atol=1e-2)


def test_in_float32_no_map_is_outweighed():
    conv, map_NIHW = Conv3x3(256, 256), torch.randn(2, 256, 4, 4)
    assert not serving.weights_outweigh(map_NIHW, 256, 256)
    torch.testing.assert_close(conv(map_NIHW), F.conv2d(map_NIHW, conv.weight, conv.bias, padding=1), rtol=1e-4, atol=1e-4)
