import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_ltdd.models.config import ARCHITECTURES, ModelConfig


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"depth": 3}, "ConvNet-3"),
        ({}, "ConvNet"),
        ({"depth": 3, "width": 128, "normalization": "instance"}, "ConvNet-3"),
        ({"depth": 4, "width": 64, "normalization": "batch"}, "ConvNet-4 (width 64, batch norm)"),
        ({"architecture": "resnet9"}, "ResNet-9"),
        ({"architecture": "resnet9", "width": 32}, "ResNet-9 (width 32)"),
        ({"architecture": "resnet32"}, "ResNet-32"),
        ({"architecture": "resnet32", "width": 64}, "ResNet-32 (width 64)"),
        ({"architecture": "resnext50"}, "ResNeXt-50 32x4d"),
        ({"architecture": "resnet50"}, "ResNet-50"),
        ({"architecture": "alexnet"}, "AlexNet"),
        ({"architecture": "alexnet", "normalization": "batch"}, "AlexNet (batch norm)"),
    ],
)
def test_label(settings, label):
    assert ModelConfig(**settings).label == label


@pytest.mark.parametrize(("image_size", "depth"), [(8, 3), (28, 3), (32, 3), (64, 4), (128, 5), (224, 6)])
def test_depth_follows_the_image_size(image_size, depth):
    assert ModelConfig().resolved_depth(image_size) == depth
    assert ModelConfig().label_at(image_size) == f"ConvNet-{depth}"
    assert ModelConfig(depth=2).resolved_depth(image_size) == 2


@given(st.integers(8, 1024))
def test_default_depth_always_fits(image_size):
    depth = ModelConfig().resolved_depth(image_size)
    assert depth is not None and 2**depth <= image_size


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(ValidationError, match=r"unknown architecture 'resnet-18': did you mean 'resnet18'\?"):
        ModelConfig(architecture="resnet-18")
    with pytest.raises(ValidationError, match="choose one of convnet, resnet9, resnet18"):
        ModelConfig(architecture="zzz")


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("convnet", "resnet9", "resnet32")])
def test_sizes_that_nothing_would_read_are_refused(name):
    with pytest.raises(ValidationError, match="width 64 has no effect"):
        ModelConfig(architecture=name, width=64)
    with pytest.raises(ValidationError, match="depth 3 has no effect"):
        ModelConfig(architecture=name, depth=3)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 0}, {"normalization": "layer"}, {"widht": 3}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        ModelConfig(**wrong)
