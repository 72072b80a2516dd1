"""What a dataset and its split look like: plain data, a bar chart as PNG and one for the terminal.

Shapes: K classes, C channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.table import Table
from rich.text import Text

from ray_ltdd.data.groups import GROUPS, shot_groups
from ray_ltdd.data.prepared import PreparedDataset
from ray_ltdd.data.split import LongTailedSplit
from ray_ltdd.storage import atomic_file, readable_os_error

# Okabe and Ito's palette, told apart by every kind of colour vision.
_COLOUR = {"many": "#0072B2", "medium": "#E69F00", "few": "#CC79A7"}
# More classes than this have no room for their names and numbers.
_NAMED_CLASSES = 30
_TERMINAL_ROWS = 40
_BAR_CHARACTERS = 40


def describe(prepared: PreparedDataset, split: LongTailedSplit) -> dict[str, object]:
    """Return the facts of a dataset and its split as plain data (JSON can hold it)."""
    group_K, rule = shot_groups(split.count_K)
    return {
        "dataset": prepared.dataset,
        "source": prepared.source,
        "folder": str(prepared.folder),
        "bytes": sum(file.stat().st_size for file in prepared.folder.iterdir()),
        "image_size": prepared.image_size,
        "channels": prepared.channels,
        "dataset_fingerprint": prepared.fingerprint,
        "split": split.name,
        "split_fingerprint": split.fingerprint,
        "images": {
            "source": len(prepared.train.label_N),
            "train": len(split.train_index_N),
            "validation": len(split.validation_index_N),
            "test": len(prepared.test.label_N),
        },
        "imbalance_factor": float(split.count_K.max() / split.count_K.min()),
        "class_names": list(prepared.class_names),
        "count_per_class": split.count_K.tolist(),
        "group_per_class": group_K.tolist(),
        "group_rule": rule,
        "mean": split.mean_C.tolist(),
        "std": split.std_C.tolist(),
    }


def profile_figure(split: LongTailedSplit, class_names: Sequence[str], path: Path) -> None:
    """Draw the training images of each class, largest first, as a PNG at `path` (its folder is made if need be)."""
    group_K, rule = shot_groups(split.count_K)
    order_K = np.argsort(-split.count_K, kind="stable")
    count_K, colours = split.count_K[order_K], [_COLOUR[group] for group in group_K[order_K]]
    figure = Figure(figsize=(10, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    named = len(count_K) <= _NAMED_CLASSES
    axes.bar(np.arange(len(count_K)), count_K, width=0.8 if named else 1.0, color=colours)
    if named:
        _name_bars(axes, count_K, [class_names[k] for k in order_K])
    else:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8)
        axes.set_xlabel(f"class, largest first ({len(count_K)} classes)")
    axes.set_ylabel("training images" + ("" if named else " (logarithmic)"))
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{split.name}: {count_K.sum():,} training images, {count_K.max()} to {count_K.min()} per class")
    present = [group for group in GROUPS if (group_K == group).any()]
    size = {group: int((group_K == group).sum()) for group in present}
    labels = {group: f"{group}-shot ({size[group]} class{'' if size[group] == 1 else 'es'})" for group in present}
    handles = [Patch(color=_COLOUR[group], label=labels[group]) for group in present]
    figure.legend(handles=handles, frameon=False, title=rule, loc="outside lower center", ncols=len(handles))
    with readable_os_error(path, "--output"), atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def profile_rows(split: LongTailedSplit, class_names: Sequence[str]) -> Table:
    """Return the bar chart for a terminal: a row per class, largest first; of many classes evenly spaced ones."""
    group_K, _ = shot_groups(split.count_K)
    order_K = np.argsort(-split.count_K, kind="stable")
    class_count = len(order_K)
    shown = np.unique(np.linspace(0, class_count - 1, min(class_count, _TERMINAL_ROWS)).round().astype(int))
    title = split.name if len(shown) == class_count else f"{split.name} ({len(shown)} of {class_count} classes)"
    table = Table(title=title, box=None, pad_edge=False)
    table.add_column("class", max_width=24, no_wrap=True)
    table.add_column("images", justify="right")
    table.add_column("")
    for k in order_K[shown]:
        count, colour = int(split.count_K[k]), _COLOUR[str(group_K[k])]
        length = max(1, round(_BAR_CHARACTERS * count / int(split.count_K.max())))
        table.add_row(Text(class_names[k]), str(count), Text("█" * length + f" {group_K[k]}", style=colour))
    return table


def _name_bars(axes: Axes, count_K: np.ndarray, names: list[str]) -> None:
    slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(names) > 10 or max(map(len, names)) > 10 else {}
    axes.set_xticks(range(len(names)), [name if len(name) <= 24 else name[:23] + "…" for name in names], parse_math=False, **slanted)
    axes.set_xlabel("class, largest first")
    for x, count in enumerate(count_K):
        axes.annotate(str(count), (x, count), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
