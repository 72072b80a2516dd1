"""Rows of a sweep become tables of trials; rows of plain runs become none."""

import json

import numpy as np
import pytest
from matplotlib.text import Text
from synthetic_rows import row, settings_with, write

from ray_ltdd.results.load import load_results
from ray_ltdd.results.trials import NULL, load_trials, parameters_of, sweep_comparison, sweep_figures, sweep_finals, sweep_summary, trial_table

SCHEDULE, VALUE, ROUNDS = "calibrate.momentum.schedule", "calibrate.momentum.value", "select_crops.max_rounds"


def point(i):
    """A schedule with its own parameter every second time, and rounds that may be without limit."""
    values = {SCHEDULE: "constant" if i % 2 else "cumulative", ROUNDS: None if i % 3 == 0 else i, "recover.steps": 50 + i}
    return values | ({VALUE: 0.01 * (i + 1)} if i % 2 else {})


NAME = "cifar10_lt-if100-ipc10"
SWEEP = {"sweep": "s", "cell": NAME, "study": f"{NAME}-0a1b2c3d", "schema_version": 2}


def trial_row(i, number=0, **more):
    """A row of trial i: 10 and 11 of them were pruned and failed."""
    state = {10: "pruned", 11: "failed"}.get(i, "complete")
    known = {"artifact": f"trial {i} student {number}", "stage_seconds": [("Recover", 30.0), ("Students", 6.0)], "role": "trial", "trial": i}
    values = row(settings=settings_with(evaluate__part="validation", recover__steps=50 + i), top1=0.4 + 0.01 * i, number=number, **known)
    values |= SWEEP | {"state": state, "params": json.dumps(point(i)), "objectives": [0.4 + 0.01 * i] if state == "complete" else None} | more
    return values if state != "failed" else values | dict.fromkeys(("artifact", "top1", "per_class", "stage_seconds"))


def final_row(role, seed, top1, steps):
    return row(settings=settings_with(seed=seed, recover__steps=steps), top1=top1, artifact=f"{role}{seed}", role=role, state="complete", **SWEEP)


@pytest.fixture
def sweep(tmp_path):
    """12 trials of one study (10 finished, one pruned, one failed), its final runs, and a run that belongs to no sweep."""
    finals = [final_row("winner", n, 0.6 + n / 50, 66) for n in (0, 1)] + [final_row("defaults", n, 0.5, 75) for n in (0, 1)]
    write(tmp_path / "s", *(trial_row(i) for i in reversed(range(12))), *finals)
    write(tmp_path / "alone", row(settings=settings_with(name="alone", recover__steps=99)))
    return tmp_path


def test_trials_are_one_row_each_in_their_order(sweep):
    (name, trials), *others = load_trials(sweep).items()
    assert name == NAME and not others
    assert trials["number"].tolist() == list(range(12))
    assert trials["state"].tolist() == ["COMPLETE"] * 10 + ["PRUNED", "FAIL"]
    np.testing.assert_allclose(trials["value"][:11], [0.4 + 0.01 * i for i in range(11)])
    assert np.isnan(trials["value"][11]) and trials["seconds"].tolist() == [36.0] * 11 + [0.0]
    assert set(parameters_of(trials)) == {SCHEDULE, ROUNDS, "recover.steps", VALUE}
    assert trials["recover.steps"].tolist() == [50 + i for i in range(12)]
    assert trials[VALUE].isna().tolist() == [i % 2 == 0 for i in range(12)]
    assert trials[ROUNDS][0] == NULL and trials[ROUNDS][1] == 1


def test_several_students_of_a_trial_are_one_trial(sweep):
    write(sweep / "s", trial_row(3, 1, top1=0.7, objectives=None), trial_row(10, 1, top1=0.6))
    trials = load_trials(sweep)[NAME]
    # the study's own value counts where there is one, else the accuracy
    assert len(trials) == 12 and trials["value"][3] == pytest.approx((0.43 + 0.7) / 2) and trials["value"][10] == pytest.approx((0.5 + 0.6) / 2)


def test_the_studys_objective_counts_not_top1(sweep):
    write(sweep / "s", trial_row(20, objectives=[0.9, 3.5], top1=0.2))
    assert load_trials(sweep)[NAME]["value"].tolist()[-1] == 0.9


def test_a_cell_with_a_second_study_shows_both(sweep):
    write(sweep / "s", trial_row(0) | {"study": f"{NAME}-ffffffff", "artifact": "other space"})
    assert {name: len(trials) for name, trials in load_trials(sweep).items()} == {f"{NAME}-0a1b2c3d": 12, f"{NAME}-ffffffff": 1}


def test_sweeps_that_share_cells_and_studies_stay_apart(sweep):
    """Another sweep's study of the same name, whose defaults are the first one's, and whose winner is not."""
    finals = [final_row("winner", n, 0.8, 33) for n in (0, 1)] + [final_row("defaults", n, 0.5, 75) for n in (0, 1)]
    write(sweep / "t", *(values | {"sweep": "t"} for values in (*(trial_row(i, top1=0.1, objectives=[0.1]) for i in range(3)), *finals)))
    trials = load_trials(sweep)
    assert {name: len(own) for name, own in trials.items()} == {f"s, {NAME}": 12, f"t, {NAME}": 3}
    assert sweep_summary(trials)["best_percent"].tolist() == pytest.approx([49, 10])
    rows = load_results(sweep)
    compared = sweep_comparison(rows).set_index("cell")
    assert compared["winner"].to_dict() == pytest.approx({f"s, {NAME}": 0.61, f"t, {NAME}": 0.8}) and compared["n"].tolist() == [2, 2]
    assert set(sweep_finals(rows)["label"]) == {"winner of s", "winner of t", "defaults of s, defaults of t"}
    # the cells of both tables have one name, where one sweep has no finals yet, too
    assert sweep_comparison(rows[(rows["sweep"] == "s") | (rows["role"] == "trial")])["cell"].tolist() == [f"s, {NAME}"]


def test_the_summary_counts_states_and_names_the_best(sweep):
    (cell,) = sweep_summary(load_trials(sweep)).to_dict("records")
    assert (cell["cell"], cell["trials"], cell["complete"], cell["pruned"], cell["failed"]) == (NAME, 12, 10, 1, 1)
    # trial 9 is the best of those that finished; the pruned one's larger value does not count
    assert cell["best_percent"] == pytest.approx(49) and "recover.steps=59" in cell["best_params"]
    assert cell["hours"] == pytest.approx(11 * 36 / 3600)


def test_figures_of_a_sweep_name_what_they_show_and_of_which_cell(sweep):
    figures = sweep_figures(load_trials(sweep))
    for figure in figures.values():
        assert any(NAME in text.get_text() for text in figure.findobj(Text)), "two cells' figures look alike"
    assert [title.partition(": ")[2] for title in figures] == [
        "course of the sweep",
        "importance of the parameters",
        "parameters of the trials",
        "response to the momentum schedule",
    ]


def test_finals_are_winners_and_defaults(sweep):
    finals = sweep_finals(load_results(sweep)).set_index("label")
    assert set(finals.index) == {"winner of s", "defaults of s"} and finals["n"].tolist() == [2, 2]
    assert finals["mean"]["winner of s"] == pytest.approx(0.61) and finals["mean"]["defaults of s"] == pytest.approx(0.5)


def test_winner_and_defaults_are_compared_seed_by_seed(sweep):
    (cell,) = sweep_comparison(load_results(sweep)).to_dict("records")
    assert (cell["winner"], cell["defaults"], cell["n"], cell["same"]) == (pytest.approx(0.61), pytest.approx(0.5), 2, False)
    # differences 0.10 and 0.12: their mean, and t quantile 12.706 times deviation over root two
    assert cell["difference"] == pytest.approx(0.11) and cell["high"] - cell["difference"] == pytest.approx(12.7062 * 0.01, rel=1e-4)


def test_defaults_that_won_are_named_so_and_not_compared(sweep):
    write(sweep / "t", *(final_row(role, n, 0.5, 75) | {"cell": "other", "sweep": "t"} for role in ("winner", "defaults") for n in (0, 1)))
    found = sweep_comparison(load_results(sweep / "t"))
    assert found["same"].tolist() == [True] and found["difference"].tolist() == [0]
    assert sweep_finals(load_results(sweep / "t"))["label"].tolist() == ["winner and defaults of t"]


def test_all_trials_as_one_table(sweep):
    table = trial_table(load_trials(sweep))
    assert table.loc[NAME].loc[3, "recover.steps"] == 53 and len(table) == 12
    assert trial_table({}).empty


def test_plain_runs_are_no_sweep(tmp_path):
    write(tmp_path, row())
    assert load_trials(tmp_path) == {} and sweep_figures({}) == {} and sweep_summary({}).empty and sweep_finals(load_results(tmp_path)).empty
    assert list(sweep_summary({}).columns)[:2] == ["cell", "trials"]
