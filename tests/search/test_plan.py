"""Plans and estimates, held against real runs of the pipeline: what was predicted is what the store holds afterwards."""

import shutil
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from sweeps import write

from ray_ltdd import pipeline
from ray_ltdd.artifacts import MANIFEST
from ray_ltdd.config import validate
from ray_ltdd.data.prepare import DataConfig, prepare_dataset
from ray_ltdd.errors import InputError
from ray_ltdd.executor import SilentReporter
from ray_ltdd.runs import open_run
from ray_ltdd.search.costs import StageCost, read_costs, stored_experts
from ray_ltdd.search.estimate import estimate, rates
from ray_ltdd.search.load import load_sweep
from ray_ltdd.search.plan import CellPlan, StagePlan, SweepPlan, plan_sweep
from ray_ltdd.search.sizes import training_counts
from ray_ltdd.search.work import STAGES, CostKind, stage_runs

pytestmark = pytest.mark.slow
WIDTH = {"width": 4, "depth": 1}


def experiment(folder, **changes):
    values = {
        "data": {"root": str(folder / "data")},
        "split": {"imbalance_factor": 5, "head_count": 20},
        "distill": {"images_per_class": 3, "classes_per_unit": 4},
        "experts": {"epochs": 1, "batch_size": 16, "accuracy_floor": 0},
        "observer": {"model": {**WIDTH, "normalization": "batch"}},
        "teacher": {"model": WIDTH},
        "recover": {"steps": 5, "exchange_every": 2, "batch_size": 8},
        "evaluate": {"model": WIDTH, "epochs": 2, "seeds": 2, "baselines": ["random"]},
        "output": {"root": str(folder / "runs")},
        **changes,
    }
    return validate(values, "test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Experiments that share different parts, run into one store; returns (their settings, the store, the data's root)."""
    folder = tmp_path_factory.mktemp("plan")
    plain = experiment(folder)
    experiments = [
        plain,
        experiment(folder, calibrate={"variance": "mean_of_classes"}),
        experiment(
            folder,
            calibrate={"momentum": {"schedule": "constant"}, "batch_size": 4},
            relabel={"labels": "stored", "stored_epochs": 3, "epochs_per_task": 2},
        ),
        experiment(folder, select_crops={"method": "random", "crops_per_image": 2}, distill={"images_per_class": 2}, relabel={"labels": "one"}),
        experiment(folder, distill={"images_per_class": 2, "classes_per_unit": 4}),
        # AdamW has no use for it: nothing new
        experiment(folder, evaluate={"model": WIDTH, "epochs": 2, "seeds": 2, "baselines": ["random"], "linear_step": 3}),
        experiment(folder, teacher_seeds=2, more_teachers=[{"model": WIDTH, "member": 2}], relabel={"tau": 0.5}),
        experiment(folder, relabel={"mirror_average": True}),
        experiment(folder, relabel={"mirror_average": True, "labels": "stored", "stored_epochs": 3, "epochs_per_task": 2}),
    ]
    for config in experiments:
        run = open_run(config, SilentReporter())
        pipeline.evaluate(config, run.bench, run.executor, pipeline.distil(config, run.bench, run.executor))
    return experiments, run.executor.store.root, folder / "data"


def different(experiments):
    runs = [run for config in experiments for run in stage_runs(config, training_counts(config))]
    return list({run.identity: run for run in runs}.values())


def n_artifacts(run, config):
    """Artifacts one run of a stage leaves, counted from the recovery's own rules."""
    n_units, n_parts = (3, 3) if config.distill.classes_per_unit == 4 else (1, 1)
    n_waves = config.recover.n_waves(4 if n_units == 3 else 10, config.distill.images_per_class)
    by_unit = {"calibrate": 1, "select_crops": 1, "initial_moments": n_waves, "recover": n_parts * n_waves}
    return n_units * by_unit[run.kind.stage] if run.kind.stage in by_unit else n_parts * n_waves if run.kind.stage == "exchange" else 1


def test_the_sizes_of_classes_are_the_drawn_ones(finished, tmp_path):
    experiments, _, _ = finished
    run = open_run(experiments[0], SilentReporter())
    np.testing.assert_array_equal(training_counts(experiments[0]), run.bench.split.count_K)
    # unprepared: by the catalogue; a profile that takes what there is cannot be known
    cifar = {"data": {"root": str(tmp_path), "dataset": "cifar10_lt"}, "split": {"imbalance_factor": 100}}
    assert training_counts(validate(cifar, "x")).sum() == 12406
    cifar["split"] = {"profile": "natural"}
    assert training_counts(validate(cifar, "x")) is None
    assert training_counts(validate({"data": {"root": str(tmp_path), "dataset": "parquet"}}, "x")) is None


def test_sizes_are_those_of_the_preparation_that_is_asked_for(tmp_path):
    """Digits have no test part of their own: how many are held out changes what is left."""
    for held_out in (None, 100):
        prepare_dataset(DataConfig(root=str(tmp_path), test_per_class=held_out))

    def n_train(**data):
        return training_counts(validate({"data": {"root": str(tmp_path), **data}, "split": {"profile": "natural"}}, "x")).sum()

    assert (n_train(), n_train(test_per_class=100)) == (1797 - 500, 1797 - 1000)


def test_too_large_a_validation_part_is_noticed_while_planning(finished, tmp_path):
    _, _, data = finished
    changes = {"set": {"data.root": str(data)}, "set_in_trials": {"split.validation_per_class": 30}, "cells": {"split.imbalance_factor": [10]}}
    with pytest.raises(InputError, match=r"^cell digits_lt-if10: class '0' needs"):
        plan_sweep(load_sweep(write(tmp_path, changes)))


def test_equal_identities_are_equal_artifacts(finished):
    """The pipeline's own tasks know nothing of identities: as many different ones as the store has artifacts, stage by stage."""
    experiments, store, _ = finished
    expected: Counter[str] = Counter()
    seen = set()
    for config in experiments:
        for run in stage_runs(config, training_counts(config)):
            if run.identity not in seen:
                seen.add(run.identity)
                expected[run.kind.stage] += n_artifacts(run, config)
    found = Counter(path.parent.parent.name for path in store.glob(f"*/*/{MANIFEST}"))
    # students are trained in parts only where a sweep may stop them
    assert {stage: found[stage] for stage in STAGES if stage != "student_parts"} == dict(expected)
    assert set(found) - set(STAGES) == {"split"}, "a stage the plan does not know of"


def test_costs_are_read_back_with_the_predicted_work_and_size(finished):
    experiments, store, data = finished
    costs = read_costs(store, data)
    assert len(costs) == len(list(store.glob(f"*/*/{MANIFEST}"))) - 1
    predicted, measured = defaultdict(lambda: [0, 0]), defaultdict(lambda: [0, 0])
    for totals, items in ((predicted, different(experiments)), (measured, costs)):
        for item in items:
            totals[item.kind][0] += item.work
            totals[item.kind][1] += item.size
    assert dict(predicted) == dict(measured)


def test_work_is_what_the_executor_reports(finished):
    """Images passed, against the tasks' own counts, in an executor whose store is empty."""
    experiments, store, _ = finished
    config = experiments[0].model_copy(update={"output": experiments[0].output.model_copy(update={"store": str(store.parent / "again")})})
    run = open_run(config, SilentReporter())
    pipeline.evaluate(config, run.bench, run.executor, pipeline.distil(config, run.bench, run.executor))
    reported = {record.title: record.n_images for record in run.executor.records()}
    work = Counter()
    for stage_run in stage_runs(config, training_counts(config)):
        work[stage_run.kind.stage] += stage_run.work
    assert (work["experts"], work["calibrate"], work["select_crops"]) == (reported["Experts"], reported["Calibrate"], reported["Select crops"])
    assert (work["recover"], work["students"]) == (reported["Recover"], reported["Students"])


def test_a_student_trained_in_parts_is_planned_part_by_part(finished):
    """A part holds all that its training goes on from: several times a student's bytes."""
    experiments, store, data = finished
    again = store.parent / "parts"
    plain = experiments[0]
    config = plain.model_copy(
        update={
            "output": plain.output.model_copy(update={"store": str(again)}),
            "evaluate": plain.evaluate.model_copy(update={"epochs": 7}),
        }
    )
    run = open_run(config, SilentReporter())
    distilled = pipeline.distil(config, run.bench, run.executor)
    *_, last = pipeline.train_in_parts(config, run.bench, run.executor, distilled, (2, 5))
    pipeline.evaluate(config, run.bench, run.executor, distilled, last)
    predicted = [run for run in stage_runs(config, training_counts(config), (2, 5)) if run.kind.stage in ("students", "student_parts")]
    measured = [cost for cost in read_costs(again, data) if cost.kind.stage in ("students", "student_parts")]
    assert Counter((run.kind, run.work, run.size) for run in predicted) == Counter((cost.kind, cost.work, cost.size) for cost in measured)
    assert len({run.identity for run in predicted}) == len(predicted) == 2 + 4


def test_what_was_just_measured_is_estimated_to_cost_the_same(finished):
    experiments, store, data = finished
    costs = read_costs(store, data)
    plan = _plan_of(different(experiments))
    found = estimate(plan, costs)
    assert found.unmeasured == () and found.devices == (costs[0].device,)
    assert found.compute_seconds == pytest.approx(sum(cost.seconds for cost in costs))
    assert found.n_bytes == pytest.approx(sum(cost.n_bytes for cost in costs))
    assert found.wall_seconds == pytest.approx(found.compute_seconds / 2)


def _plan_of(runs):
    stages = [StagePlan(stage, 0, 0, tuple(run for run in runs if run.kind.stage == stage)) for stage in STAGES]
    return SweepPlan((CellPlan("c", 1, 0, 1, 10),), tuple(stage for stage in stages if stage.runs), (), 2)


def test_time_grows_with_epochs_steps_and_crops_and_bytes_with_images(finished):
    _, store, data = finished
    costs = read_costs(store, data)

    def cost(**changes):
        found = estimate(_plan_of(different([experiment(data.parent, **changes)])), costs)
        assert found.unmeasured == ()
        return {stage.stage: stage for stage in found.stages}

    base = cost()
    teacher = {"experts": {"epochs": 4, "batch_size": 16, "accuracy_floor": 0}}
    assert cost(**teacher)["experts"].seconds == pytest.approx(4 * base["experts"].seconds)
    assert cost(recover={"steps": 50, "exchange_every": 20, "batch_size": 8})["recover"].seconds == pytest.approx(10 * base["recover"].seconds)
    assert cost(select_crops={"crops_per_image": 15})["select_crops"].seconds == pytest.approx(3 * base["select_crops"].seconds)
    more = cost(distill={"images_per_class": 6, "classes_per_unit": 4})
    assert more["images"].n_bytes == pytest.approx(2 * base["images"].n_bytes)
    assert more["experts"].n_bytes == base["experts"].n_bytes


def test_what_was_never_measured_is_named_and_not_guessed(finished):
    experiments, store, data = finished
    other = experiment(data.parent, observer={"model": {"architecture": "resnet32"}})
    found = estimate(_plan_of(different([other])), read_costs(store, data))
    assert "experts of ResNet-32 on digits_lt at 16 px" in found.unmeasured and "recover of ResNet-32 on digits_lt at 16 px" in found.unmeasured
    by_stage = {stage.stage: stage for stage in found.stages}
    assert by_stage["recover"].seconds is None and by_stage["experts"].seconds > 0 and by_stage["students"].seconds > 0
    nothing = estimate(_plan_of(different(experiments)), [])
    assert nothing.compute_seconds is None and nothing.wall_seconds is None and nothing.n_bytes is None and nothing.devices == ()
    assert read_costs(store / "nowhere", data) == [] and stored_experts(store / "nowhere", data) == set()


def test_costs_come_from_the_device_that_measured_last():
    kind = CostKind("experts", "d", "n")
    old = StageCost(kind, 10, 1, 100.0, 7, "old", "2026-01-01")
    new = [replace(old, seconds=20.0, device="new", created="2026-02-01"), replace(old, work=30, seconds=20.0, device="new", created="2026-01-15")]
    rate = rates([new[0], old, new[1]])[kind]
    assert (rate.device, rate.seconds, rate.n_bytes, rate.n_measured) == ("new", 1.0, 7.0, 2)


def test_damaged_manifests_and_those_of_unknown_data_are_passed_over(finished, tmp_path):
    _, store, data = finished
    shutil.copytree(store, tmp_path / "store")
    whole = read_costs(tmp_path / "store", data)
    path = next((tmp_path / "store" / "recover").glob(f"*/{MANIFEST}"))
    path.write_text(path.read_text()[:100])
    assert 0 < len(read_costs(tmp_path / "store", data)) < len(whole)
    unknown = read_costs(store, tmp_path)
    assert {cost.kind.stage for cost in unknown} <= {"target", "exchange", "images", "select_crops"}


def test_a_plan_counts_cells_trials_and_shared_experts(finished, tmp_path):
    _, _, data = finished
    changes = {
        "set": {"data.root": str(data)},
        "final_seeds": 2,
        "trials": 7,
        "cells": {"split.imbalance_factor": [5, 10], "distill.images_per_class": [1, 2]},
    }
    sweep = load_sweep(write(tmp_path, changes))
    plan = plan_sweep(sweep)
    assert (plan.n_trials, plan.n_finals, plan.unsized, len(plan.cells)) == (28, 16, (), 4)
    assert all(cell.n_parameters == 3 and cell.n_trials == 7 for cell in plan.cells)
    stages = {stage.stage: stage for stage in plan.stages}
    # observer and teacher are one network here; one for each factor's trials, and one for each factor and final seed: images per class share them
    assert len(stages["experts"].runs) == 2 + 2 * 2 and stages["experts"].n_asked == 44 and stages["experts"].n_shared == 38
    assert len(stages["select_crops"].runs) == 4 * (1 + 2), "what is searched is not upstream of the crops"
    assert stages["students"].n_asked == 28 * 3 + 16 * 9
    later = plan_sweep(sweep, done={cell.name: 7 for cell in sweep.cells})
    assert later.n_trials == 0 and {s.stage: len(s.runs) for s in later.stages}["experts"] == 4
    assert plan_sweep(sweep) == plan
    first = sweep.cells[0].name
    tested = plan_sweep(sweep, done={cell.name: 7 for cell in sweep.cells}, tested={first: {("winner", 0), ("defaults", 0), ("winner", 1)}})
    assert [cell.n_finals for cell in tested.cells] == [1, 4, 4, 4]
    # another winner may be found
    assert plan_sweep(sweep, tested={first: {("winner", 0)}}).n_finals == 16


def test_experts_in_the_store_are_not_planned_again(finished, tmp_path):
    experiments, store, data = finished
    config = experiments[0]
    names = ("data", "split", "distill", "experts", "observer", "teacher", "recover", "evaluate")
    base = {name: value for name, value in config.model_dump(mode="json").items() if name in names}
    changes = {"set": {"seed": 0}, "set_in_trials": {"split.validation_per_class": 2}, "cells": {"split.imbalance_factor": [5]}, "final_seeds": 1}
    changes["search"] = {"relabel.tau": {"low": 0, "high": 1}}
    sweep = load_sweep(write(tmp_path, changes, base=base))
    stored = stored_experts(store, data)
    assert len(stored) == 4
    fresh = {stage.stage: stage for stage in plan_sweep(sweep, stored=stored).stages}["experts"]
    assert (len(fresh.runs), fresh.n_stored) == (4, 0)
    trial = sweep.cells[0].trial()
    run = open_run(trial, SilentReporter())
    pipeline.train_experts(trial, run.bench, run.executor)
    again = {stage.stage: stage for stage in plan_sweep(sweep, stored=stored_experts(run.executor.store.root, data)).stages}["experts"]
    assert (len(again.runs), again.n_stored) == (2, 2)
