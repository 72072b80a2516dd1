"""Soft labels: the mean of the teachers, corrected, stored, replayed, never differentiated.

Legend: N images, K classes, E epochs, S batches of an epoch, B batch.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import losses as reference

from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_student
from ray_ltdd.stages.relabel import RelabelConfig, calibrated, label_images, label_views, mean_logits, mirror_averaged, prior_correction
from ray_ltdd.stages.views import ViewsConfig, draw_epoch_views, make_batch, n_batches

BACKEND = Backend(torch.device("cpu"), torch.float32, "off")
BFLOAT16 = Backend(torch.device("cpu"), torch.bfloat16, "off")
VIEWS = ViewsConfig(batch_size=4)


def build_teachers(n=1):
    return [build_student(ModelConfig(width=4, depth=1), 8, 3, 5, [0.5] * 3, [0.25] * 3, seed).eval() for seed in range(n)]


def build_bank(n=10):
    image_NCHW = np.random.default_rng(0).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    return ImageBank(image_NCHW, np.arange(n) % 5, np.arange(n), BACKEND.device)


@settings(deadline=None, max_examples=40)
@given(count_K=st.lists(st.integers(1, 5000), min_size=1, max_size=8), tau=st.floats(-5, 5))
def test_the_correction_against_a_loop_and_centred(count_K, tau):
    correction_K = prior_correction(torch.tensor(count_K), tau)
    assert correction_K.dtype == torch.float32
    np.testing.assert_allclose(correction_K.numpy(), reference.prior_correction(count_K, tau), rtol=1e-5, atol=1e-5)
    assert correction_K.sum().item() == pytest.approx(0.0, abs=1e-4)


def test_the_correction_lowers_head_classes_and_keeps_the_mean_logit():
    teacher = mean_logits(build_teachers(), BACKEND)
    image_NCHW = torch.rand(3, 3, 8, 8)
    correction_K = prior_correction(torch.tensor([100, 50, 20, 10, 5]), 1.0)
    plain_NK, corrected_NK = teacher(image_NCHW), calibrated(teacher, correction_K)(image_NCHW)
    torch.testing.assert_close(corrected_NK, plain_NK - correction_K)
    torch.testing.assert_close(corrected_NK.mean(1), plain_NK.mean(1), atol=1e-5, rtol=0)
    assert bool((corrected_NK[:, 0] < plain_NK[:, 0]).all() and (corrected_NK[:, 4] > plain_NK[:, 4]).all())


def test_several_teachers_are_averaged_in_logits():
    teachers, image_NCHW = build_teachers(3), torch.rand(4, 3, 8, 8)
    expected_NK = sum(teacher(image_NCHW).detach().double() for teacher in teachers) / 3
    got_NK = mean_logits(teachers, BACKEND)(image_NCHW)
    assert got_NK.dtype == torch.float32 and got_NK.shape == (4, 5)
    torch.testing.assert_close(got_NK.double(), expected_NK, atol=1e-5, rtol=1e-5)


def test_mirror_averaged_labels_against_a_loop_and_the_same_for_both_images():
    (teacher,), image_NCHW = build_teachers(), torch.rand(4, 3, 8, 8)
    label = mirror_averaged(mean_logits([teacher], BACKEND))
    mirrored_NCHW = torch.from_numpy(image_NCHW.numpy()[..., ::-1].copy())
    expected_NK = torch.stack([(teacher(a[None]) + teacher(b[None]))[0] / 2 for a, b in zip(image_NCHW, mirrored_NCHW, strict=True)])
    torch.testing.assert_close(label(image_NCHW), expected_NK, atol=1e-5, rtol=1e-5)
    assert torch.equal(label(image_NCHW), label(mirrored_NCHW)) and not torch.equal(teacher(image_NCHW), teacher(mirrored_NCHW))


@pytest.mark.parametrize("labels", ["one", "stored", "online"])
def test_epochs_that_are_not_stored_make_no_other_key(labels):
    few, many = (RelabelConfig(labels=labels, stored_epochs=n).outcome() for n in (7, 50))
    assert (few == many) == (labels != "stored")


def test_mirror_averaging_goes_unnamed_where_there_is_none_and_needs_sides_that_are_alike():
    plain, averaged = RelabelConfig(), RelabelConfig(mirror_average=True)
    assert "mirror_average" not in plain.outcome() and plain.image_outcome() == {"tau": 0.0} and plain.n_passes == 1
    assert averaged.outcome() == {**plain.outcome(), "mirror_average": True} and averaged.n_passes == 2
    assert averaged.image_outcome() == {"tau": 0.0, "mirror_average": True}
    with pytest.raises(ValueError, match=r"mirror_average=true beside views\.flip=false"):
        RelabelConfig(mirror_average=True, views=ViewsConfig(flip=False))


@pytest.mark.parametrize("backend", [BACKEND, BFLOAT16], ids=["float32", "bfloat16"])
def test_the_teacher_is_never_differentiated(backend):
    """Pitfall 29: under autocast the teacher was back-propagated through."""
    teachers = build_teachers(2)
    image_NCHW = torch.rand(3, 3, 8, 8, requires_grad=True)
    teacher = mean_logits(teachers, backend)
    with torch.enable_grad():
        for label in (teacher, calibrated(teacher, torch.ones(5))):
            logit_NK = label(image_NCHW)
            assert not logit_NK.requires_grad and logit_NK.grad_fn is None and logit_NK.dtype == torch.float32
    assert all(parameter.grad is None for module in teachers for parameter in module.parameters())


def test_the_images_own_logits_in_order_in_more_than_one_pass():
    bank, teacher, done = build_bank(300), mean_logits(build_teachers(), BACKEND), []
    logit_NK = label_images(teacher, bank, done.append).tensors["logit"]
    assert logit_NK.dtype == torch.float16 and logit_NK.shape == (300, 5) and sum(done) == 300 and len(done) > 1
    torch.testing.assert_close(logit_NK.float(), teacher(bank.take(torch.arange(300))), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_stored_labels_are_the_teachers_on_views_drawn_again(mix):
    """Pitfall 28: nothing but labels and a seed is stored."""
    bank, teacher = build_bank(), calibrated(mean_logits(build_teachers(), BACKEND), torch.arange(5.0))
    config, epochs = VIEWS.model_copy(update={"mix": mix}), range(3)
    done = []
    stored = label_views(config, teacher, bank, BACKEND, 9, epochs, done.append).tensors["view_logit"]
    assert stored.dtype == torch.float16 and stored.shape == (3, 3, 4, 5) and sum(done) == 36
    for epoch in epochs:
        views = draw_epoch_views(config, 10, 8, 9, epoch, BACKEND.device)
        for step in range(3):
            assert torch.equal(stored[epoch, step], teacher(make_batch(config, bank, views, step)[0]).half())
    assert not torch.equal(stored, label_views(config, teacher, bank, BACKEND, 10, epochs).tensors["view_logit"])


@settings(deadline=None, max_examples=20)
@given(stored_epochs=st.integers(1, 7), epochs_per_task=st.integers(1, 9))
def test_chunks_of_epochs_hold_the_labels_of_all_at_once(stored_epochs, epochs_per_task):
    bank, teacher = build_bank(), mean_logits(build_teachers(), BACKEND)
    config = RelabelConfig(labels="stored", stored_epochs=stored_epochs, epochs_per_task=epochs_per_task)
    chunks = config.chunks()
    assert [epoch for chunk in chunks for epoch in chunk] == list(range(stored_epochs)), "every epoch once, in order"
    assert {len(chunk) for chunk in chunks[:-1]} <= {epochs_per_task} and 1 <= len(chunks[-1]) <= epochs_per_task
    whole = label_views(VIEWS, teacher, bank, BACKEND, 9, range(stored_epochs)).tensors["view_logit"]
    parts = [label_views(VIEWS, teacher, bank, BACKEND, 9, chunk).tensors["view_logit"] for chunk in chunks]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("labels", ["one", "online"])
def test_other_kinds_of_labels_store_no_epochs(labels):
    assert RelabelConfig(labels=labels).chunks() == []


@pytest.mark.parametrize(("batch_size", "n_steps"), [(4, 3), (64, 1)])
def test_stored_labels_take_two_bytes_a_number(batch_size, n_steps):
    """Pitfall 28: what labels cost. A set smaller than a batch is one batch of all its images."""
    config, bank, teacher = VIEWS.model_copy(update={"batch_size": batch_size}), build_bank(), mean_logits(build_teachers(), BACKEND)
    tensors = label_views(config, teacher, bank, BACKEND, 0, range(7)).tensors | label_images(teacher, bank).tensors
    n_bytes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    assert n_batches(config, 10) == n_steps
    assert n_bytes == {"logit": 2 * 10 * 5, "view_logit": 2 * 7 * n_steps * min(batch_size, 10) * 5}
