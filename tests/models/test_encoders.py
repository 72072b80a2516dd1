import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ray_ltdd.errors import InputError
from ray_ltdd.models.build import build_encoder
from ray_ltdd.models.config import ARCHITECTURES, ModelConfig


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def with_classifier(config: ModelConfig, image_size: int, n_classes: int, channels: int = 3) -> int:
    encoder = build_encoder(config, image_size, channels)
    return n_parameters(encoder) + n_parameters(nn.Linear(encoder.feature_dim, n_classes))


@pytest.mark.parametrize(
    ("config", "n_classes", "expected"),
    [
        (ModelConfig(), 10, 320_010),  # the distillation literature's ConvNet-3
        (ModelConfig(architecture="resnet32"), 10, 464_154),  # He et al. 2016, table 6: 0.46M
        (ModelConfig(architecture="resnet9"), 10, 6_573_130),  # Page 2018: 6.57M, his classifier without a bias
        (ModelConfig(architecture="resnet18"), 10, 11_173_962),  # ResNet-18 with a 3x3 stem
        (ModelConfig(architecture="vgg11"), 10, 9_231_114),
    ],
)
def test_parameter_counts_at_32_px(config, n_classes, expected):
    assert with_classifier(config, 32, n_classes) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("resnext50", 25_028_904)],
)
def test_parameter_counts_are_torchvisions_at_224_px(name, expected):
    assert with_classifier(ModelConfig(architecture=name), 224, 1000) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("vgg11", 132_868_840), ("alexnet", 61_100_840)])
def test_parameter_counts_of_the_large_ones_are_torchvisions_at_224_px(name, expected):
    assert with_classifier(ModelConfig(architecture=name), 224, 1000) == expected


FEATURE_DIM = {
    "convnet": {32: 128 * 16, 64: 128 * 16, 224: 128 * 9},
    "resnet9": {32: 512, 64: 512, 224: 512},
    "resnet18": {32: 512, 64: 512, 224: 512},
    "resnet32": {32: 64, 64: 64, 224: 64},
    "resnet50": {32: 2048, 64: 2048, 224: 2048},
    "resnext50": {32: 2048, 64: 2048, 224: 2048},
    "vgg11": {32: 512, 64: 512, 224: 4096},
    "alexnet": {32: 4096, 64: 4096, 224: 4096},
}


def check_forward_and_backward(config: ModelConfig, image_size: int, channels: int) -> int:
    encoder = build_encoder(config, image_size, channels)
    assert encoder.training
    image_NCHW = torch.randn(2, channels, image_size, image_size, requires_grad=True)
    feature_NF = encoder(image_NCHW)
    feature_NF.square().mean().backward()
    assert feature_NF.shape == (2, encoder.feature_dim)
    assert torch.isfinite(feature_NF).all()
    assert image_NCHW.grad is not None and image_NCHW.grad.abs().sum() > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())
    return encoder.feature_dim


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "50" in name else ()) for name in ARCHITECTURES])
def test_small_images(name, image_size, channels):
    feature_dim = check_forward_and_backward(ModelConfig(architecture=name), image_size, channels)
    assert feature_dim == FEATURE_DIM[name][image_size]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_large_images(name):
    assert check_forward_and_backward(ModelConfig(architecture=name), 224, 3) == FEATURE_DIM[name][224]


@pytest.mark.parametrize("name", ["convnet", "resnet9", "resnet18", "resnet32", "vgg11", "alexnet"])
def test_digits(name):
    config = ModelConfig(architecture=name, width=16 if name in ("convnet", "resnet9") else None)
    check_forward_and_backward(config, 8, 1)


@pytest.mark.parametrize("normalization", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize(
    "name", ["convnet", "resnet9", "resnet18", "resnet32", pytest.param("resnext50", marks=pytest.mark.slow), "vgg11", "alexnet"]
)
def test_every_normalization(name, normalization):
    check_forward_and_backward(ModelConfig(architecture=name, normalization=normalization), 32, 3)


@pytest.mark.parametrize(("name", "image_size", "map_size"), [("resnet18", 32, 4), ("resnet50", 64, 4)])
def test_stem_leaves_a_4x4_map(name, image_size, map_size):
    encoder = build_encoder(ModelConfig(architecture=name), image_size, 3)
    shapes = []
    encoder.network.layer4.register_forward_hook(lambda module, args, out: shapes.append(out.shape[-2:]))
    encoder(torch.randn(2, 3, image_size, image_size))
    assert shapes == [(map_size, map_size)]


@settings(deadline=None, max_examples=25)
@given(image_size=st.integers(1, 40), depth=st.integers(1, 5), channels=st.integers(1, 4))
def test_convnet_fits_or_refuses(image_size, depth, channels):
    config = ModelConfig(width=2, depth=depth, normalization="batch")
    if image_size < 2**depth:
        with pytest.raises(InputError, match=f"at least {2**depth} px.*have {image_size} px"):
            build_encoder(config, image_size, channels)
    else:
        encoder = build_encoder(config, image_size, channels)
        assert encoder(torch.zeros(2, channels, image_size, image_size)).shape == (2, encoder.feature_dim)


@settings(deadline=None, max_examples=25)
@given(image_size=st.integers(1, 40), width=st.integers(1, 4))
def test_resnet9_fits_or_refuses(image_size, width):
    config = ModelConfig(architecture="resnet9", width=width)
    if image_size < 8:
        with pytest.raises(InputError, match=f"at least 8 px.*have {image_size} px"):
            build_encoder(config, image_size, 2)
    else:
        encoder = build_encoder(config, image_size, 2)
        assert encoder(torch.zeros(2, 2, image_size, image_size)).shape == (2, 8 * width)


def test_resnet9_is_a_chain_of_eight_convolutions_of_which_two_pairs_are_residual():
    encoder = build_encoder(ModelConfig(architecture="resnet9", width=4), 16, 3).eval()
    layers = [tuple(m) for m in encoder.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.Conv2d)]
    assert [conv.out_channels for conv, _ in layers] == [4, 8, 8, 8, 16, 32, 32, 32]
    image_NCHW = torch.randn(2, 3, 16, 16)

    def step(map_NCHW, i, pool=False):
        out_NCHW = layers[i][1](layers[i][0](map_NCHW)).clamp(min=0)
        return nn.functional.max_pool2d(out_NCHW, 2) if pool else out_NCHW

    first = step(step(image_NCHW, 0), 1, pool=True)
    first = first + step(step(first, 2), 3)
    last = step(step(first, 4, pool=True), 5, pool=True)
    last = last + step(step(last, 6), 7)
    torch.testing.assert_close(encoder(image_NCHW), last.flatten(2).max(2).values)


@settings(deadline=None, max_examples=10)
@given(image_size=st.integers(8, 64))
def test_alexnet_feature_dim_at_odd_sizes(image_size):
    encoder = build_encoder(ModelConfig(architecture="alexnet"), image_size, 1)
    assert encoder(torch.zeros(1, 1, image_size, image_size)).shape == (1, encoder.feature_dim)


@pytest.mark.parametrize("width", [1, 3, 16])
def test_resnet32_shortcut_without_parameters(width):
    encoder = build_encoder(ModelConfig(architecture="resnet32", width=width), 15, 2)
    assert encoder(torch.randn(2, 2, 15, 15)).shape == (2, 4 * width)
    block = encoder.stages[1][0].eval()
    nn.init.zeros_(block.norm2.weight)
    map_NCHW = torch.rand(2, width, 7, 7)
    out_NCHW = block(map_NCHW)
    before = width // 2
    assert torch.equal(out_NCHW[:, before : before + width], map_NCHW[:, :, ::2, ::2])
    assert out_NCHW.sum().item() == pytest.approx(map_NCHW[:, :, ::2, ::2].sum().item(), rel=1e-5)


def test_images_too_small_are_refused_when_building():
    with pytest.raises(InputError, match="1x1 pixels"):
        build_encoder(ModelConfig(architecture="resnet18", normalization="instance"), 8, 1)
    with pytest.raises(InputError, match="at least 8 px"):
        build_encoder(ModelConfig(architecture="alexnet"), 7, 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_encoder_carries_its_own_name(name):
    config = ModelConfig(architecture=name)
    assert build_encoder(config, 32, 3).label == config.label_at(32)


@pytest.mark.slow
def test_compiled_convnet_equals_eager():
    torch.manual_seed(0)
    encoder = build_encoder(ModelConfig(width=4, depth=2), 8, 1)
    compiled = torch.compile(encoder)
    image_NCHW = torch.randn(3, 1, 8, 8)
    gradients = []
    for network in (encoder, compiled):
        encoder.zero_grad()
        feature_NF = network(image_NCHW)
        feature_NF.square().sum().backward()
        gradients.append([feature_NF.detach(), *(p.grad.clone() for p in encoder.parameters())])
    for eager, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-4)
