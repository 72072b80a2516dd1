import pytest
import torch
from torch import nn

from ray_ltdd.errors import InputError
from ray_ltdd.models.build import build_encoder
from ray_ltdd.models.config import ARCHITECTURES, ModelConfig
from ray_ltdd.models.expert import build_expert
from ray_ltdd.models.monitor import capture_inputs, monitored_layers

MEAN, STD = [0.3, 0.4, 0.5], [0.2, 0.3, 0.4]


def tiny_expert(normalization="batch"):
    return build_expert(ModelConfig(width=4, depth=2, normalization=normalization), 8, 3, 5, MEAN, STD, 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_come_in_forward_order(name):
    encoder = build_encoder(ModelConfig(architecture=name), 32, 3).eval()
    layers = monitored_layers(encoder, "all")
    calls = []
    for layer_name, layer in layers.items():
        layer.register_forward_pre_hook(lambda module, args, layer_name=layer_name: calls.append(layer_name))
    encoder(torch.rand(1, 3, 32, 32))
    assert calls == list(layers)


@pytest.mark.parametrize(
    ("normalization", "kind", "types"),
    [
        ("batch", "batch_norm", ["BatchNorm"] * 2),
        ("instance", "normalization", ["InstanceNorm"] * 2),
        ("group", "normalization", ["GroupNorm"] * 2),
        ("none", "convolution", ["Conv3x3"] * 2),
        ("instance", "all", ["Conv3x3", "InstanceNorm"] * 2),
    ],
)
def test_kinds(normalization, kind, types):
    layers = monitored_layers(tiny_expert(normalization), kind)
    assert [type(layer).__name__ for layer in layers.values()] == types
    assert all(name.startswith("encoder.") for name in layers)


@pytest.mark.parametrize(
    ("normalization", "kind", "remedy"),
    [
        ("instance", "batch_norm", "monitor 'normalization' or 'convolution' or 'all', or set .* to 'batch'"),
        ("none", "normalization", "monitor 'convolution' or 'all', or set .* 'batch', 'instance' or 'group'"),
    ],
)
def test_a_model_without_such_a_layer_is_refused(normalization, kind, remedy):
    with pytest.raises(InputError, match=f"ConvNet-2 .* has no {kind} layer .*2 Conv3x3.*: {remedy}"):
        monitored_layers(tiny_expert(normalization), kind)


def test_a_model_without_any_layer_and_an_unknown_kind_are_refused():
    with pytest.raises(InputError, match="use a network with convolutions"):
        monitored_layers(nn.Sequential(nn.Linear(2, 2)), "all")
    with pytest.raises(InputError, match="'bn' is not a kind"):
        monitored_layers(tiny_expert(), "bn")


def test_capture_gives_exactly_what_each_layer_saw():
    expert = tiny_expert().eval()
    image_NCHW = torch.rand(3, 3, 8, 8)
    layers = monitored_layers(expert, "all")
    with capture_inputs(expert, layers) as captured:
        expert(torch.rand(5, 3, 8, 8))
        expert(image_NCHW)
    assert list(captured) == list(layers)
    expected = []
    map_NCHW = (image_NCHW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    for block in expert.encoder.blocks[:-1]:
        conv, norm, pool = block
        expected.append(map_NCHW)
        expected.append(conv(map_NCHW))
        map_NCHW = pool(torch.relu(norm(expected[-1])))
    for got, want in zip(captured.values(), expected, strict=True):
        assert torch.equal(got, want)


def test_capture_keeps_the_graph():
    expert = tiny_expert().eval().requires_grad_(False)
    image_NCHW = torch.rand(2, 3, 8, 8, requires_grad=True)
    with capture_inputs(expert, monitored_layers(expert, "convolution")) as captured:
        expert(image_NCHW)
    first = next(iter(captured.values()))
    (gradient_NCHW,) = torch.autograd.grad(first.sum(), image_NCHW)
    expected = (1 / torch.tensor(STD))[:, None, None].expand(3, 8, 8)
    torch.testing.assert_close(gradient_NCHW, expected.expand(2, 3, 8, 8))


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_gone_after_exit(fails):
    expert = tiny_expert().eval()
    try:
        with capture_inputs(expert, monitored_layers(expert, "all")) as captured:
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    expert(torch.rand(2, 3, 8, 8))
    assert captured == {}


def test_vectors_become_1x1_maps():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with capture_inputs(model, monitored_layers(model, "batch_norm")) as captured:
        vector_NF = torch.randn(5, 3)
        model(vector_NF)
    assert captured["1"].shape == (5, 4, 1, 1)
    assert torch.equal(captured["1"][:, :, 0, 0], model[0](vector_NF))


def test_layers_of_another_model_are_refused():
    with (
        pytest.raises(ValueError, match="not part of"),
        capture_inputs(tiny_expert(), monitored_layers(tiny_expert(), "all")),
    ):
        pass


@pytest.mark.slow
def test_capture_inside_a_compiled_function():
    expert = tiny_expert("instance").eval()
    layers = monitored_layers(expert, "all")

    @torch.compile
    def observe(image_NCHW):
        logit_NK = expert(image_NCHW)
        return logit_NK, [x_NCHW.mean(dim=(2, 3)) for x_NCHW in captured.values()]

    for _ in range(3):
        image_NCHW = torch.rand(2, 3, 8, 8, requires_grad=True)
        with capture_inputs(expert, layers) as captured:
            _, means = observe(image_NCHW)
        with capture_inputs(expert, layers) as eager:
            expert(image_NCHW)
        assert len(means) == len(layers)
        for mean_NC, x_NCHW in zip(means, eager.values(), strict=True):
            torch.testing.assert_close(mean_NC, x_NCHW.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
        sum(mean_NC.sum() for mean_NC in means).backward()
        assert image_NCHW.grad.abs().sum() > 0
