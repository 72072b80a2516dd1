"""The fair scores against their formula written out, and finding the accuracies they need."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import BASE, row, settings_with, write

from ray_ltdd import InputError
from ray_ltdd.config import validate
from ray_ltdd.results.fair import augmentation_robust_score, label_robust_score
from ray_ltdd.results.fair_runs import NEEDS, fair_accuracies, fair_scores, missing_for, overrides
from ray_ltdd.results.load import load_results, recipe
from ray_ltdd.yaml_files import override, with_settings


def score(x):
    return (math.exp(x) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_label_robust(weight):
    found = label_robust_score(real_hard=0.8, distilled_hard=0.35, distilled=0.62, random=0.5, weight=weight)
    assert found.recovery == pytest.approx(0.45) and found.improvement == pytest.approx(0.12)
    assert found.score == pytest.approx(score(weight * 0.12 - (1 - weight) * 0.45))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_augmentation_robust(weight):
    found = augmentation_robust_score(distilled=0.62, random=0.5, distilled_plain=0.4, random_plain=0.45, weight=weight)
    assert found.with_augmentation == pytest.approx(0.12) and found.without_augmentation == pytest.approx(-0.05)
    assert found.score == pytest.approx(score(weight * 0.12 - (1 - weight) * 0.05))


def test_scores_end_at_zero_and_one():
    assert label_robust_score(0, 1, 1, 0).score == pytest.approx(1) and label_robust_score(1, 0, 0, 1).score == pytest.approx(0)
    assert augmentation_robust_score(1, 0, 1, 0).score == pytest.approx(1) and augmentation_robust_score(0, 1, 0, 1).score == pytest.approx(0)
    no_better_than_random = augmentation_robust_score(0.4, 0.4, 0.3, 0.3).score
    assert no_better_than_random == pytest.approx((1 - 1 / math.e) / (math.e - 1 / math.e))


def test_seeds_are_scored_one_by_one():
    distilled, hard = np.array([0.6, 0.64]), np.array([0.3, 0.36])
    found = label_robust_score(0.7, hard, distilled, 0.5).score
    assert found.tolist() == pytest.approx([score(0.5 * 0.1 - 0.5 * 0.4), score(0.5 * 0.14 - 0.5 * 0.34)])


def test_percents_and_bad_weights_are_refused():
    with pytest.raises(InputError, match="real_hard=80 is no share"):
        label_robust_score(80, 0.3, 0.6, 0.5)
    with pytest.raises(InputError, match=r"random=-0.1 is no share"):
        augmentation_robust_score(0.5, [0.2, -0.1], 0.5, 0.5)
    with pytest.raises(InputError, match=r"weight=1.5"):
        label_robust_score(0.7, 0.3, 0.6, 0.5, weight=1.5)


def write_needs(folder, accuracies):
    """Rows of two students for each need, in the settings its command line gives."""
    for name, top1 in accuracies.items():
        values = settings_with()
        for part in overrides(NEEDS[name]).split():
            override(values, part)
        resolved = validate(values, "test").model_dump(mode="json")
        write(folder / name, *(row(NEEDS[name].method, number=n, top1=top1 + 0.02 * n, settings=resolved) for n in range(2)))


def test_the_overrides_make_what_is_then_found_and_scored(tmp_path):
    """Every missing accuracy's command line, given to the real configuration, gives the run whose row is looked for."""
    write(tmp_path / "base", *(row(number=n, top1=0.6) for n in range(2)))
    key = recipe(BASE, "distilled")
    known, missing = fair_accuracies(load_results(tmp_path), key)
    assert known["distilled"].tolist() == [0.6, 0.6] and known.drop(columns="distilled").isna().all(axis=None)
    assert missing == {name: overrides(need) for name, need in NEEDS.items() if name != "distilled"}
    write_needs(tmp_path, {"random": 0.1, "real_hard": 0.2, "distilled_hard": 0.3, "distilled_plain": 0.4, "random_plain": 0.5})
    rows = load_results(tmp_path)
    known, missing = fair_accuracies(rows, key)
    assert missing == {} and len(known) == 2 and known.notna().all(axis=None)
    assert known.loc[(0, 0)].to_dict() == pytest.approx(
        {"distilled": 0.6, "random": 0.1, "real_hard": 0.2, "distilled_hard": 0.3, "distilled_plain": 0.4, "random_plain": 0.5}
    )
    (scored,) = fair_scores(rows).to_dict("records")
    assert scored["recipe"] == key and scored["missing"] == () and scored["top1"] == pytest.approx(0.6)
    assert scored["n"] == scored["n_label_robust"] == scored["n_augmentation_robust"] == 2
    # of the second student all but the distilled images' own accuracy is 0.02 higher
    assert scored["label_robust"] == pytest.approx((score((0.5 + 0.1) / 2) + score((0.48 + 0.1) / 2)) / 2)
    assert scored["augmentation_robust"] == pytest.approx((score((0.5 - 0.1) / 2) + score((0.48 - 0.1) / 2)) / 2)


def test_a_score_without_its_runs_is_nan_and_says_which(tmp_path):
    write(tmp_path / "base", row(top1=0.6), row("whole", top1=0.7))
    write_needs(tmp_path, {"random": 0.3, "distilled_plain": 0.4})
    rows = load_results(tmp_path)
    (scored,) = fair_scores(rows).to_dict("records")
    assert scored["missing"] == ("distilled_hard", "random_plain") and scored["n_label_robust"] == 0
    assert math.isnan(scored["label_robust"]) and math.isnan(scored["augmentation_robust"]) and scored["top1"] == pytest.approx(0.6)
    assert missing_for("label_robust", scored["missing"]) == NEEDS["distilled_hard"].meaning and missing_for("label_robust", ()) == ""
    plain = recipe(with_settings(BASE, NEEDS["distilled_plain"].changes), "distilled")
    assert fair_scores(rows, [plain])["recipe"].tolist() == [plain], "a comparison is scored where it is asked for"


def test_seeds_that_a_need_lacks_are_missing_not_zero(tmp_path):
    write(tmp_path / "base", *(row(number=n, top1=0.6) for n in range(2)), row("whole", top1=0.7))
    write(tmp_path / "again", row("whole", top1=0.8, artifact="on another machine"))
    known, _ = fair_accuracies(load_results(tmp_path), recipe(BASE, "distilled"))
    assert known["real_hard"].tolist() == pytest.approx([0.75, float("nan")], nan_ok=True)
    write(tmp_path / "base", row("whole", number=5, top1=0.7, artifact="a seed the distilled images lack"))
    assert fair_scores(load_results(tmp_path))["n"].tolist() == [2]


class Counted(pd.DataFrame):
    """A table that counts the rows read of it, column by column, and of the tables made from it."""

    n_read = 0

    @property
    def _constructor(self):
        return Counted

    def __getitem__(self, key):
        Counted.n_read += len(self)
        return super().__getitem__(key)


def test_twice_as_many_recipes_read_twice_as_many_rows(tmp_path):
    """A scan of all rows for each of a recipe's six accuracies took 8 s for four hundred recipes."""
    write(tmp_path, *(row(settings=settings_with(recover__steps=steps), artifact=str(steps)) for steps in range(1, 33)))
    rows, n_read = load_results(tmp_path), {}
    for n in (16, 32):
        counted, Counted.n_read = Counted(rows[:n]), 0
        assert len(fair_scores(counted)) == n
        n_read[n] = Counted.n_read
    assert n_read[16] > 0 and n_read[32] <= 2 * n_read[16]


def test_an_unknown_recipe(tmp_path):
    write(tmp_path, row())
    with pytest.raises(InputError, match="no row of distilled images has the recipe 'x'"):
        fair_accuracies(load_results(tmp_path), "x")


def test_changing_settings_leaves_the_given_ones_alone():
    before = settings_with()
    after = with_settings(before, {"relabel.views.flip": False, "recover.steps": 0, "new.deep.name": 1})
    assert before == BASE and after["relabel"]["views"]["flip"] is False and after["recover"]["steps"] == 0 and after["new"] == {"deep": {"name": 1}}
    assert after["relabel"]["views"]["mix"] == before["relabel"]["views"]["mix"]


def test_overrides_are_yaml():
    assert "relabel.views.flip=false" in overrides(NEEDS["distilled_plain"]).split()


def test_runs_made_before_a_setting_existed_are_still_recognised():
    """The shipped runs know nothing of changed colours: a run without augmentation is one still."""
    folder = Path(__file__).parents[2] / "analysis" / "data" / "quickstart_fair"
    (scored,) = fair_scores(load_results(folder)).to_dict("records")
    assert scored["missing"] == ()
    assert (round(scored["label_robust"], 2), round(scored["augmentation_robust"], 2)) == (0.25, 0.27), "as docs/analysis.md says"
