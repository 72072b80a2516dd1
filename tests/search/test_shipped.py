"""The studies in configs/sweep: every file loads, its space fits its settings, and it searches what its name says."""

import random

import pytest
from sweeps import ROOT, SWEEPS

from ray_ltdd.config import load_config
from ray_ltdd.data.catalogue import find_benchmark
from ray_ltdd.data.prepare import prepare_dataset
from ray_ltdd.data.split import draw_split
from ray_ltdd.search.branches import branches, check_space
from ray_ltdd.search.load import load_sweep
from ray_ltdd.search.plan import RandomTrial, plan_sweep
from ray_ltdd.yaml_files import read_yaml

BENCHMARKS = ("digits", "cifar10_lt", "cifar100_lt", "tiny_imagenet_lt", "imagenet_lt")
MOMENTUM = {"momentum.schedule", "momentum.value", "momentum.exponent", "batch_size", "class_weights", "beta", "variance"}
STUDIES = {
    "momentum": {f"calibrate.{name}" for name in MOMENTUM} | {"recover.statistics_momentum"},
    "initialisation": {f"select_crops.{name}" for name in ("method", "crops_per_image", "min_scale", "confidence_threshold", "max_rounds")},
}
STUDIES["full"] = STUDIES["momentum"] | STUDIES["initialisation"]
STUDIES["full"] |= {
    "recover.steps",
    "recover.min_scale",
    "recover.alignment_weight",
    "recover.class_weight",
    "recover.first_layer_weight",
    "relabel.tau",
}

QUICK = {
    "digits_quick": {"calibrate.class_weights", "select_crops.min_scale", "recover.alignment_weight", "relabel.tau"},
    "cifar10_lt_quick": {f"calibrate.{name}" for name in ("momentum.schedule", "momentum.value", "momentum.exponent", "class_weights")}
    | {"recover.alignment_weight", "relabel.tau"},
}
"""Small studies at a budget two cores can bear, some settings of the base cut."""


def test_every_study_is_there_for_every_benchmark():
    studies = [f"{benchmark}_{study}" for benchmark in BENCHMARKS for study in STUDIES]
    assert sorted(path.stem for path in SWEEPS) == sorted([*studies, *QUICK])
    assert len(SWEEPS) == 17
    assert len(list((ROOT / "configs" / "sweep").rglob("*.yaml"))) == 17 + 3
    # a file of parameters that no study reads would be checked by nothing
    read = {(path.parent / space).resolve() for path in SWEEPS for space in read_yaml(path).get("spaces", ())}
    assert read == {path.resolve() for path in (ROOT / "configs" / "sweep" / "spaces").glob("*.yaml")}


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=pytest.mark.slow if "full" in path.stem else ()) for path in SWEEPS], ids=lambda path: path.stem
)
def test_a_study_loads_and_every_point_is_a_valid_experiment(path):
    sweep = load_sweep(path)
    benchmark, _, study = path.stem.rpartition("_")
    searched = QUICK[path.stem] if study == "quick" else STUDIES[study]
    assert sweep.config.name == path.stem and {parameter.name for parameter in sweep.cells[0].space.parameters} == searched
    base = load_config(path.parent / read_yaml(path)["base"]).config
    known = find_benchmark(base.data.dataset)
    draw = RandomTrial(random.Random(0))
    for cell in sweep.cells:
        trial = cell.trial()
        assert trial.data.dataset == known.name and trial.evaluate.part == "validation" and trial.evaluate.seeds == 1
        assert benchmark == "digits" or trial.distill.images_per_class in known.images_per_class
        assert max(sweep.config.pruner.evaluation_epochs) < trial.evaluate.epochs < base.evaluate.epochs, "trials have the smaller budget"
        # every trial has images of its own: stored labels would be made for epochs that no student sees, and fill the disk
        assert trial.relabel.labels == "online" or trial.relabel.stored_epochs <= trial.evaluate.epochs
        assert study == "quick" or cell.final().evaluate.epochs == base.evaluate.epochs
        assert check_space(cell.space, cell.trial_values, "x") == []
        for _ in range(20):
            point = cell.space.suggest(draw)
            assert cell.space.contains(point) and cell.trial(point).evaluate == trial.evaluate
        # the first trial takes the settings as they are: all of them are in the space
        assert cell.trial(cell.space.point_of(trial)) == trial
    assert sweep.config.sampler.n_startup_trials < sweep.config.trials and sweep.config.concurrency <= sweep.config.sampler.n_startup_trials


def test_branches_are_all_combinations_of_schedules_weights_and_initial_crops():
    cell = load_sweep(next(path for path in SWEEPS if path.stem == "digits_full")).cells[0]
    found = [tuple(branch.values()) for branch in branches(cell.space)]
    assert len(found) == len(set(found)) == 4 * 3 * 2


@pytest.mark.parametrize("path", [path for path in SWEEPS if "digits" in path.stem], ids=lambda path: path.stem)
def test_the_digits_studies_can_be_drawn_from_the_real_digits(path, tmp_path):
    sweep = load_sweep(path, [f"data.root={tmp_path}"])
    prepared = prepare_dataset(sweep.cells[0].trial().data)
    for cell in sweep.cells:
        trial, final = draw_split(cell.trial().split, prepared), draw_split(cell.final().split, prepared)
        assert len(trial.validation_index_N) == 180 and len(final.validation_index_N) == 0
        assert trial.count_K.tolist() == final.count_K.tolist() and trial.count_K[0] == 110
    assert plan_sweep(sweep).unsized == ()


def test_what_cannot_be_counted_before_the_data_is_there_is_said(tmp_path):
    by_stem = {path.stem: path for path in SWEEPS}
    unknown = plan_sweep(load_sweep(by_stem["imagenet_lt_momentum"], [f"data.root={tmp_path}"]))
    assert unknown.unsized == ("imagenet_lt-ipc10", "imagenet_lt-ipc20") and unknown.stages == () and unknown.n_trials == 40
    known = plan_sweep(load_sweep(by_stem["cifar100_lt_momentum"], [f"data.root={tmp_path}", "trials=2", "final_seeds=1"]))
    stages = {stage.stage: stage for stage in known.stages}
    # three experts (the observer is a teacher, too) for each of 3 factors, for trials and for the final seed; images per class share them
    assert known.unsized == () and len(stages["experts"].runs) == 3 * 3 * 2 and stages["experts"].n_asked == 3 * 9 * 4
    assert len(stages["select_crops"].runs) == 9 * 2 and stages["students"].n_shared == 0
