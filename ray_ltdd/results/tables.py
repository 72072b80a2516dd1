"""The paper's tables 1 to 8 with our numbers beside the published ones.

A table holds numbers and says nothing of how they look; `ray_ltdd.results.table_formats` writes it as text, Markdown, LaTeX or HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from ray_ltdd.errors import InputError
from ray_ltdd.results.aggregate import aggregate, beside_published
from ray_ltdd.results.load import parsed_settings, recipe
from ray_ltdd.results.protocol import STANDING, variants
from ray_ltdd.results.published import CELL, PAPER, published

BENCHMARK_NAMES = {"cifar10_lt": "CIFAR-10-LT", "cifar100_lt": "CIFAR-100-LT", "tiny_imagenet_lt": "Tiny-ImageNet-LT", "imagenet_lt": "ImageNet-LT"}

NUMBERS = tuple(range(1, 9))

_SUBJECTS = {5: "extreme imbalance", 6: "one image per class", 7: "other student networks", 8: "parts of the method left out"}
# what the columns of a table are: they do not make two rows of one recipe
_AXES = {"split": ("imbalance_factor", "profile"), "distill": ("images_per_class",), "evaluate": ("model",), "data": ("dataset", "image_size")}

_CROPS = {"confidence": "confident crops", "random": "random crops", "noise": "noise"}


@dataclass(frozen=True)
class Cell:
    """One number.

    Attributes:
        percent: mean top-1 in percent (in a row of differences: points); None where there is no number.
        deviation: over seeds; None where there is none.
        marks: positions in the table's `footnotes`.
    """

    percent: float | None = None
    deviation: float | None = None
    marks: tuple[int, ...] = ()


@dataclass(frozen=True)
class TableRow:
    """A row: its label, one cell a column, and whether it is published, ours, or the difference of the two."""

    label: str
    cells: tuple[Cell, ...]
    kind: str = "published"


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        title: what it is about; names what all columns share.
        headings: levels from the top down, each one text a column; equal neighbours belong together.
        rows: published ones, ours, differences.
        footnotes: how the protocol of marked cells differs from the paper's.
        notes: what holds for all cells.
    """

    title: str
    headings: tuple[tuple[str, ...], ...]
    rows: tuple[TableRow, ...]
    footnotes: tuple[str, ...]
    notes: tuple[str, ...]


def paper_table(number: int, rows: pd.DataFrame | None = None, labels: Mapping[str, str] | None = None) -> PaperTable:
    """Return one of the paper's tables with our test accuracies below the published ones.

    Rows of ours are one per recipe apart from what the columns vary (IF, IPC, benchmark, network). Accuracies on a validation part are left out.

    Args:
        number: 1 to 8.
        rows: of `load_results`; None or no rows of that benchmark: the published numbers alone.
        labels: recipe -> label of its row; recipes not named get one made of what they leave out and, where several compete, the run's name.

    Raises:
        InputError: there is no such table, or two recipes with one label compete for one cell.
    """
    if number not in NUMBERS:
        raise InputError(f"there is no table {number}: the paper's tables are 1 to {NUMBERS[-1]}.")
    theirs = published()
    theirs = theirs[theirs["table"] == number]
    columns = _columns(theirs)
    ours = _in_columns(rows, columns, labels)
    footnotes = tuple(dict.fromkeys(sentence for marks in ours["marks"] for sentence in marks))
    body = [*_published_rows(theirs, columns), *_own_rows(ours, columns, footnotes), *_difference_rows(ours, columns)]
    shared, headings = _headings(columns)
    subject = f", {_SUBJECTS[number]}" if number in _SUBJECTS else ""
    title = f"Table {number}: top-1 accuracy in percent{subject}{': ' if shared else ''}{', '.join(shared)}"
    own_notes = ("Ours: mean ± deviation over seeds on the test set.", *STANDING) if len(ours) else ()
    return PaperTable(title, headings, tuple(body), footnotes, (f"Published: {PAPER}.", *own_notes))


def _columns(theirs: pd.DataFrame) -> pd.DataFrame:
    columns = theirs[CELL].drop_duplicates()
    first_seen = {name: {value: i for i, value in enumerate(columns[name].unique())} for name in ("benchmark", "network")}

    def position(values: pd.Series) -> pd.Series:
        return values.map(first_seen[str(values.name)]) if values.name in first_seen else values

    return columns.sort_values(CELL, key=position, ignore_index=True)


def _headings(columns: pd.DataFrame) -> tuple[list[str], tuple[tuple[str, ...], ...]]:
    """What all columns share, and the levels of headings in which they differ."""
    levels = [
        [BENCHMARK_NAMES[name] for name in columns["benchmark"]],
        [f"IF {value:g}" for value in columns["imbalance_factor"]],
        list(columns["network"]),
        [f"IPC {value}" for value in columns["images_per_class"]],
    ]
    shared = [level[0] for level in levels if len(set(level)) == 1]
    return shared, tuple(tuple(level) for level in levels if len(set(level)) > 1)


def _published_rows(theirs: pd.DataFrame, columns: pd.DataFrame) -> list[TableRow]:
    return [TableRow(str(method), _cells(group, columns)) for method, group in theirs.groupby("method", sort=False)]


def _own_rows(ours: pd.DataFrame, columns: pd.DataFrame, footnotes: Sequence[str]) -> list[TableRow]:
    positions = [tuple(sorted(footnotes.index(sentence) for sentence in marks)) for marks in ours["marks"]]
    shown = ours.assign(
        percent=100 * ours["mean"], percent_deviation=100 * ours["deviation"], footnotes=pd.Series(positions, index=ours.index, dtype=object)
    )
    return [TableRow(str(label), _cells(group, columns), "ours") for label, group in shown.groupby("label", sort=False)]


def _difference_rows(ours: pd.DataFrame, columns: pd.DataFrame) -> list[TableRow]:
    compared = ours[ours["published"].notna()].assign(percent=ours["difference"], percent_deviation=float("nan"))
    return [
        TableRow(f"{label} minus {method}", _cells(group, columns), "difference")
        for (label, method), group in compared.groupby(["label", "published"], sort=False)
    ]


def _cells(group: pd.DataFrame, columns: pd.DataFrame) -> tuple[Cell, ...]:
    known = {
        tuple(row[name] for name in CELL): Cell(_number(row["percent"]), _number(row["percent_deviation"]), tuple(row.get("footnotes", ())))
        for row in group.to_dict("records")
    }
    return tuple(known.get(place, Cell()) for place in columns.itertuples(index=False, name=None))


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def _in_columns(rows: pd.DataFrame | None, columns: pd.DataFrame, labels: Mapping[str, str] | None) -> pd.DataFrame:
    mine = rows.merge(columns, on=CELL) if rows is not None else pd.DataFrame()
    if mine.empty:
        return pd.DataFrame(columns=[*CELL, "label", "mean", "deviation", "published", "difference", "marks"])
    return own_results(mine, labels)


def own_results(rows: pd.DataFrame, labels: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Aggregate test accuracies of distilled and random images, labelled and beside the published ones.

    Args:
        rows: of `load_results`.
        labels: recipe -> label; the others get one made of what they leave out and, where several compete, the run's name.

    Returns:
        what `beside_published` returns, with a column `label`; distilled images before random ones.

    Raises:
        InputError: two recipes with one label compete for one cell (benchmark, IF, IPC, network).
    """
    tested = rows[(rows["part"] == "test") & rows["method"].isin(["distilled", "random"])]
    joined = beside_published(aggregate(tested), tested)
    given = dict(labels or {})
    label = {**_default_labels(tested[~tested["recipe"].isin(list(given))]), **given}
    joined["label"] = pd.Series([label[key] for key in joined["recipe"]], index=joined.index, dtype=object)
    _require_one_a_cell(joined)
    order = {"distilled": 0, "random": 1}
    return joined.sort_values("method", key=lambda values: values.map(order), kind="stable", ignore_index=True)


def _default_labels(rows: pd.DataFrame) -> dict[str, str]:
    once = rows.drop_duplicates("recipe")
    settings = parsed_settings(once)
    left_out = variants(once)
    kinds = [_kind(method, left_out.get(key, "")) for method, key in zip(once["method"], once["recipe"], strict=True)]
    families = [recipe(values, str(method), _AXES) for values, method in zip(settings, once["method"], strict=True)]
    names = [str(values.get("name", "run")) for values in settings]
    crops = [_crops(values) if method == "distilled" else "" for values, method in zip(settings, once["method"], strict=True)]
    found = pd.DataFrame({"recipe": once["recipe"].to_numpy(), "kind": kinds, "family": families, "name": names, "crops": crops})
    found["benchmark"] = once["benchmark"].to_numpy()
    labels = {}
    for (kind, _), group in found.groupby(["kind", "benchmark"], sort=False):
        # runs of one configuration whose crops differ are told apart by these, which say more than a digest
        several = group.groupby("name")["crops"].transform("nunique") > 1
        group = group.assign(name=group["name"].where(~several, group["name"] + ", " + group["crops"]))
        rivals = group.groupby("name")["family"].nunique().to_dict()
        for key, family, name in zip(group["recipe"], group["family"], group["name"], strict=True):
            told_apart = name if rivals[name] == 1 else f"{name}, {family[:4]}"
            labels[str(key)] = str(kind) if group["family"].nunique() == 1 else f"{kind} ({told_apart})"
    return labels


def _crops(settings: Mapping[str, Any]) -> str:
    method = str((settings.get("select_crops") or {}).get("method", "confidence"))
    return _CROPS.get(method, method)


def _kind(method: str, left_out: str) -> str:
    return "random real images, ours" if method == "random" else f"ours {left_out}".strip()


def _require_one_a_cell(joined: pd.DataFrame) -> None:
    ordered = joined.sort_values(["label", *CELL], kind="stable")
    for first, second in pairwise(ordered.to_dict("records")):
        if all(first[name] == second[name] for name in ("label", *CELL)):
            place = ", ".join(f"{name}={first[name]}" for name in CELL)
            rivals = f"{first['recipe']} and {second['recipe']}"
            raise InputError(f"the recipes {rivals} both stand for {first['label']!r} at {place}: give them different labels or keep one.")
