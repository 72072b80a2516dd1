"""The searcher and its studies, driven as Tune drives them but without it: nothing is computed, a trial's value is a function of its point."""

import json
import math
import pickle
import time

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from ray.tune.search import Searcher
from tiny_sweeps import sweep_of

from ray_ltdd.cluster.pruning import RungPruner, make_pruner
from ray_ltdd.cluster.records import write_all_rows
from ray_ltdd.cluster.searcher import ReportingScheduler, StudySearcher
from ray_ltdd.cluster.studies import INTERRUPTED, JOURNAL, Studies, found_studies, open_journal, open_studies
from ray_ltdd.cluster.sweep import retire
from ray_ltdd.cluster.trial import Final, TrialSetup
from ray_ltdd.errors import InputError
from ray_ltdd.results.rows import read_rows
from ray_ltdd.search.cells import interleave
from ray_ltdd.search.config import PrunerConfig


class Driver:
    """One driver of a sweep from its start on; what it leaves when it is dropped is what a killed one leaves."""

    def __init__(self, sweep):
        sweep.folder.mkdir(parents=True, exist_ok=True)
        self.studies = open_studies(sweep, open_journal(sweep.folder / JOURNAL))
        self.n_zombies = self.studies.end_running()
        self.ended = []
        rule = sweep.config.warm_start
        order = interleave(sweep.cells, sweep.config.trials, rule.head_start, self.studies.n_done())
        self.searcher = StudySearcher(self.studies, order, lambda study, number: self.ended.append((study.cell.name, number)))
        self.scheduler = ReportingScheduler(self.searcher)
        self.count = 0

    def suggest(self):
        """Tune's name of the next trial and what it is told; None at the end."""
        self.count += 1
        told = self.searcher.suggest(f"t{self.count}")
        return None if told == Searcher.FINISHED else (f"t{self.count}", told)

    def run(self, n=10**6, value=None):
        """Run up to `n` trials one after the other; return (cell, point) of each."""
        seen = []
        for _ in range(n):
            suggestion = self.suggest()
            if suggestion is None:
                break
            name, told = suggestion
            point = json.loads(told["point"])
            seen.append((told["cell"], point))
            self.searcher.on_trial_complete(name, {"values": [(value or accuracy)(point)], "busy_seconds": 1.0})
        return seen


def accuracy(point):
    """Best at 60 steps, tau 1 and a constant momentum near 0.1."""
    near = 0.1 if point["calibrate.momentum.schedule"] == "constant" else 0.0
    return 0.5 + near - ((point["recover.steps"] - 60) / 200) ** 2 - 0.05 * (point["relabel.tau"] - 1) ** 2


def states(study):
    return [trial.state for trial in study.trials()]


def test_one_trial_at_a_time_gives_the_same_suggestions_with_the_same_seed(tmp_path):
    first, second = (Driver(sweep_of(tmp_path / name)).run() for name in "ab")
    other = Driver(sweep_of(tmp_path / "c", seed=1)).run()
    assert first == second and len(first) == 12
    # the defaults are the same, what is drawn is not
    assert other[0] == first[0] and [point for point in other if point in first] == [first[0], first[3]]


@pytest.mark.slow
@pytest.mark.parametrize("at_work", [True, False], ids=["while a trial is at work", "between trials"])
@pytest.mark.parametrize("kills", [[1], [4, 7], [2, 2, 3]], ids=str)
def test_a_killed_driver_is_continued_as_if_nothing_had_happened(tmp_path, kills, at_work):
    undisturbed = Driver(sweep_of(tmp_path / "whole")).run()
    sweep, seen = sweep_of(tmp_path / "killed"), []
    for n in kills:
        driver = Driver(sweep)
        seen += driver.run(n)
        if at_work:
            driver.suggest()
    last = Driver(sweep)
    assert last.n_zombies == (1 if at_work else 0)
    seen += last.run()
    assert seen == undisturbed
    for study in last.studies:
        assert study.n_done() == 6 and not {TrialState.RUNNING, TrialState.WAITING} & set(states(study))
        interrupted = [trial for trial in study.trials() if trial.user_attrs.get("reason") == INTERRUPTED]
        retried = [trial.user_attrs["retry_of"] for trial in study.trials() if "retry_of" in trial.user_attrs]
        assert [trial.number for trial in interrupted] == retried and all(trial.state == TrialState.FAIL for trial in interrupted)
        points = [str(study.point(trial)) for trial in study.counted()]
        assert len(set(points)) == len(points) == 6
    assert Driver(sweep).run() == []
    assert [(study.cell, study.n_done()) for study in found_studies(sweep)] == [(cell, 6) for cell in sweep.cells]


def test_a_point_that_couples_settings_badly_is_a_failed_trial_and_no_more(tmp_path):
    """Only the value between the ends makes one teacher of two: a space's check does not see it."""
    width = {"teacher.model.width": {"low": 4, "high": 20, "step": 8}}
    same = {"set": {"more_teachers": [{"model": {"architecture": "convnet", "depth": 2, "width": 12}}], "teacher.model.depth": 2}}
    sweep = sweep_of(tmp_path, search=width, warm_start={"defaults": False}, cells={"split.imbalance_factor": [5]}, **same)
    (study,) = open_studies(sweep, open_journal(_made(sweep.folder) / JOURNAL))
    study.study.enqueue_trial({"teacher.model.width": 12})
    trial, point = study.ask(None)
    with pytest.raises(InputError, match="would count twice"):
        study.cell.trial(point)
    study.fail(trial, "would count twice")
    setup = TrialSetup(sweep.config.name, sweep.folder, "group", {cell.name: cell for cell in sweep.cells}, ())
    write_all_rows(Studies({study.cell.name: study}), setup)
    (row,) = read_rows(sweep.folder / "results").to_pylist()
    assert (row["state"], row["reason"], row["params"]) == ("failed", "would count twice", json.dumps(point))


def test_trials_whose_folders_were_deleted_get_no_second_row(tmp_path):
    sweep = sweep_of(tmp_path, cells={"split.imbalance_factor": [5]})
    driver = Driver(sweep)
    driver.run(2)
    write_all_rows(driver.studies, TrialSetup(sweep.config.name, sweep.folder, "group", {cell.name: cell for cell in sweep.cells}, ()))
    assert not (sweep.folder / "results").exists()


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def test_a_sweep_is_extended_without_repeating_anything(tmp_path):
    whole = Driver(sweep_of(tmp_path / "whole", warm_start={"kind": "none"})).run()
    folder = tmp_path / "extended"
    first = Driver(sweep_of(folder, trials=2, warm_start={"kind": "none"})).run()
    rest = Driver(sweep_of(folder, warm_start={"kind": "none"})).run()
    assert (len(first), len(rest)) == (4, 8) and sorted(map(str, first + rest)) == sorted(map(str, whole))


def test_cells_take_turns_once_the_neighbour_had_its_head_start(tmp_path):
    cells = [cell for cell, _ in Driver(sweep_of(tmp_path)).run()]
    assert [name[-1] for name in cells] == ["5"] * 3 + ["0", "5"] * 3 + ["0"] * 3


def test_a_cell_starts_with_the_defaults_and_its_neighbours_best(tmp_path):
    sweep = sweep_of(tmp_path)
    driver = Driver(sweep)
    seen = driver.run()
    by_cell = {cell.name: [point for name, point in seen if name == cell.name] for cell in sweep.cells}
    first, second = by_cell.values()
    for cell in sweep.cells:
        assert cell.trial(by_cell[cell.name][0]) == cell.trial() and driver.studies[cell.name].defaults().number == 0
    # two of the neighbour's best at the time that are not the defaults, which come first anyway
    known = sorted(first[:4], key=accuracy, reverse=True)
    expected = [point for point in known if point != second[0]][:2]
    assert second[1:3] == expected
    origins = [trial.user_attrs.get("origin") for trial in driver.studies[sweep.cells[1].name].trials()]
    assert origins == ["defaults", "neighbour 0", "neighbour 1", None, None, None]


def test_a_neighbour_without_results_is_waited_for(tmp_path):
    """Three trials at a time: when the second cell asks first, the first has nothing to tell yet."""
    driver = Driver(sweep_of(tmp_path, concurrency=4, sampler={"n_startup_trials": 4}))
    started = [driver.suggest() for _ in range(4)]
    second = driver.studies[started[3][1]["cell"]]
    assert [told["cell"] == started[0][1]["cell"] for _, told in started] == [True, True, True, False]
    for name, told in started:
        driver.searcher.on_trial_complete(name, {"values": [accuracy(json.loads(told["point"]))]})
    driver.run()
    assert sum(str(trial.user_attrs.get("origin")).startswith("neighbour") for trial in second.trials()) == 2


def test_points_are_taken_over_as_the_neighbour_finds_them(tmp_path):
    """Of its first trials only the defaults are complete: they are no news."""
    driver = Driver(sweep_of(tmp_path))
    driver.run(1)
    driver.run(2, value=lambda point: math.nan)
    driver.run()
    _, second = driver.studies
    origins = [trial.user_attrs.get("origin") for trial in second.trials()]
    assert origins[0] == "defaults" and origins.count("neighbour 0") == origins.count("neighbour 1") == 1 and len(origins) == 6


def test_what_is_no_number_fails_with_its_reason(tmp_path):
    driver = Driver(sweep_of(tmp_path))
    told = [
        {"values": [math.nan]},
        {"values": [math.inf]},
        {"values": []},
        {"failed": "Recover, classes 0: the loss became NaN"},
        None,
        {"values": [0.5]},
    ]
    reasons = []
    for result in told:
        name, suggestion = driver.suggest()
        driver.searcher.on_trial_complete(name, result, error=result is None)
        trial = driver.studies[suggestion["cell"]].trials()[suggestion["number"]]
        reasons.append(trial.user_attrs.get("reason"))
        assert trial.state == (TrialState.COMPLETE if result == {"values": [0.5]} else TrialState.FAIL)
    assert reasons[:3] == ["its value is no number: top1=nan", "its value is no number: top1=inf", "it reported 0 values"]
    assert reasons[3:] == ["Recover, classes 0: the loss became NaN", "the process that drove it died", None]
    # a failed trial is one of those asked for: what always fails comes to an end
    assert len(driver.run()) == 12 - len(told) and len(driver.ended) == 12


def test_unknown_trials_and_late_words_are_passed_over(tmp_path):
    driver = Driver(sweep_of(tmp_path))
    name, told = driver.suggest()
    driver.searcher.on_trial_complete("unknown", {"values": [1.0]})
    assert not driver.searcher.report("unknown", {"epoch": 1, "value": 0.5})
    driver.searcher.on_trial_complete(name, {"values": [0.25]})
    driver.searcher.on_trial_complete(name, {"values": [0.75]})
    assert driver.studies[told["cell"]].trials()[0].values == [0.25]


def test_failed_trials_are_begun_again_on_demand(tmp_path):
    sweep = sweep_of(tmp_path, warm_start={"kind": "none"})
    driver = Driver(sweep)
    failed = driver.run(3, value=lambda point: math.nan)
    driver.run()
    again = Driver(sweep)
    assert again.run() == []
    for study in again.studies:
        study.retry_failed()
    assert sorted(map(str, Driver(sweep).run())) == sorted(map(str, failed))
    assert [study.n_done() for study in Driver(sweep).studies] == [6, 6]


PRUNED = {"pruner": {"kind": "asha", "evaluation_epochs": [1, 3], "grace": 1, "reduction_factor": 3}, "trials": 9, "cells": {}}


def halve(driver, values):
    """Run trials whose accuracy after epochs 1, 3 and the last is `values`; return the epoch each was stopped at, None where it was not."""
    stopped = []
    for value in values:
        name, _ = driver.suggest()
        for epoch in (1, 3):
            if driver.searcher.report(name, {"epoch": epoch, "value": value, "busy_seconds": 2.0}):
                driver.searcher.on_trial_complete(name, {"epoch": epoch, "value": value})
                stopped.append(epoch)
                break
        else:
            driver.searcher.on_trial_complete(name, {"values": [value]})
            stopped.append(None)
    return stopped


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=20), st.sampled_from([2, 3]))
def test_rungs_are_optunas_successive_halving_where_its_rungs_are(values, factor):
    """An independent implementation, on the powers it takes its rungs at."""
    studies = [
        optuna.create_study(direction="maximize", pruner=p) for p in (RungPruner(factor), optuna.pruners.SuccessiveHalvingPruner(1, factor, 0))
    ]
    stopped = []
    for study in studies:
        ends = []
        for value in values:
            trial, end = study.ask(), None
            for epoch in (1, factor, factor**2):
                trial.report(value, epoch)
                if trial.should_prune():
                    end = epoch
                    break
            study.tell(trial, None if end else value, state=TrialState.PRUNED if end else TrialState.COMPLETE)
            ends.append(end)
        stopped.append(ends)
    assert stopped[0] == stopped[1]


def test_a_stopped_trial_is_pruned_with_its_value_and_counts(tmp_path):
    driver = Driver(sweep_of(tmp_path, **PRUNED))
    assert halve(driver, [0.5, 0.4, 0.6, 0.5, 0.3, 0.65, 0.7]) == [None, 1, None, 1, 1, None, None]
    (study,) = driver.studies
    trial = study.trials()[1]
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 0.4, {1: 0.4})
    assert study.trials()[0].intermediate_values == {1: 0.5, 3: 0.5} and trial.user_attrs["busy_seconds"] == 2.0
    assert study.n_done() == 7 and [t.number for t in study.completed()] == [6, 5, 2, 0]


def test_rungs_outlive_the_driver_and_hold_for_trials_at_work(tmp_path):
    """Tune's own scheduler starts every time with empty rungs; here trials at work count as well, interrupted ones do not."""
    sweep = sweep_of(tmp_path, **PRUNED)
    driver = Driver(sweep)
    assert halve(driver, [0.5, 0.6]) == [None, None]
    at_work, _ = driver.suggest()
    assert not driver.searcher.report(at_work, {"epoch": 1, "value": 0.9})
    other, _ = driver.suggest()
    assert driver.searcher.report(other, {"epoch": 1, "value": 0.7}), "the one at work is better"
    driver.searcher.on_trial_complete(other, {"epoch": 1, "value": 0.7})
    again = Driver(sweep)
    assert again.n_zombies == 1
    assert halve(again, [0.65]) == [1], "0.7 is remembered, though it was stopped; its point is the interrupted trial's"


def test_a_trial_begun_again_by_tune_is_not_judged_twice(tmp_path):
    driver = Driver(sweep_of(tmp_path, **PRUNED))
    halve(driver, [0.5])
    first, _ = driver.suggest()
    assert not driver.searcher.report(first, {"epoch": 1, "value": 0.6})
    better, _ = driver.suggest()
    assert not driver.searcher.report(better, {"epoch": 1, "value": 0.9})
    assert not driver.searcher.report(first, {"epoch": 1, "value": 0.6})
    assert not driver.searcher.report(first, {"epoch": 3, "value": 0.6})


def test_median_stops_below_the_median_of_all_others_at_the_same_epoch():
    pruner = PrunerConfig(kind="median", evaluation_epochs=(1, 3), n_startup_trials=2)
    study = optuna.create_study(direction="maximize", pruner=make_pruner(pruner))
    decisions = []
    # the last: above the median of all four at its epoch, below that of the three that were let pass
    for value in (0.4, 0.6, 0.45, 0.55, 0.52):
        trial = study.ask()
        trial.report(value, 1)
        decisions.append(trial.should_prune())
        study.tell(trial, None if decisions[-1] else value, state=TrialState.PRUNED if decisions[-1] else TrialState.COMPLETE)
    assert decisions == [False, False, True, False, False]


def test_a_trials_own_better_value_at_an_earlier_epoch_does_not_save_it():
    study = optuna.create_study(direction="maximize", pruner=make_pruner(PrunerConfig(kind="median", evaluation_epochs=(1, 3), n_startup_trials=1)))
    first, second = study.ask(), study.ask()
    for trial, values in ((first, (0.5, 0.6)), (second, (0.7, 0.55))):
        for epoch, value in zip((1, 3), values, strict=True):
            trial.report(value, epoch)
        if trial is first:
            study.tell(first, 0.6)
    assert second.should_prune()


def test_a_point_half_written_when_its_driver_was_killed_is_begun_again_whole(tmp_path):
    driver = Driver(sweep_of(tmp_path, cells={}, warm_start={"kind": "none"}))
    (study,) = driver.studies
    study._enqueue_first_points(None)
    # what is in the journal when the driver dies after the first of the defaults' parameters
    whole = study.trials()[0].system_attrs["fixed_params"]
    trial = study.study.ask()
    first = study.cell.space.parameters[0]
    first.domain.suggest(trial, first.name)
    assert 0 < len(study.trials()[0].params) < len(whole)
    again = Driver(sweep_of(tmp_path, cells={}, warm_start={"kind": "none"}))
    ((_, point),) = again.run(1)
    assert point == whole


def test_former_winners_are_put_out_of_the_readers_way(tmp_path):
    sweep = sweep_of(tmp_path, final_seeds=2)
    setup = TrialSetup("tiny", sweep.folder, "group", {cell.name: cell for cell in sweep.cells}, ())
    cell = sweep.cells[0].name
    finals = [Final(cell, role, None, None, number) for role in ("winner", "defaults") for number in (0, 1)]
    others = [sweep.folder / "finals" / name for name in (f"{cell}-winner-s0-00000000", "another-cell-winner-s0-00000000")]
    for folder in (*(final.folder(setup) for final in finals), *others):
        (folder / "results").mkdir(parents=True)
    retire(setup, finals)
    left = {path.name for path in (sweep.folder / "finals").iterdir()}
    assert left == {*(final.folder(setup).name for final in finals), others[1].name, ".superseded"}
    assert (sweep.folder / "finals" / ".superseded" / others[0].name / "results").is_dir()


def test_several_objectives_make_a_front(tmp_path):
    driver = Driver(sweep_of(tmp_path, objectives=["top1", "seconds"], cells={}))
    costs = [(0.5, 10.0), (0.6, 20.0), (0.55, 30.0), (0.7, 40.0), (0.4, 5.0), (0.4, 6.0)]
    for pair in costs:
        name, _ = driver.suggest()
        driver.searcher.on_trial_complete(name, {"values": list(pair)})
    (study,) = driver.studies
    assert [tuple(trial.values) for trial in study.front()] == [(0.7, 40.0), (0.6, 20.0), (0.5, 10.0), (0.4, 5.0)]
    assert study.study.metric_names == ["top1", "seconds"]


def test_other_directions_are_refused(tmp_path):
    sweep = sweep_of(tmp_path)
    sweep.folder.mkdir(parents=True)
    storage = open_journal(sweep.folder / JOURNAL)
    optuna.create_study(study_name=sweep.cells[0].study_name, storage=storage, direction="minimize")
    with pytest.raises(InputError, match=r"has the directions minimize, the sweep's objectives have maximize"):
        open_studies(sweep, storage)


@pytest.mark.slow
def test_a_torn_journal_and_a_dead_drivers_lock_are_mended(tmp_path):
    sweep = sweep_of(tmp_path)
    Driver(sweep).run(2)
    path = sweep.folder / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"worker_id":"abc","stu')
    (sweep.folder / (JOURNAL + ".lock")).symlink_to(path)
    started = time.monotonic()
    driver = Driver(sweep)
    # Optuna's own patience is 30 s
    assert time.monotonic() - started < 6
    assert sum(study.n_done() for study in driver.studies) == 2 and len(driver.run()) == 10


def test_no_trial_starts_after_the_deadline(tmp_path):
    driver = Driver(sweep_of(tmp_path))
    late = StudySearcher(driver.studies, driver.searcher._order, print, deadline=time.monotonic() - 1)
    assert late.suggest("t") == Searcher.FINISHED and all(not study.trials() for study in driver.studies)


def test_tune_can_write_it_into_its_snapshots(tmp_path):
    driver = Driver(sweep_of(tmp_path))
    assert pickle.dumps(driver.searcher) and pickle.dumps(driver.scheduler)
    driver.searcher.save(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
