"""Students: Eq. 10, labels of three kinds, what is tested, and how it is scored."""

import numpy as np
import pytest
import torch
from reference import students as twin

from ray_ltdd.artifacts import CheckpointSlot
from ray_ltdd.stages import evaluate
from ray_ltdd.stages.relabel import RelabelConfig, relabel
from ray_ltdd.stages.views import ViewsConfig, draw_epoch_views, make_batch, n_batches
from stages.small import BACKEND, digits_bank, student

VIEWS = ViewsConfig(batch_size=10, min_scale=0.5, flip=False)
CONFIG = evaluate.StudentConfig(learning_rate=3e-3, ema_decay=0.9)


def train(slot, soft=None, config=CONFIG, n_steps=30, advance=lambda n: None, bank=None, n_view_epochs=None):
    bank = bank or digits_bank((4,) * 10)
    return evaluate.train_student(config, VIEWS, student(), bank, soft, n_steps, 5, n_view_epochs, BACKEND, slot, advance)


@pytest.mark.parametrize("soft", [True, False])
def test_the_loss_is_equation_10(soft):
    config = CONFIG.model_copy(update={"hard_weight": 0.3, "soft_weight": 0.7})
    rng = np.random.default_rng(0)
    view = torch.rand(6, 1, 16, 16)
    label, partner = rng.integers(0, 10, (2, 6))
    lam, target = rng.random(6), rng.normal(size=(6, 10))
    model = student().eval()
    loss = evaluate.student_loss(config, model, soft, BACKEND)(
        view, torch.tensor(label), torch.tensor(partner), torch.tensor(lam).float(), torch.tensor(target).float() if soft else None
    )
    logit = model(view).detach().numpy().astype(np.float64)
    expected = twin.student_loss(logit, label, partner, lam, target if soft else None, 0.3 if soft else 1.0, 0.7)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_interrupted_students_are_the_same(tmp_path):
    whole = train(CheckpointSlot(tmp_path / "a", 1e9)).state_dict()
    n = 0

    def stop(images):
        nonlocal n
        n += images
        if n > 170:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CheckpointSlot(tmp_path / "b", 0), advance=stop)
    again = train(CheckpointSlot(tmp_path / "b", 0)).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_average_is_what_is_tested_buffers_too(tmp_path):
    averaged = train(CheckpointSlot(tmp_path / "a", 1e9)).state_dict()
    last = train(CheckpointSlot(tmp_path / "b", 1e9), config=CONFIG.model_copy(update={"ema_decay": None})).state_dict()
    differing = {name for name in last if not torch.equal(averaged[name], last[name])}
    assert any("running_mean" in name for name in differing) and "head.weight" in differing


def test_stored_labels_belong_to_the_views_they_are_replayed_on(tmp_path):
    bank, teacher = digits_bank((4,) * 10), student(9).eval().requires_grad_(False)
    config = RelabelConfig(labels="stored", stored_epochs=3, views=VIEWS)
    payload = relabel(config, teacher, bank, BACKEND, 5)
    stored = evaluate.labels_per_view(payload.tensors["view_logit"], BACKEND.device)
    per_epoch = n_batches(VIEWS, len(bank))
    for t in (0, 3, 5, 4 * per_epoch + 1):
        epoch, step = divmod(t, per_epoch)
        views = draw_epoch_views(VIEWS, len(bank), 5, epoch % 3, BACKEND.device)
        view, partner, lam = make_batch(VIEWS, bank, views, step)
        found = stored(view, views.index_SB[step], partner, lam, t)
        torch.testing.assert_close(found, evaluate.labels_online(teacher)(view, views.index_SB[step], partner, lam, t), atol=2e-3, rtol=2e-3)
    online = train(CheckpointSlot(tmp_path / "a", 1e9), evaluate.labels_online(teacher), bank=bank, n_view_epochs=3).state_dict()
    replay = train(CheckpointSlot(tmp_path / "b", 1e9), stored, bank=bank, n_view_epochs=3).state_dict()
    assert all(torch.allclose(online[name].float(), replay[name].float(), atol=0.05) for name in online)


def test_one_label_per_image_is_mixed_as_the_images_are():
    logit = torch.arange(20.0).view(4, 5).half()
    found = evaluate.labels_per_image(logit)(torch.empty(0), torch.tensor([3, 1]), torch.tensor([1, 0]), torch.tensor([0.25, 1.0]), 0)
    torch.testing.assert_close(found, torch.stack([0.25 * logit[3].float() + 0.75 * logit[1].float(), logit[1].float()]))


class Fixed(torch.nn.Module):
    def __init__(self, logit_NK):
        super().__init__()
        self.logit_NK, self.at = logit_NK, 0

    def forward(self, image):
        start, self.at = self.at, self.at + len(image)
        rows = torch.arange(start, start + len(image)).clamp(max=len(self.logit_NK) - 1)
        return self.logit_NK[rows]


def test_scores_against_a_loop():
    bank = digits_bank((5, 3, 2, 4, 1, 1, 2, 2, 3, 2))
    logit = torch.randn(len(bank), 10, generator=torch.Generator().manual_seed(0))
    groups = ["many"] * 3 + ["medium"] * 4 + ["few"] * 3
    record = evaluate.score(Fixed(logit), bank, 10, groups, BACKEND).record
    label = bank.label_N.tolist()
    hits = [int(logit[i].argmax()) == k for i, k in enumerate(label)]
    top5 = [k in logit[i].topk(5).indices.tolist() for i, k in enumerate(label)]
    per_class = [np.mean([h for h, k in zip(hits, label, strict=True) if k == c]) for c in range(10)]
    assert record["top1"] == pytest.approx(np.mean(hits)) and record["top5"] == pytest.approx(np.mean(top5))
    assert record["per_class"] == pytest.approx(per_class)
    assert record["many"] == pytest.approx(np.mean(per_class[:3])) and record["few"] == pytest.approx(np.mean(per_class[7:]))


def test_random_real_images_are_balanced_and_fill_up_small_classes():
    label = torch.tensor([0] * 30 + [1] * 7 + [2] * 3)
    chosen = evaluate.random_real_images(label, 5, 3, 0)
    assert label[chosen].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert len(set(chosen[:10].tolist())) == 10 and set(chosen[10:].tolist()) == {37, 38, 39}
    assert not torch.equal(chosen, evaluate.random_real_images(label, 5, 3, 1))
