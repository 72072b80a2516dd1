"""What the chain of stages promises about data: one split for all of it, and test images that are seen once, at the end, as they are.

Legend: N images, B batch, C channels, H W pixels.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from commands import ROOT

from ray_ltdd.config import load_config
from ray_ltdd.errors import InputError
from ray_ltdd.executor import SilentReporter
from ray_ltdd.pipeline import train_experts
from ray_ltdd.runs import execute, in_this_process, open_run
from ray_ltdd.stages import evaluate
from ray_ltdd.tasks.distil import expert_task
from ray_ltdd.tasks.keys import joint_digest
from ray_ltdd.workbench import Workbench

pytestmark = pytest.mark.slow

SMALLEST = (
    "cluster.executor=inline",
    "compute.precision=float32",
    "compute.compile=off",
    "experts.epochs=1",
    "experts.learning_rate=1e-9",
    "experts.accuracy_floor=0",
    "experts.ema_decay=null",
    "observer.model={width: 4, depth: 1}",
    "teacher.model={width: 4, depth: 1}",
    "more_teachers=[{model: {width: 4, depth: 1}, member: 1}]",
    "evaluate.model={width: 4, depth: 1}",
    "distill={images_per_class: 1, classes_per_unit: 5}",
    "select_crops.crops_per_image=1",
    "recover.steps=3",
    "recover.exchange_every=2",
    "evaluate.epochs=2",
    "evaluate.seeds=2",
    "evaluate.baselines=[random, whole]",
)
STAGES = {"experts", "calibrate", "select_crops", "target", "exchange", "recover", "images", "relabel", "students", "scores"}


class Collecting:
    """An executor that hands its tasks to the real one, and keeps them with their artifacts."""

    def __init__(self, inner, events):
        self.inner, self.store, self.records, self.close = inner, inner.store, inner.records, inner.close
        self.calls, self._events = [], events

    def compute(self, title, tasks, part=""):
        self._events.append(("stage", title))
        artifacts = self.inner.compute(title, tasks, part)
        self.calls.append((tasks, artifacts))
        return artifacts


class Listening(SilentReporter):
    def __init__(self, events):
        self._events = events

    def note(self, sentence):
        self._events.append(("note", sentence))


@dataclass
class Witness:
    """Of one run: what happened in order, and every scored network with the batches it was given."""

    events: list = field(default_factory=list)
    scored: list = field(default_factory=list)

    def bank(self, real, bench, part):
        self.events.append(("open", part))
        return real(bench, part)

    def train_student(self, real, *arguments, **named):
        self.events.append(("train", "begin"))
        trained = real(*arguments, **named)
        n_done, n_steps = int(trained.state()["n_done"]), arguments[5]
        self.events.append(("train", "last step" if n_done == n_steps else "too early"))
        return trained

    def score(self, real, model, *arguments):
        batches = []
        with self._watched(model, batches):
            payload = real(model, *arguments)
        self.scored.append((model, torch.cat(batches)))
        return payload

    @contextmanager
    def _watched(self, model, batches):
        hook = model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].clone()))
        yield
        hook.remove()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run on digits, watched."""
    output, witness = tmp_path_factory.mktemp("runs"), Witness()
    config = load_config(ROOT / "configs" / "quickstart.yaml", [*SMALLEST, f"output.root={output}"]).config
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Workbench, "bank"), (evaluate, "train_student"), (evaluate, "score")):
            real = getattr(owner, name)
            spy = getattr(witness, name)
            # a function, not a partial: it becomes a method of the workbench
            patch.setattr(owner, name, lambda *arguments, spy=spy, real=real, **named: spy(real, *arguments, **named))
        with open_run(config, Listening(witness.events), make_executor=lambda parts: Collecting(in_this_process(parts), witness.events)) as run:
            report = execute(run)
    return run, witness, report


def test_every_task_of_every_stage_comes_from_the_one_split_and_from_nothing_else(finished):
    """Pitfall 1: every stage drew a subset of its own."""
    run, _, _ = finished
    split, data = run.bench.split.fingerprint, run.bench.prepared.fingerprint
    from_split = {split}
    seen = set()
    for tasks, artifacts in run.executor.calls:
        for task in tasks:
            upstream = {value for value in task.key.upstream.values() if value}
            assert upstream & from_split, f"{task.label} does not depend on the split"
            assert upstream <= from_split | {data}, f"{task.label} reads what no stage before it made"
            if task.key.stage in ("experts", "calibrate", "select_crops", "relabel", "students", "scores"):
                assert task.key.upstream["split"] == split, task.label
            seen.add(task.key.stage)
        from_split |= {artifact.digest for artifact in artifacts} | {joint_digest([artifact]) for artifact in artifacts}
        from_split |= {joint_digest(artifacts), joint_digest(artifacts[1:])}
    assert seen >= STAGES


def test_test_images_reach_every_network_as_they_are_and_through_the_training_normalisation(finished):
    """Pitfall 5."""
    run, witness, _ = finished
    bench = run.bench
    test_NCHW = torch.from_numpy(bench.prepared.test.image_NCHW.astype("float32")) / 255
    train_NCHW = torch.from_numpy(bench.prepared.train.image_NCHW[bench.split.train_index_N].astype("float64")) / 255
    assert len(witness.scored) == 3 * 2 + 2, "students, and the two experts"
    for model, seen_NCHW in witness.scored:
        torch.testing.assert_close(seen_NCHW[: len(test_NCHW)], test_NCHW, rtol=0, atol=1e-7)
        # the last batch is filled up with its last image
        assert all(torch.equal(image_CHW, seen_NCHW[len(test_NCHW) - 1]) for image_CHW in seen_NCHW[len(test_NCHW) :])
        assert not model.training
        constants = [buffer.flatten().double() for buffer in (model.mean_C, model.std_C)]
        torch.testing.assert_close(constants, [train_NCHW.mean((0, 2, 3)), train_NCHW.std((0, 2, 3), correction=0)], rtol=1e-4, atol=1e-5)


def test_the_test_part_is_opened_after_the_last_step_of_a_student_and_never_in_training(finished):
    """Pitfalls 6 and 33: the checkpoint, or the best epoch, chosen on the test set."""
    _, witness, _ = finished
    events = [event for event in witness.events if event[0] in ("open", "train")]
    opened = [i for i, event in enumerate(events) if event == ("open", "test")]
    trained = [i for i, event in enumerate(events) if event == ("train", "last step")]
    assert ("train", "too early") not in events and ("open", "validation") not in events
    assert len(trained) == 6 and opened[0] > trained[0]
    assert opened[:6] == [i + 1 for i in trained], "each student is tested once, right after its own last step"
    stages = [name for kind, name in witness.events if kind == "stage"]
    assert witness.events.index(("open", "test")) > witness.events.index(("stage", "Students")) and stages[-2:] == ["Students", "Experts' accuracy"]


def test_experts_that_were_trained_under_a_lower_floor_are_refused_like_new_ones(finished):
    run, _, _ = finished
    strict = run.config.model_copy(
        update={
            role: (expert := getattr(run.config, role)).model_copy(update={"training": expert.training.model_copy(update={"accuracy_floor": 9.9})})
            for role in ("observer", "teacher")
        }
    )
    assert [task.key for task in map(partial(expert_task, strict, run.bench), (strict.observer, strict.teacher))] == [
        task.key for task in map(partial(expert_task, run.config, run.bench), (run.config.observer, run.config.teacher))
    ]
    with pytest.raises(InputError, match=r"it has learnt next to nothing\. Raise experts\.epochs"):
        train_experts(strict, run.bench, run.executor)


def test_weak_experts_are_told_of_before_the_next_stage_begins_and_at_the_end(finished):
    _, witness, report = finished
    told = [sentence for kind, sentence in witness.events if kind == "note"]
    assert told and all("at or below chance on its own training images of" in sentence for sentence in told)
    assert witness.events.index(("note", told[-1])) < witness.events.index(("stage", "Calibrate"))
    assert report.notes[: len(told)] == told


def test_a_picture_that_cannot_be_drawn_costs_no_result(finished, monkeypatch):
    run, _, report = finished
    config = run.config.model_copy(update={"name": "no-picture"})
    monkeypatch.setattr("ray_ltdd.results.gallery.draw_gallery", lambda *_: 1 / 0)
    with open_run(config, SilentReporter()) as opened, pytest.raises(ZeroDivisionError):
        execute(opened)
    left = {path.name for path in opened.folder.iterdir()}
    assert left == {"settings.yaml", "data.json", "distilled", "results", "summary.json"}
    assert json.loads((opened.folder / "summary.json").read_text())["outcomes"] == report.describe()["outcomes"]
