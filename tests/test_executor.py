"""The in-process executor: order, reuse, progress, records; and a run whose tasks come in any order."""

from contextlib import contextmanager

import pytest
import torch

from ray_ltdd.artifacts import ArtifactStore, Key, Payload
from ray_ltdd.errors import InputError
from ray_ltdd.executor import InlineExecutor, SilentReporter, Task


class Recorder:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.stages = []

    @contextmanager
    def stage(self, title, n_images):
        done = []
        self.stages.append((title, n_images, done))
        yield done.append


def compute(context, slot, advance, number):
    """What a task of these tests does; the context keeps the order of calls."""
    context.append(number)
    advance(number)
    return Payload({"x": torch.tensor([number])}, {"number": number})


def task(number, stage="stage"):
    return Task(Key(stage, 1, {"number": number}, {}, 0), compute, {"number": number}, number, f"number {number}")


@pytest.fixture
def executor(tmp_path):
    return InlineExecutor(ArtifactStore(tmp_path), [], Recorder())


def numbers(artifacts):
    return [artifact.record["number"] for artifact in artifacts]


def test_artifacts_come_in_the_tasks_order_and_the_heaviest_is_computed_first(executor):
    assert numbers(executor.compute("Stage", [task(n) for n in (2, 9, 5)])) == [2, 9, 5]
    assert executor.context == [9, 5, 2]


def test_what_exists_is_not_computed_again_but_counts_as_progress(executor):
    executor.compute("Stage", [task(2), task(9)])
    assert numbers(executor.compute("Stage", [task(9), task(5), task(2)])) == [9, 5, 2]
    assert executor.context == [9, 2, 5]
    for title, total, done in executor.reporter.stages:
        assert title == "Stage" and sum(done) == total
    (record,) = executor.records()
    assert (record.n_computed, record.n_reused, record.n_images) == (3, 2, 27)
    assert record.wall_seconds > 0 and record.compute_seconds >= 0


def test_equal_tasks_are_computed_once(executor):
    assert numbers(executor.compute("Stage", [task(3), task(3)])) == [3, 3]
    assert executor.context == [3]


def test_no_tasks_are_no_artifacts(executor):
    assert executor.compute("Nothing", []) == []


def test_records_keep_the_order_of_first_use(executor):
    for title, number in (("B", 1), ("A", 2), ("B", 3)):
        executor.compute(title, [task(number)])
    assert [(record.title, record.n_computed) for record in executor.records()] == [("B", 2), ("A", 1)]


def test_parts_of_a_stage_are_shown_apart_and_their_costs_added_up(executor):
    for number in (1, 2):
        executor.compute("Stage", [task(number)], f"{number} of 2")
    assert [title for title, *_ in executor.reporter.stages] == ["Stage 1 of 2", "Stage 2 of 2"]
    assert [(record.title, record.n_computed) for record in executor.records()] == [("Stage", 2)]


def test_compute_seconds_are_those_of_the_artifact_whoever_computed_it(executor, tmp_path):
    (artifact,) = executor.compute("Stage", [task(1)])
    other = InlineExecutor(ArtifactStore(tmp_path), [], SilentReporter())
    other.compute("Stage", [task(1)])
    assert other.context == [] and other.records()[0].compute_seconds == artifact.seconds


def fail(context, slot, advance, number):
    """A task that cannot be done."""
    raise InputError(f"number {number} is odd")


def test_a_failing_task_keeps_what_was_done_before_it(executor):
    bad = Task(task(3).key, fail, {"number": 3}, 3, "number 3")
    with pytest.raises(InputError, match="number 3 is odd"):
        executor.compute("Stage", [task(8), bad, task(1)])
    assert executor.store.find(task(8).key) is not None and executor.store.find(bad.key) is None
    assert numbers(executor.compute("Stage", [task(8), task(3), task(1)])) == [8, 3, 1]
    assert executor.context == [8, 3, 1]
