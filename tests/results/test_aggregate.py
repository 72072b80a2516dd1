"""Means, intervals and paired tests against definitions written out, and the join with published numbers."""

import itertools
import math
import statistics

import numpy as np
import pandas as pd
import pytest
from scipy import integrate
from synthetic_rows import row, settings_with, write

from ray_ltdd import InputError
from ray_ltdd.results.aggregate import PAIR, aggregate, beside_published, half_width, holm, mean_over_students, paired_test, paired_tests
from ray_ltdd.results.load import load_results

TOP1 = [0.61, 0.58, 0.63, 0.60, 0.62]


def t_distribution(x, degrees):
    """Its distribution function, by integrating the density."""
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    return 0.5 + integrate.quad(lambda u: scale * (1 + u * u / degrees) ** (-(degrees + 1) / 2), 0, x)[0]


def signed_rank_p(gaps):
    """Wilcoxon's exact two-sided p by going through all signs; no zeros, no ties."""
    ranks = np.argsort(np.argsort(np.abs(gaps))) + 1
    observed = abs(sum(ranks * np.sign(gaps)))
    sums = [abs(sum(r * s for r, s in zip(ranks, signs, strict=True))) for signs in itertools.product((-1, 1), repeat=len(gaps))]
    return sum(s >= observed for s in sums) / len(sums)


@pytest.fixture
def rows(tmp_path):
    write(tmp_path, *(row(number=n, top1=t) for n, t in enumerate(TOP1)), row("random", top1=0.35), row("observer", top1=0.7))
    return load_results(tmp_path)


def test_students_of_one_distilled_set_are_one_observation(tmp_path):
    values = {0: (0.6, 0.7), 1: (0.5, 0.54)}
    write(tmp_path, *(row(settings=settings_with(seed=seed), number=n, top1=top1) for seed, pair in values.items() for n, top1 in enumerate(pair)))
    means = mean_over_students(load_results(tmp_path))
    assert sorted(zip(means["seed"], means["top1"].round(6), strict=True)) == [(0, 0.65), (1, 0.52)] and set(PAIR) <= set(means.columns)


def test_mean_deviation_and_count(rows):
    distilled, random, _ = aggregate(rows).to_dict("records")
    assert distilled["mean"] == pytest.approx(statistics.fmean(TOP1)) and distilled["deviation"] == pytest.approx(statistics.stdev(TOP1))
    assert (distilled["n"], distilled["n_experiments"], distilled["method"]) == (5, 1, "distilled")
    assert random["n"] == 1 and math.isnan(random["deviation"]) and math.isnan(random["low"])


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_the_interval_is_students(rows, confidence):
    first = aggregate(rows, confidence=confidence).iloc[0]
    t = (first["high"] - first["mean"]) / (statistics.stdev(TOP1) / math.sqrt(5))
    assert t_distribution(t, 4) - t_distribution(-t, 4) == pytest.approx(confidence, abs=1e-9)
    assert first["mean"] - first["low"] == pytest.approx(first["high"] - first["mean"])


def test_the_interval_covers_the_mean_as_often_as_it_says():
    values = np.random.default_rng(0).normal(size=(20_000, 4))
    half = half_width(values.std(1, ddof=1), np.full(len(values), 4.0), 0.9)
    assert (abs(values.mean(1)) < half).mean() == pytest.approx(0.9, abs=0.01)


def test_a_metric_that_is_missing_is_not_zero(rows):
    medium = aggregate(rows, "medium")
    assert medium["n"].tolist() == [0, 0, 0] and medium["mean"].isna().all() and medium["n_experiments"].tolist() == [0, 0, 0]


def test_one_result_of_several_runs_counts_once(tmp_path):
    for steps in (1, 2, 3):
        settings = settings_with(recover__steps=steps)
        write(tmp_path / str(steps), row("random", artifact="shared", settings=settings), row(settings=settings))
    table = aggregate(load_results(tmp_path)).set_index("method")
    assert table.loc["random", "n"] == 1
    assert table.loc["distilled", "n"].tolist() == [1, 1, 1]


def test_experiment_seeds_are_counted_apart_from_students(tmp_path):
    for seed in (0, 1, 2):
        write(tmp_path / str(seed), *(row(number=n, settings=settings_with(seed=seed)) for n in range(4)))
    (only,) = aggregate(load_results(tmp_path)).to_dict("records")
    assert (only["n"], only["n_experiments"]) == (12, 3)


def test_groups_of_the_callers_choice(rows):
    assert aggregate(rows, by=["benchmark"])["n"].tolist() == [7]
    with pytest.raises(InputError, match="no column 'colour'"):
        aggregate(rows, by=["colour"])
    with pytest.raises(InputError, match="confidence=95"):
        aggregate(rows, confidence=95)


def test_published_numbers_beside_ours(rows):
    joined = beside_published(aggregate(rows), rows).set_index("method")
    assert joined.loc["distilled", ["published", "published_percent", "published_deviation"]].tolist() == ["RLDD", 62.7, 0.1]
    assert joined.loc["distilled", "difference"] == pytest.approx(100 * statistics.fmean(TOP1) - 62.7)
    assert joined.loc["random", ["published", "published_percent"]].tolist() == ["Random", 34.4]
    assert joined.loc["observer", "published"] is None and math.isnan(joined.loc["observer", "difference"]) and joined.loc["observer", "marks"] == ()


def test_cells_the_paper_has_not_stay_empty(tmp_path):
    write(tmp_path / "a", row(settings=settings_with(split__imbalance_factor=20)))
    write(tmp_path / "b", row(network="ConvNet-3 (batch norm)", number=1))
    rows = load_results(tmp_path)
    joined = beside_published(aggregate(rows), rows)
    assert joined["published"].tolist() == [None, None] and joined["difference"].isna().all()


def both(tmp_path, first, second, **change):
    write(tmp_path / "a", *(row(number=n, top1=t) for n, t in enumerate(first)))
    write(tmp_path / "b", *(row(number=n, top1=t, settings=settings_with(recover__steps=9, **change)) for n, t in enumerate(second)))
    return load_results(tmp_path / "a"), load_results(tmp_path / "b")


def test_a_paired_test_is_that_of_the_differences(tmp_path):
    gaps = np.array([0.03, 0.012, 0.02, -0.004, 0.041, 0.015])
    second = np.array([0.5, 0.6, 0.4, 0.55, 0.45, 0.52])
    test = paired_test(*both(tmp_path, second + gaps, second))
    t = gaps.mean() / (gaps.std(ddof=1) / math.sqrt(6))
    assert test.n == 6 and test.n_unpaired == 0
    assert test.mean == pytest.approx(gaps.mean()) and test.deviation == pytest.approx(gaps.std(ddof=1))
    assert test.p == pytest.approx(2 * (1 - t_distribution(t, 5)), rel=1e-6)
    assert test.p_signed_rank == pytest.approx(signed_rank_p(gaps))
    assert test.low < test.mean < test.high and test.mean - test.low == pytest.approx(test.high - test.mean)


def test_pairs_are_made_by_seed_not_by_order(tmp_path):
    first, second = both(tmp_path, [0.1, 0.2, 0.3], [0.11, 0.22, 0.33])
    assert paired_test(first.iloc[::-1], second).mean == pytest.approx(-0.02)
    third = paired_test(first, second.iloc[1:])
    assert (third.n, third.n_unpaired) == (2, 1) and third.mean == pytest.approx(-0.025)


def test_equal_differences_have_no_t_test(tmp_path):
    test = paired_test(*both(tmp_path, [0.3, 0.4, 0.5, 0.6], [0.2, 0.3, 0.4, 0.5]))
    assert math.isnan(test.p) and test.p_signed_rank == pytest.approx(2 / 2**4)
    first, _ = both(tmp_path / "same", [0.3, 0.4], [0.3, 0.4])
    assert paired_test(first, first).p == 1.0


def test_pairs_that_cannot_be_made(tmp_path):
    first, second = both(tmp_path, [0.1, 0.2], [0.3, 0.4], seed=1)
    with pytest.raises(InputError, match="at least two pairs"):
        paired_test(first, second)
    with pytest.raises(InputError, match=r"several rows with benchmark=cifar10_lt.*seed=0, number=0"):
        paired_test(pd.concat([first, first.assign(artifact="other")]), first)
    assert "seed" in PAIR


def test_recipes_against_one(tmp_path):
    for steps, shift in ((75, 0.0), (10, -0.05), (20, 0.001)):
        noise = np.random.default_rng(steps).normal(0, 0.01, 5)
        write(tmp_path / str(steps), *(row(number=n, top1=0.6 + shift + noise[n], settings=settings_with(recover__steps=steps)) for n in range(5)))
    write(tmp_path / "alone", row(number=9, settings=settings_with(recover__steps=30)))
    rows = load_results(tmp_path)
    reference = rows[rows["folder"].str.endswith("/75")]["recipe"].iloc[0]
    table = paired_tests(rows, reference)
    assert len(table) == 2 and (table["n"] == 5).all()
    assert sorted(table["p_holm"]) == pytest.approx(sorted([min(1, 2 * table["p"].min()), max(table["p"].max(), 2 * table["p"].min())]))
    with pytest.raises(InputError, match="no row of distilled images has the recipe 'none'"):
        paired_tests(rows, "none")


def test_holm_by_hand():
    assert holm(np.array([0.04, 0.01, np.nan, 0.03])).tolist() == pytest.approx([0.06, 0.03, np.nan, 0.06], nan_ok=True)
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert len(holm(np.array([]))) == 0
