"""Training an expert: its loss and its steps against plain twins, the same bytes after interruptions, its refusals.

Legend: N images, B batch, K classes, S steps.
"""

import copy
import math

import numpy as np
import pytest
import torch
from expert_views import draw_views
from reference import losses as reference_losses
from reference import training as reference
from sklearn.datasets import load_digits

from ray_ltdd.artifacts import CheckpointSlot
from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert
from ray_ltdd.seeding import generator
from ray_ltdd.stages.experts import (
    ExpertTraining,
    check_above_chance,
    draw_epoch,
    expert_loss,
    train_expert,
    training_accuracy,
)

BACKEND = Backend(torch.device("cpu"), torch.float32, "off")
COUNT_K = torch.tensor([80, 62, 48, 37, 29, 22, 17, 13, 10, 8])
TINY = {"epochs": 3, "batch_size": 32, "learning_rate": 0.05, "crop_padding": 1, "flip": False, "accuracy_floor": 0.0}


def digits():
    """A long-tailed part of the handwritten digits, 8 x 8 pixels."""
    source = load_digits()
    index_N = np.concatenate([np.flatnonzero(source.target == k)[:n] for k, n in enumerate(COUNT_K.tolist())])
    return ImageBank((source.images * 15.9).astype(np.uint8)[:, None], source.target, index_N, BACKEND.device)


BANK = digits()


def fresh_expert(normalization="batch", seed=0):
    return build_expert(ModelConfig(width=16, depth=2, normalization=normalization), 8, 1, 10, [0.3], [0.35], seed)


def slot_at(folder):
    return CheckpointSlot(folder / "expert.safetensors", min_seconds=0)


def train(config, slot, expert=None, advance=lambda _: None, seed=7):
    return train_expert(config, expert or fresh_expert(), BANK, COUNT_K, BACKEND, seed, slot, advance)


class Interruption(Exception):
    pass


def interrupting(n_calls):
    """A progress callback that raises at its call number `n_calls`."""
    left = [n_calls]

    def advance(_):
        left[0] -= 1
        if not left[0]:
            raise Interruption

    return advance


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_equation_7(alpha):
    config = ExpertTraining(robust_weight=0.7, debias_weight=1.3, class_weight_exponent=0.8, logit_adjustment=0.5, batch_size=6)
    expert = fresh_expert().eval()
    weight_K = reference_losses.class_weights(COUNT_K.tolist(), 0.8)
    adjustment_K = 0.5 * (COUNT_K.double() / COUNT_K.sum()).log()
    views = draw_views(config, BANK, draw_epoch(config, BANK.label_N, COUNT_K, 1, 0, 0), 0, generator("cpu", 0, "test"))
    loss = expert_loss(config, expert, torch.tensor(weight_K).float(), adjustment_K.float(), BACKEND)(*views, torch.tensor(alpha))
    with torch.no_grad():
        output = expert.heads(views[0])
    by_hand = reference.expert_loss(output, *(v.tolist() for v in views[1:]), alpha, weight_K, adjustment_K, 0.7, 1.3)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"debias": False},
        {"optimizer": "adamw", "learning_rate": 2e-3},
        {"optimizer": "muon", "learning_rate": 2e-3},
        {"optimizer": "muon", "learning_rate": 2e-3, "nesterov": False},
        {"nesterov": False},
        {"warmup_share": 0.4},
        {"gradient_clip": 1.0},
        {"ema_decay": 0.8},
    ],
    ids=str,
)
def test_training_is_its_steps_written_out(tmp_path, chosen):
    """alpha advances with every step, the rate follows the cosine, views come from (seed, epoch), the last weights or their average are returned."""
    config = ExpertTraining(**TINY | {"epochs": 2, "warmup_share": 0.0, "weight_decay": 0.01, "logit_adjustment": 0.3, "linear_step": 2.0} | chosen)
    # a bias before a batch norm has no gradient but rounding errors, which Adam blows up to whole steps
    normalization = "batch" if config.optimizer == "sgd" else "group"
    payload = train(config, slot_at(tmp_path), fresh_expert(normalization))
    twin = fresh_expert(normalization).train()
    average = copy.deepcopy(twin)
    n_steps = len(BANK) // 32
    weight_K = torch.tensor(reference_losses.class_weights(COUNT_K.tolist(), config.class_weight_exponent)).float()
    adjustment_K = (0.3 * (COUNT_K.double() / COUNT_K.sum()).log()).float()
    nesterov = chosen.get("nesterov", True)
    by_hand = {
        "sgd": lambda: reference.Sgd(twin.parameters(), 0.9, 0.01, nesterov),
        "adamw": lambda: reference.Adam(twin.parameters(), (0.9, 0.999), 0.01),
        "muon": lambda: reference.Muon(twin.parameters(), 0.9, 0.01, nesterov, linear_step=2.0),
    }[config.optimizer]()
    norms = []
    for epoch in range(2):
        draws, rng = draw_epoch(config, BANK.label_N, COUNT_K, n_steps, 7, epoch), generator("cpu", 7, "expert-views", epoch)
        for step in range(n_steps):
            t, last = epoch * n_steps + step, 2 * n_steps - 1
            views = draw_views(config, BANK, draws, step, rng)
            expert_loss(config, twin, weight_K, adjustment_K, BACKEND)(*views, torch.tensor((t / last) ** 2)).backward()
            norms.append(reference.clip(list(twin.parameters()), chosen.get("gradient_clip", math.inf)))
            by_hand.step(config.learning_rate * reference.cosine(t, 2 * n_steps, n_warmup=8 if "warmup_share" in chosen else 0))
            reference.move_average(average, twin, 0.8)
    assert payload.record["n_steps"] == 2 * n_steps == 20
    assert "gradient_clip" not in chosen or min(norms) < 1.0 < max(norms), "some gradients are clipped, some are not"
    for name, tensor in (average if "ema_decay" in chosen else twin).state_dict().items():
        torch.testing.assert_close(payload.tensors[name], tensor, atol=2e-4, rtol=2e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("normalization", "settings"),
    [
        ("batch", {}),
        ("batch", {"ema_decay": 0.9}),
        ("batch", {"ema_decay": 0.9, "debias": False, "nesterov": False, "momentum": 0.0}),
        ("instance", {"gradient_clip": 0.5, "warmup_share": 0.4}),
        ("instance", {"optimizer": "adamw", "learning_rate": 2e-3, "ema_decay": 0.9}),
        ("instance", {"optimizer": "muon", "learning_rate": 2e-3, "nesterov": False}),
        ("instance", {"optimizer": "muon", "learning_rate": 2e-3, "linear_step": 3.0}),
    ],
    ids=str,
)
def test_interrupted_training_ends_with_the_same_bytes(tmp_path, normalization, settings):
    """Pitfall 7. Interrupted in the middle of the second and of the third epoch; what a later attempt starts with must not matter."""
    config = ExpertTraining(**TINY | settings)
    whole = train(config, slot_at(tmp_path / "whole"), fresh_expert(normalization))
    slot, n_steps = slot_at(tmp_path / "parts"), len(BANK) // 32
    # the first call of `advance` says how much was done before
    for seed, call in enumerate((1 + n_steps + 3, 1 + n_steps + 2)):
        with pytest.raises(Interruption):
            train(config, slot, fresh_expert(normalization, seed), interrupting(call))
    parts = train(config, slot, fresh_expert(normalization, seed=99))
    assert whole.tensors.keys() == parts.tensors.keys() and whole.record == parts.record
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, parts.tensors[name]), name


def test_progress_counts_every_image_once(tmp_path):
    config, slot, n_steps = ExpertTraining(**TINY), slot_at(tmp_path), len(BANK) // 32
    done = []
    train(config, slot_at(tmp_path / "whole"), advance=done.append)
    assert sum(done) == 2 * 32 * n_steps * 3
    with pytest.raises(Interruption):
        train(config, slot, advance=interrupting(1 + 2 * n_steps + 1))
    done = []
    train(config, slot, advance=done.append)
    assert done[0] == 2 * 32 * n_steps * 2 and sum(done) == 2 * 32 * n_steps * 3


def test_the_average_is_what_is_returned(tmp_path):
    """Pitfall 31: the average was scored and the raw weights saved; and the average left the buffers out."""
    states = {}
    for decay in (None, 0.9):
        expert = fresh_expert()
        states[decay] = train(ExpertTraining(**TINY, ema_decay=decay), slot_at(tmp_path / str(decay)), expert).tensors
        raw = expert.state_dict()
    for name, tensor in states[None].items():
        assert torch.equal(tensor, raw[name]), "the average must not change the training itself"
    different = {name for name, tensor in states[0.9].items() if not torch.equal(tensor, raw[name])}
    assert {"encoder.blocks.0.1.running_mean", "encoder.blocks.0.1.running_var", "debiased_head.weight"} <= different
    assert not different & {"mean_C", "std_C"}


def test_an_expert_learns_digits_and_its_record_is_its_accuracy(tmp_path):
    expert = fresh_expert()
    payload = train(ExpertTraining(**TINY | {"epochs": 12, "batch_size": 16, "accuracy_floor": 4.0}), slot_at(tmp_path), expert)
    accuracy_K = payload.record["training_accuracy_K"]
    assert np.mean(accuracy_K) > 0.6, "chance is 0.1"
    predicted_N = expert.eval()(BANK.take(torch.arange(len(BANK)))).argmax(1)
    for k in range(10):
        of_class = [int(p) == k for p, label in zip(predicted_N, BANK.label_N, strict=True) if label == k]
        assert accuracy_K[k] == pytest.approx(sum(of_class) / len(of_class))


def test_the_same_seed_gives_the_same_expert_and_another_another(tmp_path):
    config = ExpertTraining(**TINY | {"epochs": 1})
    first, again, other = (train(config, slot_at(tmp_path / name), seed=seed).tensors for name, seed in (("a", 7), ("b", 7), ("c", 8)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["debiased_head.weight"], other["debiased_head.weight"])


def test_without_debiasing_only_the_head_that_is_used_is_trained(tmp_path):
    expert = fresh_expert()
    before = {name: tensor.clone() for name, tensor in expert.state_dict().items()}
    after = train(ExpertTraining(**TINY, debias=False), slot_at(tmp_path), expert).tensors
    unchanged = {name.split(".")[0] for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert unchanged == {"plain_head", "projector", "predictor", "mean_C", "std_C"}


def test_without_debiasing_the_loss_is_plain_cross_entropy():
    config = ExpertTraining(debias=False, batch_size=5)
    expert = fresh_expert().eval()
    views = draw_views(config, BANK, draw_epoch(config, BANK.label_N, COUNT_K, 1, 0, 0), 0, generator("cpu", 0, "test"))
    loss = expert_loss(config, expert, torch.full((10,), 5.0), torch.zeros(10), BACKEND)(*views, torch.tensor(0.9))
    by_hand = reference_losses.mixed_cross_entropy(expert(views[0]).tolist(), *(v.tolist() for v in views[1:]), [1.0] * 10)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_a_loss_that_explodes_is_one_sentence(tmp_path):
    slot = slot_at(tmp_path)
    with pytest.raises(InputError, match=r"NaN or infinite in epoch 1 of 3: lower experts.learning_rate \(now 1e\+20\)"):
        train(ExpertTraining(**TINY | {"learning_rate": 1e20}), slot)
    assert slot.load() is None, "a ruined state must not be continued"


@pytest.mark.parametrize("share", [0.0, 0.149])
def test_an_expert_near_chance_is_one_sentence(share):
    with pytest.raises(InputError) as caught:
        check_above_chance(torch.full((10,), share), 1.5)
    text = str(caught.value)
    assert "\n" not in text and f"{share:.1%}" in text and "chance is 10.0%" in text and "experts.epochs" in text and "1.5 times chance" in text


def test_the_bar_for_chance_can_be_lowered_and_ignores_empty_classes():
    check_above_chance(torch.tensor([0.63, 0.3, float("nan"), 0.0]), 1.2)
    check_above_chance(torch.zeros(10), 0.0)
    with pytest.raises(InputError):
        check_above_chance(torch.tensor([0.57, 0.3, float("nan"), 0.0]), 1.2)


def test_an_expert_near_chance_on_most_classes_is_one_sentence_however_good_on_the_others():
    """At chance counts; exactly half of the classes that have images does not stop the run."""
    half = torch.tensor([1.0] * 4 + [0.1, 0.0, 0.0, 0.1] + [float("nan")] * 2)
    check_above_chance(half, 1.5)
    most = half.clone()
    most[0] = 0.1
    with pytest.raises(InputError, match=r"^[^\n]* 5 of 8 classes are at or below it: .*experts\.epochs.*accuracy_floor.* 0 removes it\.$"):
        check_above_chance(most, 1.5)
    check_above_chance(most, 0.0)


def test_training_refuses_an_expert_that_has_learnt_nothing(tmp_path):
    with pytest.raises(InputError, match="next to nothing"):
        train(ExpertTraining(**TINY | {"epochs": 1, "learning_rate": 1e-9, "accuracy_floor": 5.0}), slot_at(tmp_path))


def test_weights_that_the_last_step_ruined_are_refused(tmp_path):
    """The loss of the only step is that of the weights before it."""
    ruinous = {"epochs": 1, "batch_size": 10**6, "warmup_share": 0.0, "learning_rate": 1e38, "weight_decay": 1e6}
    with pytest.raises(InputError, match="became NaN or infinite in epoch 1 of 1"):
        train(ExpertTraining(**TINY | ruinous), slot_at(tmp_path))


def test_training_accuracy_looks_at_most_at_so_many_of_a_class():
    class Always(torch.nn.Module):
        def forward(self, image_NCHW):
            return torch.eye(3)[(image_NCHW[:, 0, 0, 0] * 255).round().long()]

    # the first two images of class 0 are recognised, the third is not; class 1 has no images
    pixel_N = np.array([0, 0, 2, 2, 1], dtype=np.uint8)
    bank = ImageBank(np.broadcast_to(pixel_N[:, None, None, None], (5, 1, 2, 2)).copy(), np.array([0, 0, 0, 2, 2]), np.arange(5), BACKEND.device)
    for most, share in ((2, 1.0), (100, 2 / 3)):
        accuracy_K = training_accuracy(Always(), bank, 3, BACKEND, most)
        assert accuracy_K[[0, 2]].tolist() == pytest.approx([share, 0.5]) and bool(accuracy_K[1].isnan())
