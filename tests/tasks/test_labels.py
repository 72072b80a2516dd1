"""Stored labels on the real pipeline: cut into chunks of any size they are the same numbers, and what a student got is what a user is given.

Legend: E stored epochs, B batch, K classes.
"""

import shutil

import pytest
import torch
from commands import TINY, checksums, quickstart_run
from reference import labels as reference
from safetensors.torch import load_file

from ray_ltdd import InputError, load_stored_views, pipeline
from ray_ltdd.results.distilled_views import VIEW_LOGITS
from ray_ltdd.runs import execute
from ray_ltdd.stages import evaluate
from ray_ltdd.stages.relabel import prior_correction

pytestmark = pytest.mark.slow
STORED = ("relabel.labels=stored", "relabel.stored_epochs=4", "relabel.tau=0.5", "relabel.views.batch_size=15", "evaluate.baselines=[]")


def run(output, *overrides):
    opened = quickstart_run(output, *TINY, *STORED, "evaluate.epochs=6", "recover.steps=4", *overrides)
    return opened, execute(opened)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run in chunks of 3 of 4 epochs; returns (its root, the run, the report, what every step of its student was given)."""
    output, seen = tmp_path_factory.mktemp("labels"), []
    per_view = evaluate.labels_per_view

    def watched(*arguments):
        look_up = per_view(*arguments)

        def watch(*batch):
            target_BK = look_up.of(*batch)
            seen.append((*batch[:4], target_BK))
            return target_BK

        return evaluate.SoftLabels(watch, look_up.fetch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "labels_per_view", watched)
        opened, report = run(output, "relabel.epochs_per_task=3")
    return output, opened, report, seen


def of_stage(output, stage):
    return {name: digest for name, digest in checksums(output).items() if name.startswith(f"store/{stage}/")}


@pytest.mark.parametrize("epochs_per_task", [1, 50])
def test_chunks_of_any_size_give_the_same_labels_and_students(finished, tmp_path, epochs_per_task):
    output, opened, report, _ = finished
    shutil.copytree(output / "store", tmp_path / "store")
    # trained again, though its key says that nothing has changed
    shutil.rmtree(tmp_path / "store" / "students")
    other, again = run(tmp_path, f"relabel.epochs_per_task={epochs_per_task}")
    before, after = (set(of_stage(folder, "relabel_views")) for folder in (output, tmp_path))
    # chunks of 3 leave the last epoch alone, as chunks of 1 do
    assert len(before) == 2 and len(after - before) == (3 if epochs_per_task == 1 else 1)
    assert of_stage(tmp_path, "students") == of_stage(output, "students") != {}
    assert (other.folder / "distilled" / VIEW_LOGITS).read_bytes() == (opened.folder / "distilled" / VIEW_LOGITS).read_bytes()
    assert again.label_bytes == report.label_bytes == 4 * 4 * 15 * 10 * 2
    assert [outcome.describe() for outcome in again.outcomes] == [outcome.describe() for outcome in report.outcomes]


def test_loaded_views_are_what_the_student_was_trained_on(finished):
    _, opened, _, seen = finished
    stored = load_stored_views(opened.folder)
    batches = list(stored)
    assert len(stored) == len(batches) == 16 and (stored.n_epochs, stored.n_batches) == (4, 4) and len(seen) == 24
    label_N = opened.bench.stored_bank(load_images(opened)).label_N
    for t, (view_BCHW, index_B, partner_B, lambda_B, target_BK) in enumerate(seen):
        batch = batches[t % 16]
        expected = (view_BCHW, label_N[index_B], label_N[index_B[partner_B]], lambda_B, target_BK)
        assert all(torch.equal(given, wanted) and given.dtype == wanted.dtype for given, wanted in zip(batch, expected, strict=True)), t
    assert torch.equal(next(stored.epoch(2)).view_BCHW, batches[8].view_BCHW)
    assert load_file(opened.folder / "distilled" / VIEW_LOGITS)["view_logit"].shape == (4, 4, 15, 10), "a file as safetensors' own"


def test_mirror_averaged_labels_of_a_run_are_the_mean_of_both_asked(finished, tmp_path):
    output, _, _, _ = finished
    shutil.copytree(output / "store", tmp_path / "store")
    opened, _ = run(tmp_path, "relabel.mirror_average=true", "relabel.views.flip=true")
    distilled = pipeline.distil(opened.config, opened.bench, opened.executor)
    image_NCHW = opened.bench.stored_bank(distilled.images).take(torch.arange(50))
    teacher = opened.bench.expert(distilled.teachers[0])
    correction_K = prior_correction(opened.bench.count_K, 0.5)
    expected_NK = (teacher(image_NCHW) + teacher(image_NCHW.flip(3))).float() / 2 - correction_K
    assert torch.allclose(distilled.labels.images.tensors()["logit"].float(), expected_NK, atol=0.05)
    assert not torch.allclose(expected_NK, teacher(image_NCHW).float() - correction_K, atol=0.5)
    assert len(of_stage(tmp_path, "experts")) == len(of_stage(output, "experts")), "trained once"


def test_a_student_with_its_teacher_in_the_loop_is_trained_on_calibrated_labels(finished, tmp_path, monkeypatch):
    """Labels `online` by Eq. T, taken where the student's loss is: whoever asked the teacher, this is what the student learns."""
    output, _, _, _ = finished
    shutil.copytree(output / "store", tmp_path / "store")
    seen, student_loss = [], evaluate.student_loss

    def watched(*arguments):
        loss = student_loss(*arguments)

        def watch(view_BCHW, label_B, partner_label_B, lambda_B, target_BK):
            seen.append((view_BCHW.clone(), target_BK.clone()))
            return loss(view_BCHW, label_B, partner_label_B, lambda_B, target_BK)

        return watch

    monkeypatch.setattr(evaluate, "student_loss", watched)
    opened, _ = run(tmp_path, "relabel.labels=online", "relabel.mirror_average=true", "relabel.views.flip=true")
    teacher = opened.bench.expert(pipeline.distil(opened.config, opened.bench, opened.executor).teachers[0])
    count_K = opened.bench.split.count_K.tolist()
    assert len(seen) == 24
    for view_BCHW, target_BK in seen[::8]:
        logit_BK, mirrored_BK = (teacher(image_BCHW).tolist() for image_BCHW in (view_BCHW, view_BCHW.flip(3)))
        expected_BK = torch.tensor(reference.calibrated_labels(logit_BK, mirrored_BK, count_K, 0.5))
        assert target_BK.shape == (15, 10) and torch.allclose(target_BK, expected_BK, atol=1e-4)
        # asking once, or not calibrating, is another label by far
        plain_BK, uncalibrated_BK = (
            torch.tensor(reference.calibrated_labels(logit_BK, *other)) for other in ((logit_BK, count_K, 0.5), (mirrored_BK, count_K, 0))
        )
        assert min(float((expected_BK - other_BK).abs().max()) for other_BK in (plain_BK, uncalibrated_BK)) > 0.1


def load_images(opened):
    return pipeline.distil(opened.config, opened.bench, opened.executor).images


def test_runs_without_stored_views_and_damaged_ones_are_sentences(finished, tmp_path):
    _, opened, _, _ = finished
    folder = tmp_path / "distilled"
    with pytest.raises(InputError, match="there is no distilled dataset"):
        load_stored_views(tmp_path)
    shutil.copytree(opened.folder / "distilled", folder)
    with pytest.raises(InputError, match=r"epoch 4 of the views in .* is not stored: give one of 0 to 3\.$"):
        next(load_stored_views(tmp_path).epoch(4))
    content = (folder / VIEW_LOGITS).read_bytes()
    for damaged, sentence in (
        (content[:-1], "is damaged"),
        (content.replace(b'"views_version": "2"', b'"views_version": "1"'), "drawn by version 1"),
    ):
        (folder / VIEW_LOGITS).write_bytes(damaged)
        with pytest.raises(InputError, match=sentence):
            load_stored_views(folder)
    (folder / VIEW_LOGITS).unlink()
    with pytest.raises(InputError, match=r"has no stored labels of views .*: run it with relabel\.labels=stored\.$"):
        load_stored_views(folder)
