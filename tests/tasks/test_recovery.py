"""Recovery of several work units on the real pipeline: what they tell each other, and whose images are whose in the end.

Legend: N images, K classes of a unit, A all classes, F channels, L layers.
"""

import numpy as np
import pytest
import torch
from commands import quickstart_run
from reference import recovery as reference
from reference import targets as reference_targets

from ray_ltdd import pipeline
from ray_ltdd.data.augment import crop, draw_crop_boxes, draw_flips
from ray_ltdd.seeding import derive_seed, generator
from ray_ltdd.stages.recover import round_pixels
from ray_ltdd.tasks.recovery import WavePlace, target_task

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
LAYER_WEIGHTS = (10.0, 3.0)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run on digits and what it distilled."""
    with quickstart_run(tmp_path_factory.mktemp("runs"), *SETTINGS) as run:
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


def moments_of_all(distilled):
    """The real set's moments as the store holds them, one pair [A, F] a layer."""
    layers = distilled.moments[0].record["layers"]
    stored = [artifact.tensors() for artifact in distilled.moments]
    by_class = np.argsort(np.concatenate(distilled.units))
    return [tuple(np.concatenate([tensors[f"{name}/{part}"] for tensors in stored])[by_class] for part in ("mean", "var")) for name in layers]


@pytest.mark.parametrize("variance", ["mixture", "mean_of_classes"])
@pytest.mark.parametrize("weights", ["uniform", "sample", "effective_number"])
def test_the_stored_target_is_what_its_settings_say(opened, weights, variance):
    """All of them in one store: none may be taken for another."""
    run, distilled = opened
    config = changed(run.config, "calibrate", class_weights=weights, variance=variance, beta=0.9)
    (target,) = run.executor.compute("Calibrate", [target_task(config, distilled.units, distilled.moments)])
    weight_A = reference_targets.class_weights(weights, run.bench.split.count_K, 0.9)
    for name, pair in zip(target.record["layers"], moments_of_all(distilled), strict=True):
        expected = reference_targets.global_target(*pair, weight_A, variance)
        for part, expected_F in zip(("mean", "var"), expected, strict=True):
            np.testing.assert_allclose(target.tensors()[f"{name}/{part}"].numpy(), expected_F, rtol=1e-9, atol=1e-12)


def twins(run, distilled, wave):
    """A wave of every unit at its start, for the reference."""
    target_L = [tuple(map(torch.from_numpy, pair)) for pair in moments_of_all(distilled)]
    for unit, artifact in zip(distilled.units, distilled.initial, strict=True):
        classes, initial = list(unit), artifact.tensors()
        rows = WavePlace(unit, wave, N_WAVES, N_STEPS).rows(IPC)
        seed = derive_seed(run.config.seed, "recover", unit[0], wave)
        own_L = [tuple(moment_AF[classes] for moment_AF in pair) for pair in target_L]
        yield reference.Unit(classes, initial["label"][rows], initial["image"][rows], seed, own_L)


def view(unit, step):
    rng, n = generator("cpu", unit.seed, "recover-crops", step), len(unit.pixel)
    return crop(unit.pixel, draw_crop_boxes(n, (0.7, 1.0), rng), draw_flips(n, rng), unit.pixel.shape[-1])


@pytest.mark.parametrize("variance", ["mixture", "mean_of_classes"])
def test_units_that_exchange_their_moments_recover_as_in_lock_step(opened, variance):
    """Exchanges before the first, the third and the fifth of a wave's five steps."""
    run, distilled = opened
    config = changed(run.config, "calibrate", variance=variance)
    target_L = [reference_targets.global_target(*pair, np.full(10, 0.1), variance) for pair in moments_of_all(distilled)]
    target_L = [tuple(map(torch.from_numpy, pair)) for pair in target_L]
    observer, pixel_scale = run.bench.expert(distilled.observer), float(run.bench.split.std_C.mean())
    for wave, states in enumerate(recovered(opened, config)):
        units = list(twins(run, distilled, wave))
        reference.recover(config.recover, observer, units, view, target_L, LAYER_WEIGHTS, variance, pixel_scale)
        for unit, state in zip(units, states, strict=True):
            # 1e-6 was measured; a step moves a pixel by a hundredth
            torch.testing.assert_close(state.tensors()["image"], unit.pixel.detach(), atol=2e-5, rtol=0)
            assert state.record["loss"] == pytest.approx(unit.loss, rel=1e-5)


def test_the_two_readings_of_the_variance_give_other_pixels(opened):
    run, _ = opened
    first, second = (recovered(opened, changed(run.config, "calibrate", variance=variance)) for variance in ("mixture", "mean_of_classes"))
    for wave, other_wave in zip(first, second, strict=True):
        for state, other in zip(wave, other_wave, strict=True):
            assert (state.tensors()["image"] - other.tensors()["image"]).abs().max() > 0.01
