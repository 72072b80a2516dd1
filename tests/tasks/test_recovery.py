"""Recovery of several work units on the real pipeline: whose images are whose in the end.

Legend: C H W.
"""

import pytest
import torch
from commands import ROOT

from ray_ltdd import pipeline
from ray_ltdd.config import load_config
from ray_ltdd.executor import SilentReporter
from ray_ltdd.runs import open_run
from ray_ltdd.stages.recover import round_pixels
from ray_ltdd.tasks.recovery import WavePlace

IPC, N_WAVES, N_STEPS = 3, 2, 5
SETTINGS = (
    "cluster.executor=inline",
    "compute={device: cpu, precision: float32, compile: 'off', threads: 1}",
    "experts={epochs: 1, accuracy_floor: 0}",
    "observer.model={width: 4, depth: 2, normalization: batch}",
    "teacher.model={width: 4, depth: 1}",
    # three units, of 4, 3 and 3 classes that do not lie together; two waves, of one and of two images a class
    "distill={images_per_class: 3, classes_per_unit: 4}",
    "select_crops.crops_per_image=1",
    "recover={steps: 5, exchange_every: 2, batch_size: 8, min_scale: 0.7, alignment_weight: 1, global_weight: 3}",
    "recover.layer_weights={encoder.blocks.1.1: 3}",
    "relabel.labels=one",
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run on digits and what it distilled."""
    names = [*SETTINGS, f"output.root={tmp_path_factory.mktemp('runs')}"]
    with open_run(load_config(ROOT / "configs" / "quickstart.yaml", names).config, SilentReporter()) as run:
        yield run, pipeline.distil(run.config, run.bench, run.executor)


def changed(config, stage, **values):
    return config.model_copy(update={stage: getattr(config, stage).model_copy(update=values)})


def recovered(opened, config):
    """Every wave's final states, unit by unit."""
    run, distilled = opened
    return pipeline.recover_waves(config, run.executor, distilled.observer, distilled.units, distilled.moments, distilled.initial)


def test_every_distilled_image_is_the_one_recovered_for_its_class(opened):
    run, distilled = opened
    tensors, seen = distilled.images.tensors(), set()
    assert len(distilled.units) == 3 and tensors["label"].tolist() == [k for k in range(10) for _ in range(IPC)]
    for wave, states in enumerate(recovered(opened, run.config)):
        for unit, state in zip(distilled.units, states, strict=True):
            rows = WavePlace(unit, wave, N_WAVES, N_STEPS).rows(IPC)
            for row, image_CHW in zip(rows, round_pixels(state.tensors()["image"]), strict=True):
                label, i = unit[row // IPC], row % IPC
                assert torch.equal(tensors["image"][tensors["label"] == label][i], image_CHW), (unit, wave, label, i)
                seen.add((label, i, image_CHW.numpy().tobytes()))
    assert len(seen) == len({image for _, _, image in seen}) == 10 * IPC, "no two are alike"


def test_without_steps_every_class_keeps_its_initial_images(opened):
    run, distilled = opened
    still = pipeline.distil(changed(run.config, "recover", steps=0), run.bench, run.executor)
    tensors = still.images.tensors()
    assert [artifact.digest for artifact in still.initial] == [artifact.digest for artifact in distilled.initial]
    for unit, artifact in zip(still.units, still.initial, strict=True):
        initial = artifact.tensors()
        for label in unit:
            assert torch.equal(tensors["image"][tensors["label"] == label], round_pixels(initial["image"][initial["label"] == label])), label
