"""A student trained in parts on the real pipeline: the artifact of one trained in one go, under its key, whatever the parts."""

from contextlib import contextmanager

import pytest
import torch
from commands import ROOT, TINY, checksums

from ray_ltdd import pipeline
from ray_ltdd.config import load_config
from ray_ltdd.executor import SilentReporter
from ray_ltdd.runs import open_run
from ray_ltdd.search.costs import read_costs
from ray_ltdd.search.work import stage_runs

pytestmark = pytest.mark.slow


def students(output, epochs, *overrides):
    """Distil into `output`, train the first student in parts; return its parts, all students, and the executor's record of them."""
    common = ["evaluate.seeds=2", "evaluate.part=validation", "split.validation_per_class=10", "split.allow_fewer=true", "evaluate.epochs=12"]
    config = load_config(ROOT / "configs" / "quickstart.yaml", [*TINY, *common, f"output.root={output}", *overrides]).config
    run = open_run(config, SilentReporter())
    distilled = pipeline.distil(config, run.bench, run.executor)
    parts = list(pipeline.train_in_parts(config, run.bench, run.executor, distilled, epochs))
    scores = pipeline.evaluate(config, run.bench, run.executor, distilled, parts[-1] if parts else None)
    record = next(record for record in run.executor.records() if record.title == "Students")
    return parts, scores.students["distilled"], record


@pytest.mark.parametrize("overrides", [(), ("relabel.labels=stored", "relabel.stored_epochs=3")], ids=["online", "stored"])
def test_the_last_part_is_the_whole_students_artifact(tmp_path, overrides):
    _, whole, plain = students(tmp_path / "whole", (), *overrides)
    parts, continued, record = students(tmp_path / "parts", (3, 7), *overrides)
    assert [student.digest for student in continued] == [student.digest for student in whole]
    expected, found = checksums(tmp_path / "whole"), checksums(tmp_path / "parts")
    assert {name: found[name] for name in expected} == expected and len(found) == len(expected) + 2
    metrics = ("top1", "per_class", "many", "few")
    assert all(a.record[name] == b.record[name] for a, b in zip(whole, continued, strict=True) for name in metrics)
    assert [part.record["epoch"] for part in parts] == [3, 7] and continued[0].record["epochs_before"] == 7
    assert record.n_images == plain.n_images, "no image is passed twice"


def test_a_part_holds_the_accuracy_at_its_epoch_and_depends_on_nothing_else(tmp_path):
    """Parts cut elsewhere before have the same bytes; a state is what one training would have passed through."""
    one, _, _ = students(tmp_path / "one", (7,))
    two, _, _ = students(tmp_path / "two", (3, 7))
    assert one[0].digest == two[1].digest and one[0].record["top1"] == two[1].record["top1"]
    first, second = one[0].tensors(), two[1].tensors()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert two[0].record["top1"] != two[1].record["top1"] or not torch.equal(two[0].tensors("prediction")["prediction"], first["prediction"])


def test_a_part_that_exists_is_not_computed_again(tmp_path):
    students(tmp_path, (3,))
    _, _, record = students(tmp_path, (3, 7))
    # the first part, two students and two baselines are there: only the second part is new
    assert (record.n_computed, record.n_reused) == (1, 5)


def test_every_students_progress_ends_at_what_was_announced(tmp_path):
    """Of one image a class a batch has no more images than there are; the baseline of the whole set fills its batches."""
    announced, told = [], []

    class Counting(SilentReporter):
        @contextmanager
        def stage(self, title, total):
            if title == "Students":
                announced.append(total)
            yield told.append if title == "Students" else lambda n: None

    names = [
        *TINY,
        "distill.images_per_class=1",
        "evaluate.seeds=1",
        "evaluate.epochs=3",
        "evaluate.baselines=[random, whole]",
        f"output.root={tmp_path}",
    ]
    config = load_config(ROOT / "configs" / "quickstart.yaml", names).config
    run = open_run(config, Counting())
    pipeline.evaluate(config, run.bench, run.executor, pipeline.distil(config, run.bench, run.executor))
    batch = config.relabel.views.batch_size
    assert batch > 10 and announced == [sum(told)] == [3 * (10 + 10 + batch)]
    by_source = [stage.work for stage in stage_runs(config, run.bench.split.count_K) if stage.kind.stage == "students"]
    assert sum(by_source) == sum(told)
    costs = [cost.work for cost in read_costs(run.executor.store.root, config.data.root) if cost.kind.stage == "students"]
    assert sorted(costs) == sorted(by_source)
