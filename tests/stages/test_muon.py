"""Muon's step against its equation with singular values written out, and a training that is interrupted."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.training import Muon as ByHand

from ray_ltdd.artifacts import CheckpointSlot
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_student
from ray_ltdd.stages.muon import Muon, orthogonalized
from ray_ltdd.stages.optimize import load_training_state, make_optimizer, set_rate, training_state

N_STEPS = 6


def network(architecture="convnet", **sizes):
    torch.manual_seed(0)
    return build_student(ModelConfig(architecture=architecture, **sizes), 8, 3, 5, [0.4] * 3, [0.3] * 3, 0)


def take_steps(model, step, first=0, last=N_STEPS):
    for t in range(first, last):
        image_NCHW = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(t)).to(next(model.parameters()).dtype)
        torch.nn.functional.cross_entropy(model(image_NCHW), torch.tensor([0, 1, 2, 3, 4, 0])).backward()
        step(0.01 / (t + 1))


def stepping(optimizer):
    def step(rate):
        set_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad()

    return step


def with_a_tall_matrix():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 40, 1), torch.nn.Flatten(), torch.nn.Linear(40 * 64, 5)
    )


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("linear_step", [0.0, 3.0])
@pytest.mark.parametrize("fresh", [partial(network, width=24, depth=2), with_a_tall_matrix], ids=["wide", "tall"])
def test_steps_are_the_equation_written_out(nesterov, channels_last, linear_step, fresh):
    model = fresh().double()
    twin = copy.deepcopy(model)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    take_steps(model, stepping(Muon(model, 1.0, 0.1, 0.95, nesterov, linear_step)))
    take_steps(twin, ByHand(twin.parameters(), 0.95, 0.1, nesterov, linear_step).step)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, twin.state_dict()[name], rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert set(changed) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("linear_step", "more"), [(0.0, 0), (0.5, 2)])
def test_convolutions_after_the_first_are_its_matrices_or_all_of_them_and_linear_layers(linear_step, more):
    def chosen(model):
        optimizer = Muon(model, 0.1, 0.0, 0.9, True, linear_step)
        return [name for name, parameter in model.named_parameters() if optimizer.takes(parameter)]

    def grouped(n_in, groups):
        return torch.nn.Sequential(torch.nn.Conv2d(n_in, 32, 3, groups=groups))

    assert chosen(grouped(32, 2)) == ["0.weight"] and not chosen(grouped(16, 2))
    names = chosen(network("vgg11"))
    assert len(names) == 7 + more and all(name.endswith("weight") for name in names) and ("head.weight" in names) == bool(more)
    assert all("encoder" in name for name in names if name != "head.weight")
    assert len(chosen(network(width=24, depth=3))) == 2 + more


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_orthogonalised_values_are_near_one_whatever_the_size(rows, columns, seed, scale):
    direction = scale * torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    left, value, right = torch.linalg.svd(direction, full_matrices=False)
    found = left.T @ orthogonalized(direction) @ right.T
    off_diagonal = found - found.diagonal().diag()
    assert off_diagonal.abs().max() < 1e-6
    not_tiny = value > 0.01 * value.norm()
    assert bool(((found.diagonal() > 0.6) & (found.diagonal() < 1.3))[not_tiny].all())


@pytest.mark.parametrize("rank", [3, 40, 128])
def test_float32_does_for_directions_of_any_rank(rank):
    """Steps on A alone enlarge its rounding errors, most where values are far below the largest, or none at all."""
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64, generator=generator))[0] for n in (128, 300))
    direction = (left * torch.logspace(0, -6, rank, dtype=torch.float64)) @ right.T
    exact = orthogonalized(direction)
    found = orthogonalized(direction.float()).double()
    assert torch.linalg.matrix_norm(found - exact, 2) < 0.01


def test_no_gradient_is_no_step():
    assert torch.equal(orthogonalized(torch.zeros(4, 7)), torch.zeros(4, 7))
    model = network(width=16, depth=2)
    before = copy.deepcopy(model.state_dict())
    Muon(model, 0.1, 0.1, 0.9, True).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("linear_step", [0.0, 3.0])
def test_interrupted_training_ends_with_the_same_bytes(tmp_path, linear_step):
    def fresh(seed):
        model = build_student(ModelConfig(width=24, depth=2), 8, 3, 5, [0.4] * 3, [0.3] * 3, seed).to(memory_format=torch.channels_last)
        return model, make_optimizer("muon", model, 1.0, 0.1, 0.95, True, linear_step)

    model, optimizer = fresh(0)
    take_steps(model, stepping(optimizer))
    whole = training_state(N_STEPS, model, optimizer, None)
    slot = CheckpointSlot(tmp_path / "state.safetensors", min_seconds=0)
    part, optimizer = fresh(0)
    take_steps(part, stepping(optimizer), 0, 3)
    slot.offer(lambda: training_state(3, part, optimizer, None))
    last, optimizer = fresh(99)
    assert load_training_state(slot, last, optimizer, None) == 3
    take_steps(last, stepping(optimizer), 3)
    state = training_state(N_STEPS, last, optimizer, None)
    assert whole.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.items())
