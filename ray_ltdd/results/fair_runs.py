"""The runs the fair scores need: which they are, where they are among result rows, and what they say of every distilled set.

A need is described by changes to the settings of the run to be scored, so a run serves a score if and only if its settings are those, seeds, names
and places aside; it may be part of any sweep or folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd

from ray_ltdd.errors import InputError
from ray_ltdd.results.fair import AUGMENTATION_ROBUST, LABEL_ROBUST, augmentation_robust_score, label_robust_score
from ray_ltdd.results.load import parsed_settings, recipe
from ray_ltdd.yaml_files import with_settings

HARD: Mapping[str, Any] = MappingProxyType({"evaluate.soft_weight": 0.0, "evaluate.hard_weight": 1.0})
"""Settings of students that see one-hot labels alone."""

PLAIN: Mapping[str, Any] = MappingProxyType(
    {f"relabel.views.{name}": value for name, value in {"min_scale": 1.0, "flip": False, "hue": 0.0, "saturation": 0.0, "mix": "none"}.items()}
    | {"relabel.mirror_average": False}
)
"""Settings of students without augmentation, in their labels neither. A crop of scale 1 may still change the aspect ratio, up to 4:3."""

RANDOM_IMAGES: Mapping[str, Any] = MappingProxyType(
    {
        "select_crops.method": "random",
        "select_crops.crops_per_image": 1,
        "select_crops.min_scale": 1.0,
        "select_crops.max_scale": 1.0,
        "select_crops.flip": False,
        "recover.steps": 0,
    }
)
"""Settings that put random real images in the distilled ones' place, under the same labels and recipe."""


@dataclass(frozen=True)
class Need:
    """An accuracy a score needs: that of students of `method`, under a run's own settings but for `changes` (dotted name -> value)."""

    method: str
    changes: Mapping[str, Any]
    meaning: str


NEEDS: Mapping[str, Need] = MappingProxyType(
    {
        "distilled": Need("distilled", {}, "distilled images under the run's own labels and views: every run has them"),
        "random": Need("distilled", RANDOM_IMAGES, "random real images with the teacher's labels"),
        "real_hard": Need("whole", {}, "the whole training set with one-hot labels (the baseline `whole`)"),
        "distilled_hard": Need("distilled", HARD, "distilled images with one-hot labels"),
        "distilled_plain": Need("distilled", PLAIN, "distilled images without augmentation"),
        "random_plain": Need("distilled", {**RANDOM_IMAGES, **PLAIN}, "random real images with the teacher's labels, without augmentation"),
    }
)
"""Every accuracy the two scores need. All but `distilled` and `real_hard` are one more run each, which reuses the experts (and, where the images
are the distilled ones, the images) from the store and trains its students alone."""

SCORES: Mapping[str, tuple[str, ...]] = MappingProxyType({"label_robust": LABEL_ROBUST, "augmentation_robust": AUGMENTATION_ROBUST})
"""Score, as `fair_scores` names it -> the needs it is computed from."""

COLUMNS = ["recipe", "benchmark", "imbalance_factor", "images_per_class", "network", "part", "top1", "n"]
COLUMNS += ["label_robust", "n_label_robust", "augmentation_robust", "n_augmentation_robust", "missing"]


def fair_scores(rows: pd.DataFrame, recipes: Sequence[str] | None = None, weight: float = 0.5) -> pd.DataFrame:
    """Score distilled images apart from what their labels and their augmentation add, as far as the runs for that are there.

    Args:
        rows: of `load_results`, with the runs that `NEEDS` asks for as far as they exist.
        recipes: of distilled images to be scored; None: all but those that are there as another's comparison.
        weight: of both scores; see `ray_ltdd.results.fair`.

    Returns:
        one row a recipe, in the order of first appearance: `recipe`, `benchmark`, `imbalance_factor`, `images_per_class`, `network`, `part`; `top1`
        (share, mean over `n` students); `label_robust` and `augmentation_robust` (means over the seeds all of a score's accuracies have, of which
        there are `n_label_robust` and `n_augmentation_robust`; NaN with none); `missing` (tuple of the keys of `NEEDS` of which no seed of this
        recipe has an accuracy).

    Raises:
        InputError: a recipe is not among the rows, or the weight is outside [0, 1].
    """
    distilled = rows[rows["method"] == "distilled"].drop_duplicates("recipe").set_index("recipe", drop=False)
    asked = list(distilled.index if recipes is None else dict.fromkeys(recipes))
    for key in asked:
        _require(distilled, key)
    wanted = {key: _wanted(settings) for key, settings in zip(asked, parsed_settings(distilled.loc[asked]), strict=True)}
    comparisons = _comparisons(wanted) if recipes is None else frozenset()
    accuracies = _accuracies(rows, "top1")
    table = []
    for key, place in zip(asked, distilled.loc[asked].to_dict("records"), strict=True):
        if key in comparisons:
            continue
        known = _of_needs(accuracies, wanted[key])
        has = known[known["distilled"].notna()].notna().any()
        of_score = {"label_robust": _label_robust(known, weight), "augmentation_robust": _augmentation_robust(known, weight)}
        table.append(
            {name: place[name] for name in COLUMNS[:6]}
            | {"top1": known["distilled"].mean(), "n": int(known["distilled"].count())}
            | {name: score.mean() for name, score in of_score.items()}
            | {f"n_{name}": int(score.count()) for name, score in of_score.items()}
            | {"missing": tuple(name for name in NEEDS if not has[name])}
        )
    return pd.DataFrame(table, columns=COLUMNS)


def fair_accuracies(rows: pd.DataFrame, recipe_key: str, metric: str = "top1") -> tuple[pd.DataFrame, dict[str, str]]:
    """Find the accuracies both scores need among result rows, seed by seed.

    Args:
        rows: of `load_results`, with the runs that `NEEDS` asks for as far as they exist.
        recipe_key: the recipe of distilled images to be scored, from the column `recipe`.
        metric: the accuracy.

    Returns:
        a table indexed by (`seed`, `number`) with one column for each entry of `NEEDS`, NaN where there is no row; and for each entry without any,
        the overrides of `ray-ltdd run` that would make its rows.

    Raises:
        InputError: no row of distilled images has this recipe.
    """
    distilled = rows[rows["method"] == "distilled"].drop_duplicates("recipe").set_index("recipe")
    _require(distilled, recipe_key)
    (settings,) = parsed_settings(distilled.loc[[recipe_key]])
    wanted, accuracies = _wanted(settings), _accuracies(rows, metric)
    missing = {name: overrides(need) for name, need in NEEDS.items() if (need.method, wanted[name]) not in accuracies}
    return _of_needs(accuracies, wanted), missing


def _wanted(settings: Mapping[str, Any]) -> dict[str, str]:
    """The recipe of the rows that have each accuracy a run with these settings needs."""
    return {name: recipe(with_settings(settings, need.changes), need.method) for name, need in NEEDS.items()}


def _accuracies(rows: pd.DataFrame, metric: str) -> dict[tuple[str, str], dict[tuple[int, int], float]]:
    """(method, recipe) -> (seed, number) -> accuracy."""
    # the same seed may have been computed twice, on another machine or after an update
    once = rows.drop_duplicates(["method", "recipe", "artifact"])
    means = once.groupby(["method", "recipe", "seed", "number"], sort=False)[metric].mean().reset_index()
    found: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for row in means.to_dict("records"):
        found.setdefault((row["method"], row["recipe"]), {})[row["seed"], row["number"]] = row[metric]
    return found


def _of_needs(accuracies: Mapping[tuple[str, str], Mapping[tuple[int, int], float]], wanted: Mapping[str, str]) -> pd.DataFrame:
    """One column for each entry of `NEEDS`, indexed by (seed, number), NaN where there is no row."""
    columns = {name: accuracies.get((need.method, wanted[name]), {}) for name, need in NEEDS.items()}
    places = sorted(set().union(*columns.values()))
    index = pd.MultiIndex.from_tuples(places, names=["seed", "number"])
    return pd.DataFrame({name: [column.get(place, float("nan")) for place in places] for name, column in columns.items()}, index=index)


def _require(distilled: pd.DataFrame, key: str) -> None:
    if key not in distilled.index:
        raise InputError(f"no row of distilled images has the recipe {key!r}: take one from the column `recipe`.")


def missing_for(score: str, missing: Sequence[str]) -> str:
    """Return what a score lacks as the end of a sentence; empty where it lacks nothing.

    Args:
        score: key of `SCORES`.
        missing: keys of `NEEDS`, as in the column `missing` of `fair_scores`.
    """
    return "; ".join(NEEDS[name].meaning for name in SCORES[score] if name in missing)


def overrides(need: Need) -> str:
    """Return a need's changes as `ray-ltdd run` takes them: `name=value` separated by blanks; no baseline that is not needed."""
    if need.method == "whole":
        return "evaluate.baselines=[whole]"
    values = {name: str(value).lower() if isinstance(value, bool) else value for name, value in need.changes.items()}
    return " ".join(["evaluate.baselines=[]", *(f"{name}={value}" for name, value in values.items())])


def _comparisons(wanted: Mapping[str, Mapping[str, str]]) -> frozenset[str]:
    """Recipes that are what another recipe is compared with: random images, or students without soft labels or augmentation."""
    distilled = [name for name, need in NEEDS.items() if need.method == "distilled"]
    return frozenset(others[name] for key, others in wanted.items() for name in distilled if others[name] != key)


def _label_robust(known: pd.DataFrame, weight: float) -> pd.Series:
    found = label_robust_score(known["real_hard"], known["distilled_hard"], known["distilled"], known["random"], weight)
    return pd.Series(found.score, index=known.index)


def _augmentation_robust(known: pd.DataFrame, weight: float) -> pd.Series:
    found = augmentation_robust_score(known["distilled"], known["random"], known["distilled_plain"], known["random_plain"], weight)
    return pd.Series(found.score, index=known.index)
