"""Sweep files: precedence, overrides, and every mistake named in one go."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import BASE, SWEEP, dump, write

from ray_ltdd.config import setting_names
from ray_ltdd.errors import InputError
from ray_ltdd.search.load import load_sweep
from ray_ltdd.search.names import kind_of, refusal


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_sweep(path, overrides)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def search(**parameters):
    return {"search": {name.replace("__", "."): spec for name, spec in parameters.items()}}


def test_precedence(tmp_path):
    path = write(tmp_path, {"set": {"recover.learning_rate": 0.2, "evaluate.epochs": 40}, "set_in_finals": {"evaluate": {"epochs": 50}}})
    sweep = load_sweep(path, ["data.path=/x", "set_in_trials.evaluate.epochs=15", "trials=9", "sampler.n_startup_trials=2"])
    cell = sweep.cells[0]
    assert (cell.trial().evaluate.epochs, cell.final().evaluate.epochs) == (15, 50)
    assert [run.data.path for run in (cell.trial(), cell.final())] == ["/x", "/x"]
    assert [run.recover.learning_rate for run in (cell.trial(), cell.final())] == [0.2, 0.2]
    assert (cell.trial().split.imbalance_factor, cell.trial().distill.images_per_class) == (5, 1)
    assert cell.trial({"calibrate.momentum.schedule": "power", "recover.steps": 33}).recover.steps == 33
    assert (sweep.config.trials, sweep.config.sampler.n_startup_trials, sweep.config.sampler.kind) == (9, 2, "tpe")
    assert sweep.folder == Path("runs/s") and cell.trial().output.root == "runs/s" and cell.trial().output.store == "runs/store"


def test_a_study_never_sees_the_test_split_and_a_final_run_all_training_images(tmp_path):
    sweep = load_sweep(write(tmp_path, {"set": {"split.validation_per_class": 3}, "set_in_trials": {"split.validation_per_class": 4}}))
    for cell in sweep.cells:
        point = {"calibrate.momentum.schedule": "cumulative", "recover.steps": 20}
        for trial in (cell.trial(), cell.trial(point)):
            assert (trial.evaluate.part, trial.split.validation_per_class, trial.evaluate.baselines) == ("validation", 4, ())
        for final in (cell.final(), cell.final(point, 2)):
            assert (final.evaluate.part, final.split.validation_per_class) == ("test", 0)
    for section in ("set", "set_in_trials", "set_in_finals", "cells", "search"):
        assert "validation part" in str(refusal("evaluate.part", section))


def test_final_runs_of_one_number_are_pairs_with_seeds_no_trial_has(tmp_path):
    cell = load_sweep(write(tmp_path, {"set": {"seed": 7}})).cells[0]
    point = {"calibrate.momentum.schedule": "power", "recover.steps": 20}
    assert [cell.final(None, n).seed for n in range(3)] == [cell.final(point, n).seed for n in range(3)] == [8, 9, 10]
    assert cell.trial().seed == cell.trial(point).seed == 7
    assert cell.final(point, 1) != cell.final(None, 1) and cell.final(point, 1).recover.steps == 20


def test_experts_searched_by_their_common_name_reach_both_roles(tmp_path):
    cell = load_sweep(write(tmp_path, search(experts__epochs={"low": 2, "high": 9}))).cells[0]
    trial = cell.trial({"experts.epochs": 5})
    assert (trial.observer.training.epochs, trial.teacher.training.epochs) == (5, 5)


def test_one_parameter_moves_several_settings_and_a_setting_has_two_ranges(tmp_path):
    when = {"calibrate.momentum.schedule": "constant"}
    parameters = {
        "calibrate.momentum.schedule": {"choices": ["constant", "warmup"]},
        "constant": {"sets": "calibrate.momentum.value", "low": 0.1, "high": 0.5, "when": when},
        "floor": {"sets": "calibrate.momentum.value", "low": 0.01, "high": 0.05, "when": {"calibrate.momentum.schedule": "warmup"}},
        "scale": {"sets": ["select_crops.min_scale", "recover.min_scale"], "low": 0.2, "high": 1},
    }
    cell = load_sweep(write(tmp_path, {"search": parameters})).cells[0]
    trial = cell.trial({"calibrate.momentum.schedule": "warmup", "floor": 0.02, "scale": 0.3})
    assert (trial.calibrate.momentum.value, trial.select_crops.min_scale, trial.recover.min_scale) == (0.02, 0.3, 0.3)
    del parameters["floor"]["when"]
    assert problems(write(tmp_path, {"search": parameters})) == [
        "search: 2 parameters set calibrate.momentum.value at one time: give them conditions."
    ]


def test_spaces_are_merged_and_replaced_by_name(tmp_path):
    dump(tmp_path / "a.yaml", {"recover.steps": {"low": 1, "high": 2}, "relabel.tau": {"low": 0, "high": 1}})
    dump(tmp_path / "b.yaml", {"relabel.tau": {"low": 0, "high": 2}})
    sweep = load_sweep(write(tmp_path, {"spaces": ["a.yaml", "b.yaml"], **search(recover__steps={"low": 5, "high": 6})}))
    ranges = {p.name: (p.domain.low, p.domain.high) for p in sweep.cells[0].space.parameters}
    assert ranges == {"recover.steps": (5, 6), "relabel.tau": (0, 2)}
    dump(tmp_path / "b.yaml", {"relabel.tau": {"low": 0, "hihg": 2}})
    assert str(tmp_path / "b.yaml") in "".join(problems(write(tmp_path, {"spaces": ["b.yaml"]})))


def test_spaces_of_the_command_line_are_what_is_searched(tmp_path):
    dump(tmp_path / "a.yaml", {"recover.steps": {"low": 1, "high": 2}})
    dump(tmp_path / "b.yaml", {"relabel.tau": {"low": 0, "high": 2}})
    sweep = load_sweep(write(tmp_path, {"spaces": ["a.yaml"], "search": {}}), ["search.relabel.tau.high=1", "spaces=[b.yaml]"])
    assert {p.name: (p.domain.low, p.domain.high) for p in sweep.cells[0].space.parameters} == {"relabel.tau": (0, 1)}
    assert sweep.config.spaces == ("b.yaml",)


def test_the_command_line_changes_any_part(tmp_path):
    path = write(tmp_path)
    overrides = [
        "cells.split.imbalance_factor=[10]",
        "search.recover.steps.high=50",
        "search.relabel.tau={low: 0, high: 1}",
        "search.calibrate.momentum.value=null",
        "set={evaluate: {learning_rate: 3e-3}}",
        "recover.learning_rate=0.3",
        "pruner={kind: asha, evaluation_epochs: [2, 6]}",
    ]
    sweep = load_sweep(path, overrides)
    assert [cell.name for cell in sweep.cells] == ["digits_lt-if10-ipc1", "digits_lt-if10-ipc2"]
    names = {p.name: p for p in sweep.cells[0].space.parameters}
    assert list(names) == ["calibrate.momentum.schedule", "recover.steps", "relabel.tau"] and names["recover.steps"].domain.high == 50
    trial = sweep.cells[0].trial()
    assert (trial.evaluate.learning_rate, trial.recover.learning_rate, sweep.config.pruner.rungs) == (3e-3, 0.3, (2, 6))


def test_all_mistakes_at_once_each_with_its_place_and_the_nearest_name(tmp_path):
    changes = {
        "trails": 5,
        "cells": {"split.imbalance_facto": [1]},
        "set": {"recover": {"stepz": 3}},
        "search": {
            "recover.step": {"low": 1, "high": 2},
            "recover.steps": {"low": 3, "high": 2},
            "relabel.tau": {"low": 0, "high": 1, "log": True},
            "recover.flip": {"choises": [1, 2]},
            "calibrate.beta": {"choices": [0.5]},
        },
        "objectives": ["seconds"],
        "final_seeds": -1,
    }
    path = write(tmp_path, changes)
    with pytest.raises(InputError) as caught:
        load_sweep(path, ["concurrency=0", "search.evaluate.part.choices=[test, validation]"])
    lines = str(caught.value).splitlines()
    expected = [
        f"{path}: there is no setting 'trails' of a sweep: did you mean 'trials'?",
        f"{path}: cells: there is no setting 'split.imbalance_facto': did you mean 'split.imbalance_factor'?",
        f"{path}: set: there is no setting 'recover.stepz': did you mean 'recover.steps'?",
        f"{path}: search: there is no setting 'recover.step': did you mean 'recover.steps'?",
        f"{path}: search.recover.steps: low=3 must be below high=2.",
        f"{path}: search.relabel.tau: log=true needs low above 0 (it is 0).",
        f"{path}: there is no setting 'search.recover.flip.choises' of a sweep: did you mean 'choices'?",
        f"{path}: search.calibrate.beta.choices: give at least two choices: what does not vary belongs under set.",
        "command line: concurrency (it is 0): input should be greater than or equal to 1.",
        f"{path}: final_seeds (it is -1): input should be greater than or equal to 0.",
    ]
    assert [line for line in expected if line not in lines] == []
    assert any("evaluate.part cannot stand here" in line for line in lines)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (search(recover__steps={"low": 1.5, "high": 9}), "search.recover.steps: recover.steps takes whole numbers, not low=1.5."),
        (search(calibrate__variance={"low": 0, "high": 1}), "search.calibrate.variance: calibrate.variance takes no number: give choices."),
        (search(recover__betas={"choices": [[0.5, 0.9], [0.9, 0.9]]}), "is no single value"),
        (search(select_crops__max_rounds={"choices": [1, True]}), "true is there twice"),
        (search(relabel__tau={"low": 0, "high": 1, "step": 0.3}), "must be a multiple of step=0.3"),
        (search(relabel__tau={"choices": [0, 1], "log": True}), "choices exclude low, high, step and log"),
        (search(relabel__tau={"low": 0}), "give choices, or both low and high"),
        (search(relabel__tau={"low": 0.1, "high": 1, "log": True, "step": 0.1}), "log and step exclude each other"),
        (search(seed={"choices": [1, 2]}), "seeds are averaged over"),
        (search(distill__images_per_class={"choices": [1, 2]}), "list its values under cells"),
        (search(split__imbalance_factor={"low": 1, "high": 2}), "list its values under cells"),
        (search(x={"sets": ["recover.steps", "relabel.tau"], "low": 1, "high": 2}), "sets mixes whole numbers with others"),
        (search(x={"low": 1, "high": 2}), "there is no setting 'x'"),
        ({"search": {}}, "search is empty"),
        ({"set": {"recover.steps": 5}}, "recover.steps stands under set and under search"),
        ({"set_in_trials": {"split.validation_per_class": 1, "distill.images_per_class": 5}}, "stands under set_in_trials and under cells"),
        ({"set_in_trials": {}}, "give set_in_trials a split.validation_per_class"),
        ({"set_in_finals": {"split.validation_per_class": 5}}, "final runs train on the full training split"),
        ({"objectives": ["top1", "mean_per_class"]}, "then at most costs"),
        ({"objectives": ["top1", "seconds", "seconds"]}, "name one twice"),
        ({"objectives": ["top1", "seconds"], "pruner": {"kind": "median", "evaluation_epochs": [5]}}, "needs a single objective"),
        ({"pruner": {"kind": "asha"}}, "kind=asha needs evaluation_epochs, at least one from grace=1 on"),
        ({"pruner": {"kind": "asha", "evaluation_epochs": [5], "grace": 6}}, "at least one from grace=6 on"),
        ({"pruner": {"evaluation_epochs": [5, 5]}}, "must rise"),
        ({"pruner": {"kind": "asha", "evaluation_epochs": [20]}}, "20 is not before the last of evaluate.epochs=20"),
        ({"cells": {"split.imbalance_factor": [5, 5]}}, "5 is there twice"),
        ({"cells": {"split.imbalance_factor": []}}, "has no value"),
        ({"cells": {"seed": [1, 2]}}, "seeds are averaged over"),
        ({"set": {"split.profile": "natural"}}, "split.imbalance_factor has no effect with split.profile=natural"),
        ({"cells": {"data.dataset": ["digits_lt", "digit_lt"]}}, "did you mean digits_lt?"),
        ({"cells": {"split.imbalance_factor": [0.5]}}, "cells.split.imbalance_factor=0.5: split.imbalance_factor (it is 0.5)"),
        ({"set": {"evaluate.learning_rate": -1}}, "set: evaluate.learning_rate (it is -1)"),
        ({"base": ["base.yaml", "base.yaml"]}, "more than one cell is called base-if5-ipc1, "),
        ({"base": "other.yaml"}, "there is no configuration file"),
        ({"base": []}, "base"),
    ],
)
def test_a_mistake_is_named(tmp_path, parameters, message):
    found = problems(write(tmp_path, parameters))
    assert message in "\n".join(found)
    assert all(line.endswith((".", "?", ")")) for line in found) and len(found) < 4, found


def test_searched_student_epochs_and_a_pruner_exclude_each_other(tmp_path):
    changes = search(evaluate__epochs={"low": 10, "high": 20}) | {"pruner": {"kind": "median", "evaluation_epochs": [5]}}
    changes["set_in_trials"] = {"split.validation_per_class": 5}
    assert "compares trials at one epoch of equal plans" in problems(write(tmp_path, changes))[0]
    assert load_sweep(write(tmp_path, changes), ["pruner.kind=none"]).cells


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"calibrate.momentum.schedul": "power"}, "did you mean 'calibrate.momentum.schedule'?"),
        ({"calibrate.momentum.schedule": "powr"}, "'powr' is none of the choices of calibrate.momentum.schedule: did you mean 'power'?"),
        ({"recover.steps": 5}, "recover.steps has a range"),
        ({"relabel.tau": 1}, "go in a circle"),
        ({"recover.flip": "x"}, "its conditions hold in no cell"),
    ],
)
def test_impossible_conditions_are_refused(tmp_path, when, message):
    parameters = {**SWEEP["search"], "relabel.tau": {"choices": [0, 1], "when": when}}
    assert message in "\n".join(problems(write(tmp_path, {"search": parameters})))


def test_circles_name_their_members_only(tmp_path):
    names = ["recover.flip", "select_crops.flip", "relabel.views.flip", "experts.flip"]
    parents = dict(zip(names, ["select_crops.flip", "relabel.views.flip", "recover.flip", "recover.flip"], strict=True))
    parameters = {name: {"choices": [True, False], "when": {parents[name]: True}} for name in names}
    assert problems(write(tmp_path, {"search": parameters})) == [
        "search: the conditions of recover.flip, select_crops.flip, relabel.views.flip go in a circle: remove one."
    ]


def test_conditions_that_exclude_each_other_are_refused(tmp_path):
    parameters = {
        "recover.flip": {"choices": [True, False]},
        "select_crops.flip": {"choices": [True, False], "when": {"recover.flip": True}},
        "relabel.tau": {"low": 0, "high": 1, "when": {"select_crops.flip": True, "recover.flip": False}},
    }
    assert problems(write(tmp_path, {"search": parameters})) == ["search.relabel.tau: its conditions never hold together: remove it or change them."]


def test_parameters_may_depend_on_the_cell(tmp_path):
    parameters = {"recover.steps": {"low": 1, "high": 5}, "relabel.tau": {"low": 0, "high": 1, "when": {"distill.images_per_class": 2}}}
    sweep = load_sweep(write(tmp_path, {"search": parameters}))
    assert {cell.name[-4:]: len(cell.space) for cell in sweep.cells} == {"ipc1": 1, "ipc2": 2}


TINY = 1e-6
BOUNDS = {
    "relabel.tau": (-5, 5),
    "select_crops.min_scale": (TINY, 1),
    "recover.statistics_momentum": (0, 1 - TINY),
    "relabel.views.mix_alpha": (TINY, 99),
}


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(sorted(BOUNDS)), low=st.floats(-7, 6), span=st.floats(0.01, 6), under=st.booleans())
def test_a_range_is_accepted_exactly_when_the_setting_takes_both_ends(tmp_path_factory, name, low, span, under):
    low, high = round(low, 4), round(low + span, 4)
    spec = {"low": low, "high": high, **({"when": {"recover.flip": False}} if under else {})}
    path = write(tmp_path_factory.mktemp("s"), {"search": {"recover.flip": {"choices": [True, False]}, name: spec}, "cells": None})
    bad = [f"search.{name}={end}" for end in (low, high) if not BOUNDS[name][0] <= end <= BOUNDS[name][1]]
    if not bad:
        assert load_sweep(path).cells
        return
    found = problems(path)
    assert len(found) == len(bad) and all(any(line.startswith(place) for line in found) for place in bad)


@pytest.mark.parametrize("high", [0.5, 1.0])
def test_two_searched_settings_that_can_contradict_each_other_are_refused(tmp_path, high):
    parameters = {"select_crops.min_scale": {"low": 0.2, "high": high}, "select_crops.max_scale": {"low": 0.5, "high": 1.0}}
    path = write(tmp_path, {"search": parameters})
    if high == 0.5:
        assert load_sweep(path).cells
    else:
        assert problems(path) == ["select_crops: select_crops.min_scale=1.0 is above max_scale=0.5: lower it."]


def test_a_bad_choice_in_one_branch_is_found_and_said_once(tmp_path):
    parameters = {
        "recover.flip": {"choices": [True, False]},
        "select_crops.method": {"choices": ["random", "confidence"], "when": {"recover.flip": False}},
        "select_crops.max_rounds": {"choices": [1, 0, None], "when": {"select_crops.method": "confidence"}},
    }
    assert problems(write(tmp_path, {"search": parameters})) == [
        "search.select_crops.max_rounds=0: select_crops.max_rounds (it is 0): input should be greater than or equal to 1."
    ]


def test_kinds_of_settings():
    kinds = {name: kind_of(name) for name in setting_names(inside_optional=True)}
    assert kinds["recover.steps"] == kinds["select_crops.max_rounds"] == kinds["compute.threads"] == "int"
    assert kinds["relabel.tau"] == kinds["evaluate.ema_decay"] == kinds["split.imbalance_factor"] == "float"
    assert kinds["teacher.function_matching.epochs"] == "int", "of a section that may be empty"
    assert kinds["recover.flip"] == kinds["calibrate.variance"] == kinds["recover.betas"] == kinds["data.path"] == "other"


def test_the_base_is_checked_as_a_run_checks_it(tmp_path):
    path = write(tmp_path, base={**BASE, "recover": {"stepz": 1}})
    assert problems(path) == [f"{tmp_path / 'base.yaml'}: there is no setting 'recover.stepz': did you mean 'recover.steps'?"]


def test_a_section_left_empty_is_an_empty_one(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text() + "set:\nset_in_finals:\n")
    assert load_sweep(path).config.set == {}
    assert load_sweep(path, ["recover.batch_size=7"]).cells[0].trial().recover.batch_size == 7


def test_a_dataset_that_is_no_text_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"data\.dataset \(it is 5\)"):
        load_sweep(write(tmp_path, base={**BASE, "data": {}}), ["data.dataset=5"])


def test_addresses_where_folders_are_needed_are_refused_wherever_they_stand(tmp_path):
    reason = "addresses with s3:// are not supported, a folder that all nodes see (on a mounted file system) is needed."
    assert problems(write(tmp_path, {"output": {"root": "s3://b/x"}})) == [f"output.root (it is 's3://b/x'): {reason}"]
    said = problems(write(tmp_path, {"set": {"data.root": "s3://b/x"}}))
    assert said and all(line.endswith(f"data.root (it is 's3://b/x'): {reason}") for line in said)


@pytest.mark.parametrize(
    ("name", "said"), [("..", "name (it is '..')"), (".", "name (it is '.')"), ("store", "the sweep's folder would be that of the artifact store")]
)
def test_names_whose_folder_would_be_another_are_refused(tmp_path, name, said):
    (problem,) = problems(write(tmp_path, {"name": name}))
    assert said in problem


@pytest.mark.parametrize("override", ["x=1", "set", "cells=5", "search=[1]", "set.recover.steps={a: 1}"])
def test_bad_overrides_are_sentences(tmp_path, override):
    with pytest.raises(InputError):
        load_sweep(write(tmp_path), [override])
