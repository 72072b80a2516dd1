"""Mean, deviation and confidence interval over seeds, paired tests, and the published numbers beside ours.

What varies between the rows of one group are seeds: the student's (`number`) and the experiment's (`seed`). Students of one distilled set tell how
well *that set* teaches; only several experiment seeds tell how well the method distils. Every aggregate therefore states both counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats  # type: ignore[import-untyped]

from ray_ltdd.errors import InputError
from ray_ltdd.results.protocol import PAPER_STUDENTS, differences, variants
from ray_ltdd.results.published import CELL, METHOD, RANDOM, published, published_of

GROUP = ["benchmark", "split", "split_fingerprint", "imbalance_factor", "images_per_class", "method", "network", "labels", "part", "recipe"]
"""Columns that are equal within a group unless the caller groups otherwise: everything but seeds."""

PAIR = ["benchmark", "split_fingerprint", "images_per_class", "network", "part", "seed", "number"]
"""Columns two rows agree in that make a pair: the same split, the same test images, the same seeds."""


def aggregate(frame: pd.DataFrame, metric: str = "top1", by: Sequence[str] = GROUP, confidence: float = 0.95) -> pd.DataFrame:
    """Aggregate rows over seeds.

    A result that several runs report (the baseline they share, the expert) counts once in a group.

    Args:
        frame: of `load_results`.
        metric: name of a numeric column.
        by: columns that make the groups.
        confidence: of the interval, in (0, 1).

    Returns:
        one row a group, in the order of first appearance: the columns `by`; `mean`, `deviation` (sample deviation; NaN with one value), `low` and
        `high` (Student's t interval of the mean; NaN with one value), all in the metric's unit; `n` (int, values) and `n_experiments` (int,
        distinct experiment seeds among them). A group in which the metric is missing throughout has n = 0 and NaN.

    Raises:
        InputError: a column is missing, or `confidence` is no share.
    """
    _require(frame, [metric, "artifact", "seed", *by])
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must lie between 0 and 1, such as 0.95.")
    once = frame.drop_duplicates([*by, "artifact"])
    groups = once.groupby(list(by), sort=False, dropna=False)
    table = groups[metric].agg(mean="mean", deviation="std", n="count")
    seeds = once[once[metric].notna()].groupby(list(by), sort=False, dropna=False)["seed"].nunique()
    table["n_experiments"] = seeds.reindex(table.index).fillna(0).astype(int)
    half = half_width(table["deviation"].to_numpy(float), table["n"].to_numpy(float), confidence)
    return table.assign(low=table["mean"] - half, high=table["mean"] + half).reset_index()


def half_width(deviation: np.ndarray, n: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Return half the width of Student's t interval of a mean; NaN where n < 2.

    Args:
        deviation: sample deviations.
        n: numbers of values, of the same shape.
        confidence: of the interval, in (0, 1).
    """
    several = np.where(n > 1, n, np.nan)
    return np.asarray(stats.t.ppf((1 + confidence) / 2, several - 1) * deviation / np.sqrt(several))


def beside_published(aggregated: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Join aggregates of top-1 with the published number for the same benchmark, IF, IPC and network.

    Args:
        aggregated: of `aggregate(rows)`, grouped by `GROUP`.
        rows: of `load_results`, which tell how the protocol differs.

    Returns:
        `aggregated` with columns `published` (method compared with: RLDD for distilled images, its variant in Table 8 for settings that leave a
        part out, see `variant`, Random for random real images; None where the paper has no number), `published_percent`, `published_deviation`,
        `difference` (ours minus theirs, in points; NaN where theirs does not exist) and `marks` (tuple of sentences on how our protocol differs
        from theirs; empty for experts and for benchmarks that are not the paper's).

    Raises:
        InputError: `aggregated` lacks a column.
    """
    _require(aggregated, [*CELL, "method", "recipe", "mean", "n"])
    left_out = variants(rows)
    names = [_counterpart(method, left_out.get(key, "")) for method, key in zip(aggregated["method"], aggregated["recipe"], strict=True)]
    numbers = [published_of(name).assign(published=name) for name in published()["method"].unique()]
    numbers_of = pd.concat(numbers).rename(columns={"percent": "published_percent", "percent_deviation": "published_deviation"})
    joined = aggregated.assign(published=pd.Series(names, index=aggregated.index, dtype=object)).merge(
        numbers_of, how="left", on=[*CELL, "published"]
    )
    joined["published"] = joined["published"].astype(object).where(joined["published_percent"].notna(), None)
    joined["difference"] = 100 * joined["mean"] - joined["published_percent"]
    known = differences(rows)
    marks = [(*_seeds_mark(int(n)), *known[key]) if key in known else () for n, key in zip(joined["n"], joined["recipe"], strict=True)]
    return joined.assign(marks=pd.Series(marks, index=joined.index, dtype=object))


def _counterpart(method: str, left_out: str) -> str | None:
    return f"{METHOD} {left_out}".strip() if method == "distilled" else RANDOM if method == "random" else None


def _seeds_mark(n: int) -> tuple[str, ...]:
    return () if n == PAPER_STUDENTS else (f"{n} student{'' if n == 1 else 's'} (paper: {PAPER_STUDENTS})",)


@dataclass(frozen=True)
class PairedTest:
    """Is one set of results better than another, seed by seed?

    Attributes:
        n: pairs.
        n_unpaired: rows on either side without a partner, which are not used.
        mean: mean of first minus second, in the metric's unit.
        deviation: sample deviation of the differences.
        low, high: Student's t interval of the mean difference.
        p: two-sided, of the paired t test; NaN where all differences are equal and not zero.
        p_signed_rank: two-sided, of Wilcoxon's signed-rank test, which assumes no normal distribution but cannot be below 2 / 2^n.
    """

    n: int
    n_unpaired: int
    mean: float
    deviation: float
    low: float
    high: float
    p: float
    p_signed_rank: float


def mean_over_students(frame: pd.DataFrame, metric: str = "top1") -> pd.DataFrame:
    """Return one row a distilled set, `metric` averaged over the students trained on it: they are no independent distillations.

    Args:
        frame: rows of `load_results`.
        metric: name of a numeric column.
    """
    _require(frame, [metric, "artifact", *PAIR])
    keys = [name for name in PAIR if name != "number"]
    own = frame.drop_duplicates([*PAIR, "artifact"])
    return own.groupby(keys, sort=False, dropna=False).agg({metric: "mean", "artifact": "first"}).reset_index().assign(number=0)


def compared_over_seeds(first: pd.DataFrame, second: pd.DataFrame) -> PairedTest | None:
    """Compare two recipes by their distilled sets, seed by seed, the students of each averaged; None where there are fewer than two pairs."""
    try:
        return paired_test(mean_over_students(first), mean_over_students(second))
    except InputError:
        return None


def paired_test(first: pd.DataFrame, second: pd.DataFrame, metric: str = "top1", on: Sequence[str] = PAIR, confidence: float = 0.95) -> PairedTest:
    """Compare two sets of rows pair by pair.

    Args:
        first: rows of `load_results`, of one method or recipe.
        second: likewise, of what it is compared with.
        metric: name of a numeric column.
        on: columns in which the two rows of a pair agree.
        confidence: of the interval.

    Raises:
        InputError: a column is missing, two rows of one side would be the same half of a pair, or there are fewer than two pairs.
    """
    sides = [_one_a_pair(frame, metric, on) for frame in (first, second)]
    pairs = sides[0].merge(sides[1], on=list(on), suffixes=("_first", "_second"))
    if len(pairs) < 2:
        raise InputError(
            f"a paired test needs at least two pairs of rows that agree in {', '.join(on)}; there {'is 1' if len(pairs) else 'are none'}: "
            "run both with the same seeds."
        )
    # rounding alone would make equal differences look as if they varied
    gap = (pairs[f"{metric}_first"] - pairs[f"{metric}_second"]).to_numpy(float).round(12)
    mean, deviation = float(gap.mean()), float(gap.std(ddof=1))
    half = float(half_width(np.array(deviation), np.array(float(len(gap))), confidence))
    n_unpaired = len(sides[0]) + len(sides[1]) - 2 * len(pairs)
    return PairedTest(len(gap), n_unpaired, mean, deviation, mean - half, mean + half, *_p_values(gap))


def paired_tests(frame: pd.DataFrame, reference: str, metric: str = "top1", confidence: float = 0.95) -> pd.DataFrame:
    """Compare every other recipe of distilled images with one.

    Args:
        frame: rows of `load_results`.
        reference: the recipe compared with.
        metric: name of a numeric column.
        confidence: of the intervals.

    Returns:
        one row a recipe that has at least two pairs: `recipe`, the attributes of `PairedTest` (differences are recipe minus reference), and
        `p_holm`, the t test's p corrected for the number of comparisons (Holm).

    Raises:
        InputError: no row has the reference's recipe.
    """
    distilled = frame[frame["method"] == "distilled"]
    base = distilled[distilled["recipe"] == reference]
    if base.empty:
        raise InputError(f"no row of distilled images has the recipe {reference!r}: take one from the column `recipe`.")
    tests = []
    for name, rows in distilled[distilled["recipe"] != reference].groupby("recipe", sort=False):
        if len(rows[PAIR].merge(base[PAIR], on=PAIR)) > 1:
            tests.append({"recipe": name, **vars(paired_test(rows, base, metric, confidence=confidence))})
    table = pd.DataFrame(tests, columns=["recipe", *PairedTest.__dataclass_fields__])
    return table.assign(p_holm=holm(table["p"].to_numpy(float)))


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number by Holm's step-down rule, float64 of the same length; NaN stays NaN and does not count."""
    order = np.argsort(p)[: int(np.isfinite(p).sum())]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def _one_a_pair(frame: pd.DataFrame, metric: str, on: Sequence[str]) -> pd.DataFrame:
    _require(frame, [metric, "artifact", *on])
    side = frame.drop_duplicates([*on, "artifact"]).dropna(subset=[metric])
    twice = side[side.duplicated(list(on))]
    if len(twice):
        place = ", ".join(f"{name}={twice.iloc[0][name]}" for name in on)
        raise InputError(f"there are several rows with {place}: keep one recipe on each side of a paired test.")
    return side[[*on, metric]]


def _p_values(gap: np.ndarray) -> tuple[float, float]:
    if not gap.any():
        return 1.0, 1.0
    t_test = float(stats.ttest_1samp(gap, 0).pvalue) if np.ptp(gap) else float("nan")
    return t_test, float(stats.wilcoxon(gap).pvalue)


def _require(frame: pd.DataFrame, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise InputError(f"the table has no column {missing[0]!r}: it has {', '.join(map(str, frame.columns))}.")
