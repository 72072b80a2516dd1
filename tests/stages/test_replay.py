"""Steps that a GPU replays: every call does its work once, and a training ends where one without replay does."""

import copy

import pytest
import torch

from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.ema import ExponentialAverage
from ray_ltdd.models.expert import build_student
from ray_ltdd.stages.optimize import make_optimizer, set_rate, training_state, training_step
from ray_ltdd.stages.replay import WARM_UP_CALLS, Replayed

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
N_STEPS = WARM_UP_CALLS + 5


@pytest.mark.parametrize("device", DEVICES)
def test_every_call_does_the_work_once(device):
    total = torch.zeros(3, device=device)

    def add(value: torch.Tensor) -> torch.Tensor:
        total.add_(value)
        return value * 2

    replayed = Replayed(add)
    for n in range(1, N_STEPS + 1):
        assert replayed(torch.full((3,), float(n), device=device)).tolist() == [2.0 * n] * 3
        assert total.tolist() == [n * (n + 1) / 2] * 3


@pytest.mark.parametrize("device", DEVICES)
def test_an_epochs_draws_are_handed_over_once_and_others_anew(device):
    replayed = Replayed(lambda row_1, table_SB: table_SB.index_select(0, row_1)[0] * 2)
    row_S = torch.arange(4, device=device)
    for epoch in range(3):
        table_SB = torch.arange(8.0, device=device).view(4, 2) + 100 * epoch
        for step in range(4):
            assert replayed(row_S[step : step + 1], table_SB).tolist() == (2 * table_SB[step]).tolist()


@needs_gpu
def test_replayed_dropout_follows_the_seed_of_its_step():
    replayed, ones = Replayed(lambda image: torch.nn.functional.dropout(image, 0.5)), torch.ones(1000, device="cuda")

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return replayed(ones).clone()

    masks = [drawn(seed) for seed in range(N_STEPS)]
    assert len({tuple(mask.tolist()) for mask in masks}) == N_STEPS
    assert all(torch.equal(masks[seed], drawn(seed)) for seed in range(WARM_UP_CALLS + 1, N_STEPS))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("optimizer_kind", "linear_step"), [("sgd", 0.0), ("adamw", 0.0), ("muon", 0.0), ("muon", 3.0)])
def test_a_training_of_replayed_steps_is_the_training(device, optimizer_kind, linear_step):
    start = build_student(ModelConfig(width=16, depth=2, normalization="batch"), 8, 1, 3, [0.4], [0.3], 0).to(device)
    label_N = torch.tensor([0, 1, 2, 0], device=device)
    batches = [torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(t)).to(device) for t in range(N_STEPS)]

    def train(wrap):
        model = copy.deepcopy(start).train()
        optimizer = make_optimizer(optimizer_kind, model, 0.1, 0.01, 0.9, nesterov=True, linear_step=linear_step)
        average = ExponentialAverage(model, 0.8)

        def loss_of(view, label):
            return torch.nn.functional.cross_entropy(model(view), label)

        step = wrap(training_step(loss_of, model, optimizer, average, gradient_clip=1.0))
        losses = []
        for t, view in enumerate(batches):
            set_rate(optimizer, 0.05 / (t + 1))
            losses.append(float(step(view, label_N)))
        assert average.n_updates == N_STEPS
        return losses, training_state(N_STEPS, model, optimizer, average)

    (plain, expected), (replayed, state) = train(lambda step: step), train(Replayed)
    assert replayed == pytest.approx(plain, rel=1e-4)
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor.cpu(), expected[name].cpu(), rtol=1e-3, atol=1e-5, msg=name)
