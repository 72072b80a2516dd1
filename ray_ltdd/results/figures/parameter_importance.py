"""Which parameters of a sweep mattered, by PED-ANOVA (Watanabe et al. 2023), the evaluator named so that another Optuna version cannot change it."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure
from pandas.api.types import is_integer_dtype

from ray_ltdd.errors import InputError
from ray_ltdd.results.figures.style import COLOURS, new_figure, styled
from ray_ltdd.results.figures.trials import TOP1, Objective, finished, is_logarithmic, is_number

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_FEWEST = 8


def importances(trials: pd.DataFrame, parameters: Sequence[str], maximize: bool = True) -> pd.Series:
    """Return each parameter's share of the importance among those that exist in every finished trial, largest first; they sum to 1.

    PED-ANOVA asks how much the values of the best tenth of the trials differ from those of all.

    Args:
        trials: see `ray_ltdd.results.figures.trials`.
        parameters: columns to rate; those that are missing in a trial (conditional ones) or constant are left out.
        maximize: is large good?

    Raises:
        InputError: Optuna is not installed, fewer than 8 trials have ended, or no parameter can be rated.
    """
    try:
        with warnings.catch_warnings():
            # tqdm, which it brings, complains in notebooks without ipywidgets
            warnings.simplefilter("ignore")
            import optuna
    except ImportError as error:
        raise InputError("parameter importance needs Optuna: install it with `pip install optuna`.") from error
    done = finished(trials, parameters)
    if len(done) < _FEWEST:
        raise InputError(f"{len(done)} finished trials say nothing about importance: at least {_FEWEST} are needed.")
    rated = [name for name in parameters if done[name].notna().all() and done[name].nunique() > 1]
    if not rated:
        raise InputError(f"none of the parameters {', '.join(parameters)} exists in every trial and varies: there is nothing to rate.")
    study = _study(done, rated, maximize)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(evaluate_on_local=False)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=rated)
    return pd.Series(found, dtype=float).sort_values(ascending=False)


@styled
def parameter_importance(
    trials: pd.DataFrame, parameters: Sequence[str], objective: Objective = TOP1, title: str = "Importance of the parameters (PED-ANOVA)"
) -> Figure:
    """Draw the importances as bars, largest first, with the parameters that could not be rated named below; see `importances`."""
    found = importances(trials, parameters, objective.maximize)
    figure = new_figure(1.2 + 0.3 * len(found), 6.0)
    axes = figure.subplots()
    axes.barh(range(len(found)), 100 * found.to_numpy(), color=COLOURS[0], height=0.65)
    for place, share in enumerate(found):
        axes.annotate(f"{share:.0%}", (100 * share, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(found)), [str(name) for name in found.index])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    left_out = [name for name in parameters if name not in found.index]
    note = f"\nnot rated, since they do not exist in every trial or do not vary: {', '.join(left_out)}" if left_out else ""
    axes.set_xlabel(f"share of the importance (%) for: {objective.label}; {len(finished(trials))} trials{note}", wrap=True)
    axes.set_title(title)
    return figure


def _study(done: pd.DataFrame, rated: Sequence[str], maximize: bool) -> "Study":
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize" if maximize else "minimize")
    finally:
        optuna.logging.set_verbosity(verbosity)
    space = {name: _distribution(done[name]) for name in rated}
    values = {name: done[name].tolist() if is_number(done[name]) else [str(value) for value in done[name]] for name in rated}
    for i, value in enumerate(done["value"].astype(float)):
        study.add_trial(optuna.create_trial(params={name: values[name][i] for name in rated}, distributions=space, value=value))
    return study


def _distribution(column: pd.Series) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not is_number(column):
        return CategoricalDistribution(sorted({str(value) for value in column}))
    low, high = column.min(), column.max()
    if is_integer_dtype(column.infer_objects()):
        return IntDistribution(int(low), int(high), log=is_logarithmic(column))
    return FloatDistribution(float(low), float(high), log=is_logarithmic(column))
