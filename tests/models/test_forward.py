"""The networks of the published comparisons as chains of torch's functions, at the 32 pixels they are compared at.

Shapes: N images, C channels, H height, W width.
"""

import pytest
import torch
import torch.nn.functional as F

from ray_ltdd.models.build import build_encoder
from ray_ltdd.models.config import ModelConfig


class Layers:
    """Layers whose weights are those of a network's state dict, taken one after the other."""

    def __init__(self, network):
        self.tensors = iter([tensor.clone() for tensor in network.state_dict().values()])
        self.training = network.training

    def conv(self, map_NCHW, stride=1, padding=1, bias=False):
        weight = next(self.tensors)
        return F.conv2d(map_NCHW, weight, next(self.tensors) if bias else None, stride, padding)

    def norm(self, map_NCHW):
        scale_C, shift_C, mean_C, var_C, _ = (next(self.tensors) for _ in range(5))
        return F.batch_norm(map_NCHW, mean_C, var_C, scale_C, shift_C, self.training)


def vgg11(layers, map_NCHW):
    for n_convolutions in (1, 1, 2, 2, 2):
        for _ in range(n_convolutions):
            map_NCHW = F.relu(layers.norm(layers.conv(map_NCHW, bias=True)))
        map_NCHW = F.max_pool2d(map_NCHW, 2)
    return map_NCHW.mean((2, 3))


def alexnet(layers, map_NCHW):
    for size, is_pooled in ((5, True), (5, True), (3, False), (3, False), (3, True)):
        map_NCHW = F.relu(layers.conv(map_NCHW, padding=size // 2, bias=True))
        map_NCHW = F.max_pool2d(map_NCHW, 2) if is_pooled else map_NCHW
    return map_NCHW.flatten(1)


def two_convolutions(layers, map_NCHW, stride):
    inner_NCHW = F.relu(layers.norm(layers.conv(map_NCHW, stride)))
    return layers.norm(layers.conv(inner_NCHW))


def resnet18(layers, map_NCHW):
    """A block that halves the map has a 1x1 convolution as its shortcut."""
    map_NCHW = F.relu(layers.norm(layers.conv(map_NCHW)))
    for stride in (1, 1, 2, 1, 2, 1, 2, 1):
        out_NCHW = two_convolutions(layers, map_NCHW, stride)
        shortcut_NCHW = map_NCHW if stride == 1 else layers.norm(layers.conv(map_NCHW, stride, padding=0))
        map_NCHW = F.relu(out_NCHW + shortcut_NCHW)
    return map_NCHW.mean((2, 3))


def resnet32(layers, map_NCHW):
    """A block that halves the map has every second pixel as its shortcut, between two lots of empty channels."""
    map_NCHW = F.relu(layers.norm(layers.conv(map_NCHW)))
    for stride in [1] * 5 + [2, 1, 1, 1, 1] * 2:
        out_NCHW = two_convolutions(layers, map_NCHW, stride)
        if stride == 2:
            every_second = map_NCHW[:, :, ::2, ::2]
            empty = torch.zeros_like(every_second[:, : every_second.shape[1] // 2])
            map_NCHW = torch.cat([empty, every_second, empty], 1)
        map_NCHW = F.relu(out_NCHW + map_NCHW)
    return map_NCHW.mean((2, 3))


CHAINS = {"vgg11": vgg11, "alexnet": alexnet, "resnet18": resnet18, "resnet32": resnet32}


@pytest.mark.parametrize("training", [True, False], ids=["training", "scoring"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_network_is_its_chain_of_functions(name, training):
    torch.manual_seed(0)
    encoder = build_encoder(ModelConfig(architecture=name, width=4 if name == "resnet32" else None), 32, 3).train(training)
    for key, tensor in encoder.state_dict().items():
        # as after some training: no scale or variance is 1, no shift or mean 0
        if tensor.ndim == 1:
            tensor.copy_(0.5 + torch.rand(len(tensor)) if key.endswith(("weight", "var")) else 0.2 * torch.randn(len(tensor)))
    layers, image_NCHW = Layers(encoder), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected_NF, found_NF = CHAINS[name](layers, image_NCHW), encoder(image_NCHW)
    assert next(layers.tensors, None) is None, "every weight has its place in the chain"
    torch.testing.assert_close(found_NF, expected_NF, atol=1e-4, rtol=1e-3)
