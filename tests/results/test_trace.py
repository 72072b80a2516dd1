"""Artifacts found backwards from a run's rows are the ones the pipeline used, and the images and statistics are theirs."""

import json
import shutil

import numpy as np
import pytest
import torch

from ray_ltdd import InputError, pipeline
from ray_ltdd.executor import SilentReporter
from ray_ltdd.results.class_statistics import FINAL, INITIAL, REAL, class_gaps, load_statistics, measure, whole_set_gaps, write_statistics
from ray_ltdd.results.image_sets import ImageSets, class_names, load_image_sets, write_image_sets
from ray_ltdd.results.real_images import first_of_each_class
from ray_ltdd.results.trace import store_of, trace_images
from ray_ltdd.runs import open_run, reopen_config
from ray_ltdd.yaml_files import read_yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def opened(tiny_run):
    """The run opened again: all its artifacts, as the pipeline names them."""
    with open_run(reopen_config(tiny_run), SilentReporter(), tiny_run) as run:
        distilled = pipeline.distil(run.config, run.bench, run.executor)
        assert not any(record.n_computed for record in run.executor.records())
        yield run, distilled


def test_the_trace_is_what_the_pipeline_used(tiny_run, opened):
    _, distilled = opened
    trace = trace_images(tiny_run)
    assert trace.images.digest == distilled.images.digest and trace.observer.digest == distilled.observer.artifact.digest
    assert trace.units == tuple(distilled.units) and len(trace.units) == 2
    assert [artifact.digest for artifact in trace.initial] == [artifact.digest for artifact in distilled.initial]
    assert [artifact.digest for artifact in trace.moments] == [artifact.digest for artifact in distilled.moments]


def test_another_run_in_the_store_does_not_confuse_it(tiny_run, opened, tmp_path):
    # the same observer and the same recovery from other initial images: only the joint digest tells them apart
    _, distilled = opened
    config = reopen_config(tiny_run, ["select_crops.method=random", f"output.root={tmp_path}"])
    with open_run(config, SilentReporter(), tmp_path / "other") as other:
        others = pipeline.distil(other.config, other.bench, other.executor)
    assert others.observer.artifact.digest == distilled.observer.artifact.digest
    assert [artifact.digest for artifact in trace_images(tiny_run).initial] == [artifact.digest for artifact in distilled.initial]


def test_images_come_from_the_run_and_its_store(tiny_run, opened):
    run, distilled = opened
    sets = load_image_sets(tiny_run)
    assert list(sets.panels) == ["initial", "distilled", "real"] and sets.class_names == class_names(tiny_run) == run.bench.prepared.class_names
    tensors = distilled.images.tensors()
    for k in range(run.bench.n_classes):
        assert torch.equal(sets.panels["distilled"][k], tensors["image"][tensors["label"] == k])
    for unit, artifact in zip(distilled.units, distilled.initial, strict=True):
        initial = artifact.tensors()
        for k in unit:
            expected = (initial["image"][initial["label"] == k] * 255).round().to(torch.uint8)
            assert torch.equal(sets.panels["initial"][k], expected)


def test_real_images_are_the_first_of_the_split(tiny_run, opened, tmp_path):
    run, _ = opened
    real = load_image_sets(tiny_run).panels["real"]
    prepared, ipc = run.bench.prepared, run.config.distill.images_per_class
    for k in range(run.bench.n_classes):
        wanted = [index for index in run.bench.split.train_index_N if prepared.train.label_N[index] == k][:ipc]
        assert len(real[k]) == min(ipc, run.bench.split.count_K[k]) == len(wanted)
        assert all(np.array_equal(image.numpy(), prepared.train.image_NCHW[index]) for image, index in zip(real[k], wanted, strict=True))
    shutil.copytree(tiny_run, tmp_path / "run")
    settings = read_yaml(tmp_path / "run" / "settings.yaml")
    settings["data"]["root"] = str(tmp_path / "nothing")
    (tmp_path / "run" / "settings.yaml").write_text(json.dumps(settings))
    assert list(load_image_sets(tmp_path / "run").panels) == ["initial", "distilled"], "a dataset that is gone is left out"


def test_a_class_with_fewer_images_than_asked_for_gives_all(opened):
    bench = opened[0].bench
    found = first_of_each_class(bench.prepared, bench.split.train_index_N, 1000)
    assert [len(images) for images in found] == bench.split.count_K.tolist()


def test_images_survive_the_small_file(tiny_run, tmp_path):
    sets = load_image_sets(tiny_run)
    write_image_sets(sets, tmp_path / "images.parquet")
    again = load_image_sets(tmp_path)
    assert again.class_names == sets.class_names == class_names(tmp_path)
    assert all(torch.equal(a, b) for name in sets.panels for a, b in zip(sets.panels[name], again.panels[name], strict=True))


def test_without_the_store_the_distilled_images_are_left(tiny_run, tmp_path):
    copy = tmp_path / "elsewhere" / "run"
    shutil.copytree(tiny_run, copy)
    settings = (copy / "settings.yaml").read_text()
    (copy / "settings.yaml").write_text(settings.replace(str(tiny_run.parent), str(tmp_path / "gone")))
    sets = load_image_sets(copy)
    assert list(sets.panels) == ["distilled"] and len(sets.class_names) == 10
    with pytest.raises(InputError, match=r"store of .* is not at .*gone"):
        trace_images(copy)
    shutil.copytree(tiny_run.parent / "store", copy.parent / "store")
    assert store_of(copy) == copy.parent / "store" and "initial" in load_image_sets(copy).panels


@pytest.mark.parametrize("stage", ["students", "images", "recover", "select_crops", "calibrate", "experts"])
def test_a_store_that_lacks_a_stage_is_named(tiny_run, tmp_path, stage):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    settings = (copy / "settings.yaml").read_text()
    (copy / "settings.yaml").write_text(settings.replace(str(tiny_run.parent), str(tmp_path)))
    shutil.copytree(tiny_run.parent / "store", tmp_path / "store", ignore=lambda folder, names: names if folder.endswith(f"/{stage}") else [])
    with pytest.raises(InputError, match="does not hold") as refusal:
        trace_images(copy)
    assert str(tmp_path / "store") in str(refusal.value) and "\n" not in str(refusal.value)


def plain_moments(run, expert, image_NCHW, layers):
    """Mean and variance of every layer's input over all images and pixels, by the definition."""
    seen = {}
    modules = dict(expert.named_modules())
    hooks = [modules[name].register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[0].double())) for name in layers]
    with torch.no_grad():
        expert(image_NCHW.float() / 255)
    for hook in hooks:
        hook.remove()
    return {name: (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) for name, x in seen.items()}


def test_statistics_are_those_of_whole_images(tiny_run, opened):
    run, distilled = opened
    found = measure(tiny_run)
    sets = load_image_sets(tiny_run)
    expert = run.bench.expert(distilled.observer)
    train = run.bench.prepared.train
    index_N = run.bench.split.train_index_N
    for k in (0, 9):
        real = torch.from_numpy(np.asarray(train.image_NCHW[index_N])[train.label_N[index_N] == k])
        for name, images in ((REAL, real), (INITIAL, sets.panels["initial"][k]), (FINAL, sets.panels["distilled"][k])):
            assert int(found.moments[name]["count"][k]) == len(images)
            for layer, (mean_F, var_F) in plain_moments(run, expert, images, found.layers).items():
                torch.testing.assert_close(found.moments[name][f"{layer}/mean"][k], mean_F, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(found.moments[name][f"{layer}/var"][k], var_F, rtol=1e-4, atol=1e-5)


def test_statistics_survive_the_small_file(tiny_run, tmp_path):
    found = measure(tiny_run)
    write_statistics(found, tmp_path / "moments.parquet")
    again = load_statistics(tmp_path)
    assert again.layers == found.layers and list(again.moments) == list(found.moments)
    for name in found.moments:
        assert torch.equal(again.moments[name]["count"], found.moments[name]["count"])
        for layer in found.layers:
            torch.testing.assert_close(again.moments[name][f"{layer}/var"], found.moments[name][f"{layer}/var"].double(), rtol=1e-6, atol=1e-7)
    assert list(class_gaps(again)) == [INITIAL, FINAL] and len(whole_set_gaps(again)) == 3
    gap = class_gaps(again)[FINAL].iloc[0]
    layer = gap["layer"]
    mean_KF, real_KF, var_KF = (found.moments[n][f"{layer}/{p}"].double() for n, p in ((FINAL, "mean"), (REAL, "mean"), (REAL, "var")))
    assert gap["mean_gap"] == pytest.approx(float(((mean_KF - real_KF).norm(dim=1) / var_KF.sqrt().norm(dim=1)).mean()), rel=1e-5)


def test_damaged_small_files_are_one_sentence(tmp_path):
    write_image_sets(ImageSets({"distilled": [torch.zeros(1, 1, 4, 4, dtype=torch.uint8)]}, ("only",)), tmp_path / "images.parquet")
    content = (tmp_path / "images.parquet").read_bytes()
    (tmp_path / "images.parquet").write_bytes(content[:-30])
    (tmp_path / "moments.parquet").write_bytes(b"no parquet")
    for load in (load_image_sets, load_statistics):
        with pytest.raises(InputError, match="damaged") as refusal:
            load(tmp_path)
        assert "\n" not in str(refusal.value)


def test_a_run_without_rows_says_so(tiny_run, tmp_path):
    (tmp_path / "settings.yaml").write_text((tiny_run / "settings.yaml").read_text())
    with pytest.raises(InputError, match="no row of a student of distilled images"):
        trace_images(tmp_path)
    assert json.loads((tiny_run / "summary.json").read_text())["labels"]
