"""How far two sets of statistics are apart, layer by layer: before and after calibration, before and after recovery.

Statistics are named tensors, `LAYER/mean` and `LAYER/var`, [K, F] of classes or [F] of a whole set, as `calibrate.class_moments` stores them.

Legend: K classes, F channels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ray_ltdd.errors import InputError
from ray_ltdd.results.figures.style import colour, legend_below, marker, new_figure, require_values, styled
from ray_ltdd.statistics.targets import ClassTensors, ClassWeights, VarianceReading, class_weights, mixture_moments


def layer_gaps(statistics: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], layers: Sequence[str]) -> pd.DataFrame:
    """Measure how far statistics are from a reference.

    Args:
        statistics: `LAYER/mean` and `LAYER/var`, [K, F] or [F].
        reference: likewise, of the same shapes.
        layers: names in forward order.

    Returns:
        one row a layer: `layer`; `mean_gap` = |mean - mean_ref| / |std_ref|, `var_gap` = |var - var_ref| / |var_ref| (Euclidean norms over
        channels, then the mean over classes; no unit). A class or set whose reference is zero throughout is left out of the mean.

    Raises:
        InputError: a layer is missing on one side, or its shapes differ.
    """
    rows = []
    for layer in layers:
        mean, var, mean_ref, var_ref = (_tensor(side, f"{layer}/{name}") for side in (statistics, reference) for name in ("mean", "var"))
        if mean.shape != mean_ref.shape:
            raise InputError(f"layer {layer} has statistics of shape {list(mean.shape)} and a reference of shape {list(mean_ref.shape)}.")
        rows.append({"layer": layer, "mean_gap": _relative(mean - mean_ref, var_ref.sqrt()), "var_gap": _relative(var - var_ref, var_ref)})
    return pd.DataFrame(rows, columns=["layer", "mean_gap", "var_gap"])


def whole_set(moments: ClassTensors, kind: ClassWeights, variance: VarianceReading = "mixture", beta: float = 0.999) -> ClassTensors:
    """Mix all classes' moments into those of a whole set, float64 [F] a layer.

    `sample` weighs classes by their images, which is what a running mean over the long-tailed set sees (before calibration); `uniform` is Eq. 9.

    Args:
        moments: `LAYER/mean`, `LAYER/var` [K, F] and `count` [K] of all classes, in class order.
        kind: the classes' weights.
        variance: reading of the variance.
        beta: of `effective_number`.
    """
    classes = list(range(len(moments["count"])))
    own = {name: value for name, value in moments.items() if name != "count"}
    return mixture_moments(lambda: [(classes, own)], class_weights(kind, moments["count"], beta), variance)


@styled
def statistics_gap(gaps: Mapping[str, pd.DataFrame], title: str = "Distance from the real set's statistics") -> Figure:
    """Draw the gaps of the mean and of the variance per layer, one line an entry.

    Args:
        gaps: name of the line -> what `layer_gaps` returns; all over the same layers.
        title: above the figure.

    Raises:
        InputError: there is nothing to draw, or the layers differ.
    """
    layers = [list(gap["layer"]) for gap in gaps.values()]
    if not layers or any(other != layers[0] for other in layers):
        raise InputError("the gaps to be drawn must be at least one and over the same layers.")
    require_values(title, np.concatenate([gap[["mean_gap", "var_gap"]].to_numpy(float).ravel() for gap in gaps.values()]))
    figure = new_figure(3.4)
    row = figure.subplots(1, 2)
    for axes, column, name in zip(
        row, ("mean_gap", "var_gap"), ("means: |Δ mean| / |std of the real set|", "variances: |Δ var| / |var|"), strict=True
    ):
        for index, (label, gap) in enumerate(gaps.items()):
            axes.plot(range(len(gap)), gap[column], marker=marker(index), color=colour(index), label=label)
        axes.set_title(name)
        axes.set_xticks(range(len(layers[0])), [_short(layer) for layer in layers[0]], rotation=40, ha="right", rotation_mode="anchor")
        axes.set_xlabel("layer, in forward order")
        axes.set_ylim(bottom=0)
    row[0].set_ylabel("relative gap (no unit)")
    figure.suptitle(title)
    legend_below(figure, row[0])
    return figure


def _tensor(side: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in side:
        raise InputError(f"there is no tensor {name!r} among the statistics: it has {', '.join(sorted(side)[:4])}, ...")
    return side[name].double()


def _relative(gap: torch.Tensor, scale: torch.Tensor) -> float:
    norm_K, scale_K = gap.norm(dim=-1).reshape(-1), scale.norm(dim=-1).reshape(-1)
    known_K = scale_K > 0
    return float((norm_K[known_K] / scale_K[known_K]).mean())


def _short(layer: str) -> str:
    return layer.removeprefix("encoder.")
