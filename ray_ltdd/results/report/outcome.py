"""Accuracies beside the baselines and beside the published numbers, as plain data for the template to lay out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ray_ltdd.results.published import CELL, METHOD, published
from ray_ltdd.results.summary import Outcome, aggregate
from ray_ltdd.results.table_formats import letter
from ray_ltdd.results.tables import BENCHMARK_NAMES, own_results


@dataclass(frozen=True)
class OutcomeTable:
    """Accuracies on one part, in percent: rows of `Outcome`, images tested on (None: not known), and the rule of the groups of classes."""

    part: str
    n_tested: int | None
    outcomes: tuple[Outcome, ...]
    group_rule: str

    @property
    def has_top5(self) -> bool:
        """Whether there is a top-5 accuracy to show: not with ten classes or fewer."""
        return any(outcome.mean["top5"] is not None for outcome in self.outcomes)


@dataclass(frozen=True)
class PublishedRow:
    """A line of the comparison: method, top-1 in percent with deviation (None: not given), letters of its footnotes, whether it is ours."""

    method: str
    percent: float
    deviation: float | None
    letters: str = ""
    is_ours: bool = False


@dataclass(frozen=True)
class PublishedTable:
    """Ours among the published numbers of one cell, best first.

    Attributes:
        cell: what the numbers are of.
        rows: published and ours.
        sentence: ours against the number it is to be compared with.
        footnotes: how our protocol differs.
    """

    cell: str
    rows: tuple[PublishedRow, ...]
    sentence: str
    footnotes: tuple[tuple[str, str], ...]


def outcome_tables(rows: pd.DataFrame) -> list[OutcomeTable]:
    """Accuracies by what was trained on, one table a part that was tested."""
    tables = []
    for part, group in rows.drop_duplicates(["artifact", "method"]).groupby("part", sort=False):
        records = [{str(name): _none_for_nan(own) for name, own in record.items()} for record in group.to_dict("records")]
        n_tested = _none_for_nan(float(group["n_tested"].astype(float).max()))
        tables.append(
            OutcomeTable(str(part), None if n_tested is None else int(n_tested), tuple(aggregate(records)), str(group.iloc[0]["group_rule"]))
        )
    return tables


def published_tables(rows: pd.DataFrame) -> list[PublishedTable]:
    """Ours beside the published numbers, one table a student network for which there are any.

    Raises:
        InputError: two different recipes stand for one cell.
    """
    ours = own_results(rows)
    tables = []
    for place, own in ours.groupby(CELL, sort=False):
        theirs = published()
        for name, wanted in zip(CELL, place, strict=True):
            theirs = theirs[theirs[name] == wanted]
        if len(theirs):
            tables.append(_published_table(own, theirs.drop_duplicates("method"), place))
    return tables


def _published_table(own: pd.DataFrame, theirs: pd.DataFrame, place: Sequence[Any]) -> PublishedTable:
    sentences = list(dict.fromkeys(sentence for marks in own["marks"] for sentence in marks))
    rows = [PublishedRow(str(r["method"]), r["percent"], _none_for_nan(r["percent_deviation"])) for r in theirs.to_dict("records")]
    for r in own.to_dict("records"):
        letters = ",".join(letter(sentences.index(sentence)) for sentence in r["marks"])
        deviation = _none_for_nan(r["deviation"])
        rows.append(PublishedRow(str(r["label"]), 100 * r["mean"], None if deviation is None else 100 * deviation, letters, is_ours=True))
    benchmark, factor, ipc, network = place
    cell = f"{BENCHMARK_NAMES.get(benchmark, benchmark)}, IF {factor:g}, IPC {ipc}, {network} students"
    ordered = tuple(sorted(rows, key=lambda row: -row.percent))
    return PublishedTable(cell, ordered, _verdict(own), tuple((letter(i), sentence) for i, sentence in enumerate(sentences)))


def _verdict(own: pd.DataFrame) -> str:
    said = []
    for r in own[own["published"].notna()].to_dict("records"):
        gap = float(r["difference"])
        how = f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'}" if round(gap, 1) else "equal to"
        what = "The method" if str(r["published"]).startswith(METHOD) else "Random real images"
        said.append(f"{what}: {100 * r['mean']:.1f} %, {how} the published {r['published_percent']:.1f} % ({r['published']}).")
    return " ".join(said) or "The paper has no number of this cell with the same parts of the method left out."


def _none_for_nan(own: Any) -> Any:
    return None if isinstance(own, float) and own != own else own
