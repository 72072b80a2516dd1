"""Many run folders as one table."""

import json
import time
import warnings

import pytest
from synthetic_rows import BASE, row, settings_with, write

from ray_ltdd import InputError
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.results.aggregate import aggregate
from ray_ltdd.results.load import load_results, recipe, setting


def test_runs_sweeps_and_parents(tmp_path):
    for place, seed in (("a", 0), ("b", 1), ("sweep/trials/t1", 2), ("sweep/trials/t2", 3)):
        write(tmp_path / place, row(settings=settings_with(seed=seed)))
    assert load_results(tmp_path / "a")["seed"].tolist() == [0]
    assert sorted(load_results(tmp_path / "sweep")["seed"]) == [2, 3]
    assert sorted(load_results(str(tmp_path))["seed"]) == [0, 1, 2, 3]
    both = load_results([tmp_path / "b", tmp_path / "a", tmp_path / "a" / "results"])
    assert both["seed"].tolist() == [1, 0]
    assert both["folder"].tolist() == [str(tmp_path / "b"), str(tmp_path / "a")]


def test_values_come_back(tmp_path):
    write(tmp_path, row(top1=0.25))
    (found,) = load_results(tmp_path).to_dict("records")
    assert found["top1"] == 0.25 and found["stage_seconds"] == {"Recover": 1.5}
    assert found["per_class"].tolist() == row(top1=0.25)["per_class"] and found["medium"] != found["medium"]


def test_a_result_that_two_runs_report_is_there_for_both(tmp_path):
    """The shared expert stands under each fingerprint; a copied folder adds nothing."""
    expert = row("observer", artifact="expert", fingerprint="f1")
    write(tmp_path / "a", expert, row(artifact="x", fingerprint="f1"))
    write(tmp_path / "b", expert | {"fingerprint": "f2"}, row(artifact="y", fingerprint="f2"))
    write(tmp_path / "copy of a", expert, row(artifact="x", fingerprint="f1"))
    assert load_results(tmp_path)["artifact"].tolist() == ["expert", "x", "expert", "y"]


def test_stores_and_hidden_folders_are_not_searched(tmp_path):
    write(tmp_path / "run", row())
    for name in ("store", ".trash"):
        write(tmp_path / name / "students", row(number=1))
        (tmp_path / name / "locks").mkdir()
    assert load_results(tmp_path)["number"].tolist() == [0]


def test_rows_that_lack_any_setting_have_the_recipe_of_its_default(tmp_path):
    """Whatever comes later: the same command makes the same recipe, in lists and in sections that may be empty, too."""
    teachers = [{"model": {"architecture": "resnet9"}}, {"taught_by": "observer", "function_matching": {"epochs": 9}}]
    said = {"data": {"dataset": "cifar10_lt"}, "split": {"imbalance_factor": 50.0}, "more_teachers": teachers}
    now = ExperimentConfig.model_validate(said).model_dump(mode="json")
    methods = ("distilled", "random", "observer", "teacher")
    write(tmp_path, *(row(method, settings=now, artifact=method) for method in methods))
    write(tmp_path, *(row(method, settings=now, artifact=f"earlier {method}") | {"settings": json.dumps(said)} for method in methods))
    found = load_results(tmp_path)
    assert found.groupby("method")["recipe"].nunique().tolist() == [1] * 4 and found["recipe"].nunique() == 4
    assert setting(found, "relabel.labels").tolist() == ["online"] * 8


@pytest.mark.parametrize("cut", [0, 100, -20])
def test_a_damaged_file_is_named_and_left_out(tmp_path, cut):
    write(tmp_path / "good", row())
    bad = write(tmp_path / "bad", row(number=1))
    bad.write_bytes(bad.read_bytes()[:cut])
    with pytest.warns(UserWarning, match=str(bad)):
        found = load_results(tmp_path)
    assert found["number"].tolist() == [0]


def test_only_damaged_files_give_an_empty_table(tmp_path):
    bad = write(tmp_path, row())
    bad.write_bytes(b"junk")
    with pytest.warns(UserWarning, match="damaged"):
        found = load_results(tmp_path)
    assert found.empty and {"seed", "recipe", "folder"} <= set(found.columns)


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*missing"):
        load_results(tmp_path / "missing")
    with pytest.raises(InputError, match="no result rows in"):
        load_results(tmp_path)
    with pytest.raises(InputError, match="no result rows in no folder"):
        load_results([])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 3},
        {"name": "other"},
        {"data__path": "/x"},
        {"output__root": "/y"},
        {"evaluate__seeds": 9},
        {"compute__threads": 2},
        {"relabel__epochs_per_task": 3},
        {"cluster__workers": 4},
    ],
)
def test_recipes_are_equal_where_only_seeds_and_places_differ(change):
    assert recipe(settings_with(**change), "distilled") == recipe(BASE, "distilled")


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"recover__steps": 3}, {"distilled"}),
        ({"relabel__labels": "one"}, {"distilled"}),
        ({"relabel__views__flip": False}, {"distilled", "random", "whole"}),
        ({"evaluate__epochs": 3}, {"distilled", "random", "whole"}),
        ({"observer__training__epochs": 3}, {"distilled", "observer"}),
        ({"teacher__training__epochs": 3}, {"distilled", "teacher"}),
        ({"cluster__expert_workers": 2}, {"distilled", "observer", "teacher"}),
        ({"split__seed": 3}, {"distilled", "random", "whole", "observer", "teacher"}),
        ({"evaluate__part": "validation"}, {"distilled", "random", "whole", "observer", "teacher"}),
    ],
)
def test_recipes_follow_what_a_method_depends_on(change, changed):
    methods = {"distilled", "random", "whole", "observer", "teacher"}
    assert {m for m in methods if recipe(settings_with(**change), m) != recipe(BASE, m)} == changed


def test_a_taught_teacher_is_another_under_another_observer():
    taught, again = settings_with(teacher__taught_by="observer"), settings_with(teacher__taught_by="observer", observer__training__epochs=3)
    assert recipe(taught, "teacher") != recipe(again, "teacher")
    further = [settings_with(more_teachers=[{"taught_by": "observer"}], observer__training__epochs=epochs) for epochs in (3, 4)]
    assert recipe(further[0], "teacher") != recipe(further[1], "teacher")


def test_one_setting_of_every_row(tmp_path):
    write(tmp_path, row(settings=settings_with(recover__steps=7)), row(number=1), row(number=2) | {"settings": None})
    found = load_results(tmp_path)
    assert setting(found, "recover.steps").tolist() == [7, 75, None]
    assert setting(found, "recover.nothing.here").tolist() == [None, None, None]


@pytest.mark.slow
def test_a_thousand_rows_are_loaded_and_aggregated_within_two_seconds(tmp_path):
    for run in range(100):
        settings = settings_with(seed=run % 5, recover__steps=run // 5)
        write(tmp_path / f"run-{run}", *(row(number=n, settings=settings, top1=0.5 + n / 100) for n in range(10)))
    # processor time: on a busy machine the clock would measure the others
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = aggregate(load_results(tmp_path))
    seconds = time.process_time() - started
    assert len(table) == 20 and (table["n"] == 50).all() and (table["n_experiments"] == 5).all()
    assert seconds < 2, f"{seconds:.2f} s"
