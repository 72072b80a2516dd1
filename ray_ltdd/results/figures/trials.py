"""What figures of a sweep have in common: a table of trials.

A row is a trial. Columns: `number` (int), `state` (`COMPLETE`, `PRUNED`, `FAIL`, ...), `value` (float, the objective; NaN where there is none) and
one column a searched parameter, under its dotted name; a parameter that does not exist in a trial is NaN or None there. Where null is itself a
choice (rounds without limit), give it a name, such as `no limit`, or figures take it for absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from ray_ltdd.errors import InputError

COMPLETE = "COMPLETE"


@dataclass(frozen=True)
class Objective:
    """What `value` is: its axis label, the factor that turns it into the label's unit, and whether large is good."""

    label: str = "validation top-1 (%)"
    factor: float = 100.0
    maximize: bool = True


TOP1 = Objective()


def finished(trials: pd.DataFrame, needed: Sequence[str] = ()) -> pd.DataFrame:
    """Return the trials that ended with a finite value.

    Raises:
        InputError: a column is missing, or no trial has ended.
    """
    missing = [name for name in ("number", "state", "value", *needed) if name not in trials.columns]
    if missing:
        raise InputError(f"the table of trials has no column {missing[0]!r}: it has {', '.join(map(str, trials.columns))}.")
    done = trials[(trials["state"] == COMPLETE) & np.isfinite(trials["value"].astype(float))]
    if done.empty:
        raise InputError(f"none of the {len(trials)} trials has ended with a value: there is nothing to draw yet.")
    return done


def is_number(column: pd.Series) -> bool:
    """Is the parameter a number (and not a choice among names, yes and no)?"""
    values = column.dropna()
    return is_numeric_dtype(values.infer_objects()) and not is_bool_dtype(values.infer_objects())


def is_logarithmic(column: pd.Series) -> bool:
    """Do its values lie more evenly on a logarithmic scale: above zero, over more than a factor of 10, the median nearer the middle there?"""
    values = column.dropna().astype(float).to_numpy()
    if not len(values) or values.min() <= 0 or values.max() <= 10 * values.min():
        return False
    return _off_centre(np.log(values)) < _off_centre(values)


def _off_centre(values: np.ndarray) -> float:
    return abs((float(np.median(values)) - values.min()) / (values.max() - values.min()) - 0.5)


def short_name(parameter: str) -> str:
    """The parameter without its section, such as `momentum.value` for `calibrate.momentum.value`."""
    return parameter.partition(".")[2] or parameter
