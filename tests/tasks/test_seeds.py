"""Who has a seed of its own has other bytes: a key that names a number says nothing about whether the number reached the draws.

Legend: P weights.
"""

from itertools import combinations

import pytest
import torch
from commands import TINY, quickstart_run

from ray_ltdd import pipeline
from ray_ltdd.stages import recover
from ray_ltdd.tasks.distil import crops_task, expert_task
from ray_ltdd.tasks.students import student_task

pytestmark = pytest.mark.slow
SMALLEST = (
    "experts.epochs=1",
    "experts.batch_size=200",
    "distill={images_per_class: 2, classes_per_unit: 5}",
    # no teacher is asked: the draws alone decide
    "select_crops.method=random",
    "recover={steps: 2, batch_size: 5}",
    "evaluate.epochs=2",
)
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The smallest run of two units and two waves."""
    return quickstart_run(tmp_path_factory.mktemp("seeds"), *TINY, *SMALLEST)


@pytest.fixture(scope="module")
def distilled(run):
    return pipeline.distil(run.config, run.bench, run.executor)


def seeded(run, seed):
    """The run's settings with another seed: whatever it is given stays the first run's."""
    return run.config.model_copy(update={"seed": seed})


def computed(run, tasks):
    return run.executor.compute("seeds", tasks)


def weights(artifact, prefix=""):
    """What is drawn at the start, kernels and matrices, as one vector [P]."""
    return torch.cat([tensor.flatten() for name, tensor in sorted(artifact.tensors(prefix).items()) if name.endswith("weight") and tensor.dim() > 1])


def are_other_draws(vectors):
    """Whether all are as far from one another as unrelated draws are: one that was only trained otherwise for a step or two has hardly moved."""
    return all(float((one_P - two_P).abs().mean()) > 0.5 * float(one_P.abs().mean()) for one_P, two_P in combinations(vectors, 2))


def test_every_member_and_every_seed_trains_another_expert(run):
    experts = [run.config.teacher.model_copy(update={"member": member}) for member in (0, 1)]
    trained = computed(run, [expert_task(seeded(run, seed), run.bench, expert) for seed in SEEDS for expert in experts])
    assert are_other_draws([weights(artifact) for artifact in trained])


@pytest.mark.parametrize("source", ["distilled", "random"])
def test_every_number_and_every_seed_trains_another_student(run, distilled, source):
    """After the first of two epochs, whose state holds the weights, on the same images."""
    given = (distilled.teachers, distilled.images, distilled.labels)
    tasks = [student_task(seeded(run, seed), run.bench, source, number, *given, last_epoch=1) for seed in SEEDS for number in (0, 1)]
    assert are_other_draws([weights(artifact, "state/module/") for artifact in computed(run, tasks)])


def test_every_seed_chooses_other_crops(run, distilled):
    tasks = [crops_task(seeded(run, seed), run.bench, distilled.teachers, unit) for seed in SEEDS for unit in distilled.units]
    images = [artifact.tensors()["image"] for artifact in computed(run, tasks)]
    assert len({image.numpy().tobytes() for image_NCHW in images for image in image_NCHW}) == len(SEEDS) * 20


def test_every_unit_wave_step_and_seed_of_recovery_cuts_other_crops(run, distilled, monkeypatch):
    boxes, crop = [], recover.crop

    def watched(image_NCHW, box_N4, *more):
        boxes.append(box_N4)
        return crop(image_NCHW, box_N4, *more)

    monkeypatch.setattr(recover, "crop", watched)
    # seeds that nothing has been recovered with
    for seed in (2, 3):
        inputs = (distilled.observer, distilled.units, distilled.moments, distilled.initial)
        pipeline.recover_waves(seeded(run, seed), run.executor, *inputs)
    # two seeds, units, waves and steps, and the five images of each
    assert [tuple(box_N4.shape) for box_N4 in boxes] == [(5, 4)] * 16
    assert len(torch.cat(boxes).unique(dim=0)) == 16 * 5
