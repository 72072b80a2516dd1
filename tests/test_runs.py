"""A run's split and settings, and what it tells its user beside the numbers."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ray_ltdd.artifacts import ArtifactStore
from ray_ltdd.config import validate
from ray_ltdd.data.prepared import ImageSet, PreparedDataset
from ray_ltdd.data.split import SplitConfig
from ray_ltdd.errors import InputError
from ray_ltdd.executor import SilentReporter
from ray_ltdd.run_notes import inert_schedule, short_of_crops
from ray_ltdd.runs import open_run, reopen_config, stored_split
from ray_ltdd.stages.calibrate import CalibrateConfig
from ray_ltdd.stages.select_crops import SelectCropsConfig
from ray_ltdd.statistics.schedules import MomentumConfig

COUNT_K = np.array([500, 257, 256, 5])


@pytest.fixture
def prepared(tmp_path):
    random = np.random.default_rng(0)
    part = ImageSet(random.integers(0, 256, (2000, 1, 4, 4), dtype=np.uint8), np.repeat([0, 1], 1000))
    return PreparedDataset(tmp_path, "image_folder", ("a", "b"), 4, 1, "memory", part, part, "ab" * 32)


def test_one_tree_read_as_two_datasets_has_two_splits(prepared, tmp_path):
    store = ArtifactStore(tmp_path / "store")
    own, named = (stored_split(store, SplitConfig(), data) for data in (prepared, replace(prepared, dataset="cifar100_lt")))
    assert [split.tensors()["count"].tolist() for split in (own, named)] == [[1000, 10], [500, 5]]
    assert own.record["name"].startswith("image_folder-") and named.record["name"].startswith("cifar100_lt-")
    assert stored_split(store, SplitConfig(), prepared).digest == own.digest


def test_a_run_is_opened_from_any_folder(tmp_path, monkeypatch):
    for place in ("images/train/a", "images/train/b", "images/test/a", "images/test/b", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
    for number, folder in enumerate(tmp_path.glob("images/*/*")):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "0.png")
    data = {"dataset": "image_folder", "path": "images", "root": "data", "image_size": 8}
    config = validate({"data": data, "split": {"profile": "natural"}, "output": {"root": "runs"}}, "test")
    monkeypatch.chdir(tmp_path)
    opened = open_run(config, SilentReporter())
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = reopen_config(opened.folder)
    assert open_run(again, SilentReporter()).folder == opened.folder and not list((tmp_path / "elsewhere").iterdir())
    assert (again.fingerprint, again.run_folder) == (config.fingerprint, opened.folder)


@pytest.mark.parametrize(("setting", "other"), [("root", {}), ("store", {"root": "runs"})])
def test_the_folder_that_cannot_be_made_is_named_by_its_own_setting(tmp_path, monkeypatch, setting, other):
    monkeypatch.chdir(tmp_path)
    config = validate({"output": {**other, setting: "/proc/x"}}, "test")
    with pytest.raises(InputError, match=rf"^output\.{setting}=/proc/x.* or set output\.{setting} to another folder$"):
        open_run(config, SilentReporter())


def test_a_schedule_that_cannot_show_is_said():
    constant = CalibrateConfig(momentum=MomentumConfig(schedule="constant"), batch_size=256)
    (sentence,) = inert_schedule(constant, COUNT_K)
    assert "schedule=constant changes nothing for 2 of 4 classes" in sentence and "lower calibrate.batch_size (now 256)" in sentence
    assert inert_schedule(constant.model_copy(update={"batch_size": 4}), COUNT_K) == []
    assert inert_schedule(CalibrateConfig(), COUNT_K) == []


def test_rounds_that_run_out_of_crops_are_said_where_there_are_rounds():
    records = [{"n_below_threshold": [1, 2], "n_after_rounds": [0, 4]}, {"n_below_threshold": [0, 0], "n_after_rounds": [0, 1]}]
    below, late = short_of_crops(SelectCropsConfig(confidence_threshold=0.9, max_rounds=2), records, 20)
    assert below == "3 of 20 initial images are below select_crops.confidence_threshold=0.9: nothing else was left."
    assert late.startswith("5 of 20 initial images were chosen after select_crops.max_rounds=2 rounds")
    for method in ("random", "noise"):
        assert short_of_crops(SelectCropsConfig(method=method, confidence_threshold=0.9), [{}, {}], 20) == []
    assert short_of_crops(SelectCropsConfig(confidence_threshold=0.5), [{"n_below_threshold": [0]}], 20) == []
