"""Whole trainings of students against a plain twin, the three kinds of labels at work, and scores against a loop.

Legend: N images, B batch, K classes.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import training as reference
from sklearn.datasets import load_digits

from ray_ltdd.artifacts import CheckpointSlot
from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_student
from ray_ltdd.stages.evaluate import (
    EvaluateConfig,
    SoftLabels,
    StudentConfig,
    TrainingPart,
    labels_online,
    labels_per_image,
    labels_per_view,
    random_real_images,
    score,
    student_loss,
    train_student,
)
from ray_ltdd.stages.function_matching import FunctionMatching
from ray_ltdd.stages.relabel import RelabelConfig, label_images, label_views
from ray_ltdd.stages.views import ViewsConfig, draw_epoch_views, make_batch, n_batches

BACKEND = Backend(torch.device("cpu"), torch.float32, "off")
# 22 images in batches of 8: the last batch of an epoch is filled up
VIEWS = ViewsConfig(batch_size=8, min_scale=0.6, flip=False)
N_STEPS = 10
CONFIG = StudentConfig(learning_rate=0.01, weight_decay=0.1, ema_decay=0.8, warmup_share=0.0)


def digits(n):
    source = load_digits()
    return ImageBank((source.images * 15.9).astype(np.uint8)[:, None], source.target, np.arange(n), BACKEND.device)


BANK = digits(22)


def fresh(seed=0):
    return build_student(ModelConfig(width=16, depth=2, normalization="batch"), 8, 1, 10, [0.3], [0.35], seed)


class WithDropout(torch.nn.Module):
    """A student that draws from torch's global generator."""

    def __init__(self, seed):
        super().__init__()
        self.inner, self.dropout = fresh(seed), torch.nn.Dropout(0.3)

    def forward(self, image_NCHW):
        return self.dropout(self.inner(image_NCHW))


def teacher():
    return fresh(9).eval().requires_grad_(False)


def slot_at(path):
    return CheckpointSlot(path, min_seconds=0)


def train(path, student=None, soft=None, config=CONFIG, n_steps=N_STEPS, n_view_epochs=None, advance=lambda _: None, bank=BANK):
    return train_student(config, VIEWS, student or fresh(), bank, soft, n_steps, 5, n_view_epochs, BACKEND, slot_at(path), advance).tested


HALVED = [1.0] * 5 + [0.5] * 3 + [0.25] * 2


@pytest.mark.parametrize(
    "chosen",
    [
        *({"optimizer": optimizer, "ema_decay": ema_decay} for optimizer in ("adamw", "sgd", "muon") for ema_decay in (None, 0.8)),
        {"warmup_share": 0.4},
        {"halve_at": (0.5, 0.8)},
        # a warm-up is without halvings
        {"halve_at": (0.5, 0.8), "warmup_share": 0.4},
    ],
    ids=str,
)
def test_training_is_its_steps_written_out(tmp_path, chosen):
    """The last step counts; the average holds parameters and buffers (pitfall 31); the cosine does not jump (32)."""
    config = CONFIG.model_copy(update={"learning_rate": 1e-3, "linear_step": 2.0} | chosen)
    # a bias before a batch norm has no gradient but rounding errors, which Adam blows up to whole steps in float32
    trained = train(tmp_path / "c", fresh().double(), labels_online(teacher()), config)
    twin = fresh().double().train()
    average = copy.deepcopy(twin)
    loss_of = student_loss(config, twin, True, BACKEND)
    recipe = {
        "adamw": lambda: reference.Adam(twin.parameters(), (0.9, 0.999), 0.1),
        "sgd": lambda: reference.Sgd(twin.parameters(), 0.9, 0.1),
        "muon": lambda: reference.Muon(twin.parameters(), 0.9, 0.1, linear_step=2.0),
    }[config.optimizer]()
    n_warmup = 4 if "warmup_share" in chosen else 0
    factors = HALVED if "halve_at" in chosen else [reference.cosine(t, N_STEPS, n_warmup) for t in range(N_STEPS)]
    for t in range(N_STEPS):
        epoch, step = divmod(t, 3)
        views = draw_epoch_views(VIEWS, 22, 8, 5, epoch, BACKEND.device)
        view_BCHW, partner_B, lambda_B = make_batch(VIEWS, BANK, views, step)
        label_B = BANK.label_N[views.index_SB[step]]
        loss_of(view_BCHW, label_B, label_B[partner_B], lambda_B, teacher()(view_BCHW)).backward()
        recipe.step(1e-3 * factors[t])
        reference.move_average(average, twin, 0.8)
    assert not trained.training
    expected = (average if config.ema_decay else twin).state_dict()
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("recipe", [StudentConfig, FunctionMatching])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_step_of_linear_layers_goes_unnamed_where_there_is_none(recipe, optimizer):
    """Students and matched teachers of before there was a choice keep their keys."""
    named = recipe(optimizer=optimizer).outcome()
    assert set(recipe.model_fields) - set(named) == {"linear_step"}
    assert recipe(optimizer=optimizer, linear_step=3.0).outcome() == named | ({"linear_step": 3.0} if optimizer == "muon" else {})


@pytest.mark.parametrize("recipe", [StudentConfig, FunctionMatching])
def test_what_changes_nothing_as_the_others_are_makes_no_other_key(recipe):
    assert recipe(momentum=0.5).outcome() == recipe().outcome() == recipe(linear_step=2.0).outcome()
    assert recipe(optimizer="sgd", momentum=0.5).outcome() != recipe(optimizer="sgd").outcome()
    assert recipe(halve_at=(0.5,), warmup_share=0.1).outcome() == recipe(halve_at=(0.5,)).outcome() != recipe(warmup_share=0.1).outcome()


def test_what_a_student_depends_on_leaves_out_who_else_is_trained_and_tested():
    assert EvaluateConfig(seeds=7, baselines=(), part="validation").outcome() == StudentConfig().outcome()


@pytest.mark.parametrize("is_soft", [True, False])
def test_the_loss_is_equation_10(is_soft):
    """Pitfall 30: cross-entropy against the unmixed label, squared error averaged over classes."""
    config = CONFIG.model_copy(update={"hard_weight": 0.3, "soft_weight": 0.7})
    rng = np.random.default_rng(0)
    (label_N, partner_N), lambda_N, target_NK = rng.integers(0, 10, (2, 6)), rng.random(6), rng.normal(size=(6, 10))
    view_NCHW, student = BANK.take(torch.arange(6)), fresh().eval()
    target = torch.tensor(target_NK).float() if is_soft else None
    loss_of = student_loss(config, student, is_soft, BACKEND)
    loss = loss_of(view_NCHW, torch.tensor(label_N), torch.tensor(partner_N), torch.tensor(lambda_N).float(), target)
    by_hand = reference.student_loss(student(view_NCHW).tolist(), label_N, partner_N, lambda_N, target_NK if is_soft else None, 0.3, 0.7)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_one_label_per_image_is_mixed_as_the_images_are():
    logit_NK = torch.arange(20.0).view(4, 5).half()
    found_BK = labels_per_image(logit_NK)(torch.empty(0), torch.tensor([3, 1]), torch.tensor([1, 0]), torch.tensor([0.25, 1.0]), 0)
    assert found_BK.dtype == torch.float32
    torch.testing.assert_close(found_BK, torch.stack([0.25 * logit_NK[3].float() + 0.75 * logit_NK[1].float(), logit_NK[1].float()]))


class Interruption(Exception):
    pass


@pytest.mark.parametrize("make", [fresh, WithDropout], ids=["plain", "dropout"])
@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "ema_decay": None}], ids=str)
def test_interrupted_students_end_with_the_same_bytes(tmp_path, make, changes):
    """Interrupted in the middle of an epoch, twice; what a later attempt starts with must not matter, dropout draws what it would have drawn."""
    config = CONFIG.model_copy(update=changes)
    whole = train(tmp_path / "whole", make(0), config=config)
    for seed, n_calls in ((0, 5), (1, 4)):
        done = []

        def advance(n, done=done, n_calls=n_calls):
            done.append(n)
            if len(done) == n_calls:
                raise Interruption

        with pytest.raises(Interruption):
            train(tmp_path / "parts", make(seed), config=config, advance=advance)
        torch.rand(3)
    parts = train(tmp_path / "parts", make(2), config=config, advance=done.append)
    # 4 steps, then 3: the first call of `advance` tells what was done before
    assert done[n_calls] == 7 * 8 and sum(done[n_calls:]) == N_STEPS * 8
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


@pytest.mark.parametrize("make", [fresh, WithDropout], ids=["plain", "dropout"])
@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "ema_decay": None}, {"warmup_share": 0.5}], ids=str)
def test_students_trained_in_parts_have_the_bytes_of_those_trained_in_one_go(tmp_path, make, changes):
    """4 epochs of 3 batches, cut after the first and the third; a part is itself interrupted; whatever a part's student begins as is replaced."""
    config = CONFIG.model_copy(update=changes)
    whole = train(tmp_path / "whole", make(0), config=config, n_steps=12)
    start, told = None, []
    for number, last_epoch in enumerate((1, 3, None)):
        part = TrainingPart(start, last_epoch)
        arguments = (config, VIEWS, make(number), BANK, None, 12, 5, None, BACKEND, slot_at(tmp_path / f"part {number}"))
        if last_epoch == 3:
            calls = []

            def interrupt(n, calls=calls):
                calls.append(n)
                if len(calls) == 3:
                    raise Interruption

            with pytest.raises(Interruption):
                train_student(*arguments, advance=interrupt, part=part)
        trained = train_student(*arguments, advance=told.append, part=part)
        torch.rand(3)
        start = {name: tensor.clone() for name, tensor in trained.state().items()}
        assert int(start["n_done"]) == {1: 3, 3: 9, None: 12}[last_epoch] and not trained.tested.training
    assert sum(told) == 12 * 8, "every image once, the parts before left out"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, trained.tested.state_dict()[name]), name


def soft_labels(kind, epochs_per_task=3, loaded=None):
    """Of 4 epochs where they are stored; `loaded` is told the chunks as they are read."""
    if kind == "one":
        return labels_per_image(label_images(teacher(), BANK).tensors["logit"])
    if kind == "online":
        return labels_online(teacher())
    chunks = RelabelConfig(labels="stored", stored_epochs=4, epochs_per_task=epochs_per_task, views=VIEWS).chunks()

    def load(number):
        if loaded is not None:
            loaded.append(number)
        return label_views(VIEWS, teacher(), BANK, BACKEND, 5, chunks[number]).tensors["view_logit"]

    return labels_per_view(load, chunks, 3, BACKEND.device)


@pytest.mark.parametrize("kind", ["one", "stored", "online"])
def test_with_every_kind_of_label_the_student_comes_closer_to_the_teacher(tmp_path, kind):
    image_NCHW = BANK.take(torch.arange(22))
    config = CONFIG.model_copy(update={"hard_weight": 0.0, "weight_decay": 0.0})
    trained = train(tmp_path / "c", soft=soft_labels(kind), config=config, n_steps=60, n_view_epochs=4 if kind == "stored" else None)
    distance = {
        name: float((model(image_NCHW).detach() - teacher()(image_NCHW)).square().sum(1).mean())
        for name, model in (("before", fresh().eval()), ("after", trained))
    }
    assert distance["after"] < 0.4 * distance["before"], distance


def test_without_soft_labels_the_student_learns_the_one_hot_ones(tmp_path):
    trained = train(tmp_path / "c", n_steps=60, config=CONFIG.model_copy(update={"hard_weight": 0.025}))
    assert float((trained(BANK.take(torch.arange(22))).argmax(1) == BANK.label_N).float().mean()) > 0.7, (
        "chance is 0.1; k1 must not shrink the only term"
    )


@pytest.mark.parametrize(("epochs_per_task", "expected"), [(1, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]), (3, [0, 1, 0, 1, 0]), (4, [0])])
def test_stored_labels_are_replayed_on_exactly_their_views(tmp_path, epochs_per_task, expected):
    """Over more epochs than were stored, in the real loop, with a last batch that is filled up; each chunk is read once a round."""
    seen, loaded = [], []
    stored, label = soft_labels("stored", epochs_per_task, loaded), teacher()

    def checked(view_BCHW, *batch):
        target_BK = stored.of(view_BCHW, *batch)
        torch.testing.assert_close(target_BK, label(view_BCHW), atol=2e-3, rtol=2e-3)
        seen.append(target_BK)
        return target_BK

    train(tmp_path / "c", soft=SoftLabels(checked, stored.fetch), n_steps=3 * 4 * 2 + 5, n_view_epochs=4)
    assert n_batches(VIEWS, 22) == 3 and len(seen) == 29 and loaded == expected
    row_BK = stored.fetch(0)
    assert row_BK.untyped_storage().nbytes() == row_BK.numel() * row_BK.element_size(), "whoever keeps a row does not keep its chunk"
    assert torch.equal(seen[0], seen[12]) and torch.equal(seen[4], seen[28]) and not torch.equal(seen[0], seen[3])


def test_a_loss_that_explodes_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"^a student's loss became NaN or infinite: lower evaluate.learning_rate \(now 1e\+20\)\.$"):
        train(tmp_path / "c", config=CONFIG.model_copy(update={"learning_rate": 1e20}))
    # the next attempt finds the last step done
    assert int(slot_at(tmp_path / "c").load()["n_done"]) == N_STEPS
    with pytest.raises(InputError, match="became NaN or infinite"):
        train(tmp_path / "c", config=CONFIG.model_copy(update={"learning_rate": 1e20}))


class Lookup(torch.nn.Module):
    """Gives image i, whose pixels say i, the logits of row i."""

    def __init__(self, logit_NK):
        super().__init__()
        self.logit_NK = logit_NK

    def forward(self, image_NCHW):
        number_N = (image_NCHW * 255).round().long()
        return self.logit_NK[number_N[:, 0, 0, 0] + 256 * number_N[:, 0, 0, 1]]


def numbered_bank(label_N):
    number_N = np.arange(len(label_N))
    image_NCHW = np.stack([number_N % 256, number_N // 256], axis=-1).astype(np.uint8)[:, None, None, :]
    return ImageBank(image_NCHW, np.array(label_N), number_N, BACKEND.device)


def mean(values):
    return sum(values) / len(values) if values else None


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 12) | st.integers(240, 520), n_classes=st.integers(2, 9), seed=st.integers(0, 1000))
def test_scores_against_a_loop(n, n_classes, seed):
    """More images than a pass holds, classes and groups without test images, and fewer classes than five."""
    rng = np.random.default_rng(seed)
    label_N, logit_NK = rng.integers(0, n_classes, n).tolist(), rng.normal(size=(n, n_classes)).astype(np.float32)
    groups = rng.choice(["many", "medium", "few"], n_classes).tolist()
    payload = score(Lookup(torch.tensor(logit_NK).float()), numbered_bank(label_N), n_classes, groups, BACKEND)
    ranked_NK = [sorted(range(n_classes), key=lambda k, row=row: -row[k]) for row in logit_NK]
    hit_N = [ranked[0] == label for ranked, label in zip(ranked_NK, label_N, strict=True)]
    per_class = [mean([hit for hit, label in zip(hit_N, label_N, strict=True) if label == k]) for k in range(n_classes)]
    record = payload.record
    assert record["top1"] == pytest.approx(mean(hit_N)) and record["per_class"] == pytest.approx(per_class)
    top5 = mean([label in ranked[:5] for ranked, label in zip(ranked_NK, label_N, strict=True)])
    assert record["top5"] == (pytest.approx(top5) if n_classes > 5 else None)
    for group in ("many", "medium", "few"):
        of_group = [value for value, name in zip(per_class, groups, strict=True) if name == group and value is not None]
        assert record[group] == (pytest.approx(mean(of_group)) if of_group else None)
    assert payload.tensors["prediction"].tolist() == [ranked[0] for ranked in ranked_NK]


@settings(deadline=None, max_examples=40)
@given(count_K=st.lists(st.integers(1, 12), min_size=1, max_size=6), per_class=st.integers(1, 30), seed=st.integers(0, 99))
def test_random_real_images_use_every_image_before_any_twice(count_K, per_class, seed):
    label_N = torch.repeat_interleave(torch.arange(len(count_K)), torch.tensor(count_K)).flip(0)
    position = random_real_images(label_N, per_class, len(count_K), seed)
    assert label_N[position].tolist() == [k for k in range(len(count_K)) for _ in range(per_class)]
    for k, chosen in enumerate(position.view(len(count_K), per_class)):
        times = torch.bincount(chosen, minlength=len(label_N))[label_N == k]
        assert times.max() - times.min() <= 1
