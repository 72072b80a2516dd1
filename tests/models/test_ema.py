import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.ema import ExponentialAverage
from ray_ltdd.models.expert import build_student


def student(normalization="batch"):
    return build_student(ModelConfig(width=3, depth=1, normalization=normalization), 4, 1, 2, [0.3], [0.2], 0)


def train_step(model, optimizer, step):
    image_NCHW = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    model(image_NCHW).square().mean().backward()
    optimizer.step()


def test_against_a_loop_over_every_number():
    model = student()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    average = ExponentialAverage(model, 0.9)
    expected = {name: value.double().flatten().tolist() for name, value in model.state_dict().items()}
    for t in range(12):
        train_step(model, optimizer, t)
        average.update()
        for name, value in model.state_dict().items():
            new = value.double().flatten().tolist()
            if value.is_floating_point():
                new = [0.9 * old + 0.1 * x for old, x in zip(expected[name], new, strict=True)]
            expected[name] = new
    for name, value in average.averaged.state_dict().items():
        assert value.double().flatten().tolist() == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_buffers_are_averaged_counters_copied_and_constants_untouched():
    model = student()
    average = ExponentialAverage(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(7):
        train_step(model, optimizer, step)
        average.update()
    norm, averaged_norm = (next(m for m in x.modules() if isinstance(m, nn.BatchNorm2d)) for x in (model, average.averaged))
    assert averaged_norm.num_batches_tracked.item() == norm.num_batches_tracked.item() == 7
    assert averaged_norm.running_mean.abs().sum() > 0
    assert not torch.equal(averaged_norm.running_mean, norm.running_mean)
    assert torch.equal(average.averaged.mean_C, model.mean_C)
    assert torch.equal(average.averaged.std_C, model.std_C)


@settings(deadline=None, max_examples=30)
@given(decay=st.floats(0, 0.999), value=st.floats(-1e6, 1e6, width=32))
def test_what_does_not_change_stays_exactly(decay, value):
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, value)
    average = ExponentialAverage(model, decay)
    for _ in range(5):
        average.update()
    assert average.averaged.weight.item() == model.weight.item()


def test_decay_zero_is_the_model_and_training_is_not_touched():
    model = student()
    average = ExponentialAverage(model, 0.0)
    train_step(model, torch.optim.SGD(model.parameters(), lr=0.5), 0)
    before = copy.deepcopy(model.state_dict())
    average.update()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(average.averaged.state_dict()[name], value)
    assert model.training and not average.averaged.training
    assert not any(p.requires_grad for p in average.averaged.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_continues_exactly_from_its_state():
    model = student()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    average = ExponentialAverage(model, 0.9)
    for step in range(3):
        train_step(model, optimizer, step)
        average.update()
    resumed = ExponentialAverage(model, 0.9)
    resumed.load_state_dict(copy.deepcopy(average.state_dict()))
    for step in range(3, 6):
        train_step(model, optimizer, step)
        average.update()
        resumed.update()
    assert resumed.n_updates == average.n_updates == 6
    for name, value in average.averaged.state_dict().items():
        assert torch.equal(resumed.averaged.state_dict()[name], value)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        ExponentialAverage(nn.Linear(1, 1), decay)
