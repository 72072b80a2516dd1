import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ray_ltdd.errors import InputError
from ray_ltdd.models.normalization import BatchNorm, InstanceNorm, build_normalization


def test_instance_norm_against_the_equation():
    torch.manual_seed(0)
    layer = InstanceNorm(3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    map_NCHW = torch.randn(2, 3, 4, 5) * 3 + 1
    out_NCHW = layer(map_NCHW)
    for n in range(2):
        for c in range(3):
            pixels = map_NCHW[n, c].double()
            variance = ((pixels - pixels.mean()) ** 2).mean()
            expected = (pixels - pixels.mean()) / (variance + 1e-5).sqrt() * layer.weight[c] + layer.bias[c]
            torch.testing.assert_close(out_NCHW[n, c].double(), expected, rtol=1e-4, atol=1e-5)


def test_instance_norm_keeps_no_running_estimates():
    layer = InstanceNorm(4)
    assert set(layer.state_dict()) == {"weight", "bias"}
    map_NCHW = torch.randn(2, 4, 3, 3)
    assert torch.equal(layer.train()(map_NCHW), layer.eval()(map_NCHW))


def test_instance_norm_refuses_a_map_it_would_erase():
    with pytest.raises(InputError, match=r"model\.normalization"):
        InstanceNorm(4)(torch.randn(2, 4, 1, 1))


@settings(deadline=None)
@given(channels=st.integers(1, 600))
def test_group_norm_is_never_instance_norm_under_another_name(channels):
    layer = build_normalization("group", channels)
    assert isinstance(layer, nn.GroupNorm) and not isinstance(layer, InstanceNorm)
    assert channels % layer.num_groups == 0 and layer.num_groups <= 32
    assert channels == 1 or layer.num_groups < channels


def test_group_norm_of_the_usual_widths():
    assert [build_normalization("group", c).num_groups for c in (16, 64, 128, 512)] == [8, 32, 32, 32]


def test_kinds():
    assert type(build_normalization("batch", 4)) is BatchNorm
    assert type(build_normalization("instance", 4)) is InstanceNorm
    assert type(build_normalization("none", 4)) is nn.Identity
