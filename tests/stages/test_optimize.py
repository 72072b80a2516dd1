"""The rate's schedule, and training that continues to the same bytes."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_ltdd.artifacts import CheckpointSlot
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.ema import ExponentialAverage
from ray_ltdd.models.expert import build_student
from ray_ltdd.stages.optimize import cosine_with_warmup, halved, load_training_state, set_rate, training_state

N_STEPS = 8


@settings(deadline=None, max_examples=100)
@given(n_steps=st.integers(20, 3000), warmup_share=st.floats(0, 0.5))
def test_the_schedule_does_not_jump_and_ends_near_zero(n_steps, warmup_share):
    """Pitfall 32: a cosine that drops six-fold at 5/6 of training, and one that ends at half the rate."""
    factor = [cosine_with_warmup(step, n_steps, warmup_share) for step in range(n_steps)]
    n_warmup = int(warmup_share * n_steps)
    steepest = max(1 / (n_warmup + 1) if n_warmup else 0.0, math.pi / 2 / (n_steps - n_warmup))
    assert max(abs(b - a) for a, b in itertools.pairwise(factor)) <= steepest + 1e-9
    assert max(factor) == 1.0 and min(factor) > 0
    assert factor[-1] <= (math.pi / 2 / (n_steps - n_warmup)) ** 2 + 1e-12 and factor[-1] < 0.03
    assert factor[:n_warmup] == sorted(factor[:n_warmup]) and factor[n_warmup:] == sorted(factor[n_warmup:], reverse=True)


def test_the_schedule_in_numbers():
    assert [cosine_with_warmup(step, 8, 0.0) for step in (0, 2, 4, 6)] == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert [cosine_with_warmup(step, 8, 0.5) for step in range(8)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert cosine_with_warmup(0, 1, 0.9) == 1.0


def test_halvings_come_when_their_share_is_done():
    # the authors' 1000 epochs of 4 batches, halved at epochs 800, 900 and 950
    factor = [halved(epoch * 4, 4000, (0.8, 0.9, 0.95)) for epoch in (0, 799, 800, 899, 900, 949, 950, 999)]
    assert factor == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_the_rate_reaches_every_group():
    layers = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in layers], lr=1.0)
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


RECIPES = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, betas=(0.5, 0.9)),
}


class Training:
    """A network with batch norm, its optimiser and its average, from the same start every time."""

    def __init__(self, recipe, with_average, seed=0):
        self.model = build_student(ModelConfig(width=3, depth=1, normalization="batch"), 4, 1, 2, [0.3], [0.2], seed)
        self.optimizer = RECIPES[recipe](self.model.parameters())
        self.average = ExponentialAverage(self.model, 0.9) if with_average else None

    def run(self, first, last):
        self.model.train()
        for step in range(first, last):
            image_NCHW = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.model(image_NCHW), torch.tensor([0, 1, 0, 1])).backward()
            set_rate(self.optimizer, 0.05 * cosine_with_warmup(step, N_STEPS, 0.25))
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
        return self

    def state(self, n_done=0):
        return training_state(n_done, self.model, self.optimizer, self.average)


def assert_same_bytes(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("with_average", [True, False])
def test_interrupted_training_ends_with_the_same_bytes(recipe, with_average, tmp_path):
    """Pitfall 7: weights alone were restored."""
    whole = Training(recipe, with_average).run(0, N_STEPS)
    slot = CheckpointSlot(tmp_path / "state.safetensors", min_seconds=0)
    done = 0
    for stop in (1, 5):
        part = Training(recipe, with_average, seed=done)
        done = load_training_state(slot, part.model, part.optimizer, part.average)
        part.run(done, stop)
        slot.offer(lambda part=part, stop=stop: part.state(stop))
    last = Training(recipe, with_average, seed=99)
    assert load_training_state(slot, last.model, last.optimizer, last.average) == 5
    last.run(5, N_STEPS)
    assert_same_bytes(whole.state(), last.state())
    if with_average:
        assert last.average.n_updates == N_STEPS
        assert torch.equal(whole.average.averaged.encoder.blocks[0][1].running_var, last.average.averaged.encoder.blocks[0][1].running_var)


def test_an_empty_slot_starts_at_zero_and_touches_nothing(tmp_path):
    training = Training("momentum", True)
    before = training.state()
    assert load_training_state(CheckpointSlot(tmp_path / "none.safetensors"), training.model, training.optimizer, training.average) == 0
    assert_same_bytes(before, training.state())


@pytest.mark.parametrize("recipe", ["momentum", "adamw"])
def test_the_state_holds_everything_and_does_not_change_with_further_training(recipe):
    training = Training(recipe, True).run(0, 3)
    state = training.state(3)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    training.run(3, 5)
    assert_same_bytes(state, kept)
    assert int(state["n_done"]) == 3 and int(state["n_updates"]) == 3
    slots = {"momentum": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}[recipe]
    n_parameters = len(list(training.model.parameters()))
    assert {name for name in state if name.startswith("optimizer/")} == {f"optimizer/{i}/{slot}" for i in range(n_parameters) for slot in slots}
    for prefix in ("module/", "average/"):
        assert {name for name in state if name.startswith(prefix)} == {prefix + name for name in training.model.state_dict()}
