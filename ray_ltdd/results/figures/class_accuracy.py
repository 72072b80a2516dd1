"""Class-wise accuracy over class frequency, with the number of training images of each class (the paper's Figure 3).

Legend: K classes, R rows.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_ltdd.errors import InputError
from ray_ltdd.results.figures.style import GREY, colour, legend_below, marker, new_figure, styled
from ray_ltdd.results.summary import TITLES

NAMED_CLASSES = 30
_SMOOTHED_SHARE = 0.1


@styled
def class_accuracy(rows: pd.DataFrame, class_names: Sequence[str] | None = None, labels: Mapping[str, str] | None = None) -> Figure:
    """Draw each class's accuracy, largest class first, above the classes' training images.

    With at most 30 classes every accuracy is a marker on a line; with more, a dot, and the line is the mean over a tenth of the classes around it.
    Over several seeds the mean is drawn, and a band of one deviation.

    Args:
        rows: of `load_results`, of one split and one part; one curve a method or, where `labels` names its recipe, a label; of several networks,
            one each.
        class_names: K names in class order; None: numbers.
        labels: recipe -> name of its curve.

    Raises:
        InputError: there are no rows, or rows of several splits or parts.
    """
    rows = rows[rows["per_class"].notna()]
    # one expert may have both roles: its accuracy is one curve
    roles = rows[rows["method"].isin(["observer", "teacher"])].groupby("artifact")["method"].nunique()
    in_two_roles = set(roles[roles > 1].index)
    rows = rows.drop_duplicates("artifact")
    _require_one_split(rows)
    count_K = np.asarray(rows.iloc[0]["count_per_class"], int)
    order_K = np.argsort(-count_K, kind="stable")
    rows = rows.assign(curve=[_curve(row, labels or {}, in_two_roles) for row in rows.to_dict("records")])
    several = rows.groupby("curve")["network"].transform("nunique") > 1
    rows["curve"] = rows["curve"].where(~several, rows["curve"] + ", " + rows["network"])
    figure = new_figure(4.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
    for index, (name, group) in enumerate(rows.groupby("curve", sort=False)):
        share_RK = np.stack([np.array([np.nan if v is None else v for v in row], float) for row in group["per_class"]])[:, order_K]
        _draw_curve(upper, 100 * share_RK, f"{name}: {100 * group['top1'].mean():.1f} %", index)
    _draw_counts(lower, count_K[order_K])
    _name_classes(lower, [str(k) if class_names is None else class_names[k] for k in order_K])
    upper.set_ylabel(f"{rows.iloc[0]['part']} accuracy of the class (%)")
    upper.set_ylim(-3, 103)
    figure.suptitle(f"{rows.iloc[0]['split']}, {_sizes(rows)}; mean top-1 in the legend")
    legend_below(figure, upper)
    return figure


def _curve(row: Mapping[Hashable, Any], labels: Mapping[str, str], in_two_roles: set[Hashable]) -> str:
    if row["artifact"] in in_two_roles:
        return "the expert itself (observer and teacher)"
    return labels.get(row["recipe"]) or TITLES.get(row["method"], row["method"])


def _sizes(rows: pd.DataFrame) -> str:
    distilled = rows[rows["method"].isin(["distilled", "random"])]
    sizes = sorted(set(distilled["images_per_class"]))
    return f"{', '.join(map(str, sizes))} image{'' if sizes == [1] else 's'} per class" if sizes else "experts"


def _draw_curve(axes: Axes, percent_RK: np.ndarray, name: str, index: int) -> None:
    x_K = np.arange(percent_RK.shape[1])
    mean_K = percent_RK.mean(0)
    style: dict[str, Any] = {"color": colour(index)}
    if len(x_K) <= NAMED_CLASSES:
        axes.plot(x_K, mean_K, marker=marker(index), label=name, **style)
        line_K = mean_K
    else:
        axes.plot(x_K, mean_K, linestyle="none", marker=".", markersize=3, alpha=0.45, **style)
        line_K = pd.Series(mean_K).rolling(max(3, round(_SMOOTHED_SHARE * len(x_K))), center=True, min_periods=1).mean().to_numpy()
        axes.plot(x_K, line_K, label=name, **style)
    if len(percent_RK) > 1 and len(x_K) <= NAMED_CLASSES:
        deviation_K = percent_RK.std(0, ddof=1)
        axes.fill_between(x_K, mean_K - deviation_K, mean_K + deviation_K, alpha=0.18, linewidth=0, **style)


def _draw_counts(axes: Axes, count_K: np.ndarray) -> None:
    few = len(count_K) <= NAMED_CLASSES
    axes.bar(np.arange(len(count_K)), count_K, width=0.8 if few else 1.0, color=GREY)
    if count_K.max() > 20 * count_K.min():
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(0.5, count_K.min() / 3), top=count_K.max() * 4)
    else:
        axes.margins(y=0.25)
    axes.set_ylabel("training\nimages")
    for x in range(len(count_K)) if few else (0, len(count_K) - 1):
        axes.annotate(f"{count_K[x]:,}", (x, count_K[x]), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7)


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    axes.margins(x=0.02)
    if len(names) > NAMED_CLASSES:
        axes.set_xlabel(f"class, largest first ({len(names)} classes)")
        return
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) * len(names) > 80 else {}
    # class names are the user's: two dollars would begin a formula
    axes.set_xticks(range(len(names)), list(names), parse_math=False, **slanted)
    axes.set_xlabel("class, largest first")


def _require_one_split(rows: pd.DataFrame) -> None:
    if rows.empty:
        raise InputError("there is nothing to draw: no row has accuracies of single classes.")
    for column, what in (("split_fingerprint", "splits"), ("part", "tested parts")):
        if rows[column].nunique() > 1:
            found = sorted(rows["split" if column == "split_fingerprint" else column].unique())
            raise InputError(f"the rows are of {rows[column].nunique()} {what} ({', '.join(found)}): keep those of one.")
