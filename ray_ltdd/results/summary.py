"""The outcome of a run, aggregated over seeds, as plain data and as tables for a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from ray_ltdd.executor import StageRecord

SUMMARY = "summary.json"
"""In a run's folder: its outcome as printed, written when it has ended."""

TITLES = {
    "distilled": "distilled, soft labels",
    "random": "random real, one-hot",
    "whole": "whole set, one-hot",
    "observer": "the observer itself",
    "teacher": "the teacher itself",
}
METRICS = ("top1", "top5", "many", "medium", "few")
MOST_CLASSES_WITHOUT_TOP5 = 10
"""With no more classes than these top-5 says little and is left out."""

_HEADINGS = {"top5": "top-5"}


@dataclass(frozen=True)
class Outcome:
    """Mean and deviation over the seeds of one method, in percent.

    Attributes:
        method: key of `TITLES`.
        network: usual name.
        n: seeds.
        n_images: training images.
        mean: metric -> percent; None where it does not exist.
        deviation: sample deviation of top-1 over seeds; None with one seed.
    """

    method: str
    network: str
    n: int
    n_images: int
    mean: Mapping[str, float | None]
    deviation: float | None

    def describe(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "method": self.method,
            "network": self.network,
            "seeds": self.n,
            "images": self.n_images,
            **{f"{name}_percent": value for name, value in self.mean.items()},
            "top1_deviation": self.deviation,
        }

    @property
    def top1(self) -> str:
        """Mean and deviation of top-1, such as `54.3 ± 0.4`."""
        mean = self.mean["top1"]
        return f"{mean:.1f}" + (f" ± {self.deviation:.1f}" if self.deviation is not None else "")


def aggregate(rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Aggregate result rows over seeds, one outcome per (method, network), in the order of first appearance."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["network"]), []).append(row)
    return [_outcome(method, network, members) for (method, network), members in groups.items()]


def _outcome(method: str, network: str, rows: Sequence[Mapping[str, Any]]) -> Outcome:
    mean: dict[str, float | None] = {}
    for name in METRICS:
        is_told = name != "top5" or len(rows[0]["count_per_class"]) > MOST_CLASSES_WITHOUT_TOP5
        values = [row[name] for row in rows if row[name] is not None] if is_told else []
        mean[name] = 100 * fmean(values) if values else None
    n_train = sum(rows[0]["count_per_class"])
    n_images = rows[0]["images_per_class"] * len(rows[0]["count_per_class"]) if method in ("distilled", "random") else n_train
    deviation = 100 * stdev(row["top1"] for row in rows) if len(rows) > 1 else None
    return Outcome(method, network, len(rows), n_images, mean, deviation)


def outcome_table(outcomes: Sequence[Outcome], part: str, n_tested: int, group_rule: str) -> Table:
    """The accuracy table; methods of several networks are named by the network."""
    methods = [outcome.method for outcome in outcomes]
    students = next((outcome.network for outcome in outcomes if outcome.method == "distilled"), "")
    experts = ", ".join(f"{outcome.method} {outcome.network}" for outcome in outcomes if outcome.method in ("observer", "teacher"))
    title = f"Accuracy of {students} students on the {n_tested:,} {part} images, in percent"
    caption = f"± is the deviation over seeds. Experts: {experts}.\nGroups of classes: {group_rule}."
    # one column more, top-5, would not fit 80 characters with the usual space around each
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", collapse_padding=True, pad_edge=False)
    shown = [name for name in METRICS[1:] if name != "top5" or any(outcome.mean[name] is not None for outcome in outcomes)]
    for heading in ("trained on", "images", "seeds", "top-1", *(_HEADINGS.get(name, name) for name in shown)):
        table.add_column(heading, justify="left" if heading == "trained on" else "right", no_wrap=True)
    for outcome in outcomes:
        others = ["" if outcome.mean[name] is None else f"{outcome.mean[name]:.1f}" for name in shown]
        style = "bold" if outcome.method == "distilled" else None
        label = TITLES[outcome.method] if methods.count(outcome.method) == 1 else f"{outcome.method} {outcome.network}"
        table.add_row(label, f"{outcome.n_images:,}", str(outcome.n), outcome.top1, *others, style=style)
    return table


def stage_table(records: Sequence[StageRecord]) -> Table:
    """Seconds of every stage: in this run, and when its artifacts were computed; with workers, how busy they were and what they moved."""
    has_workers = any(record.n_workers for record in records)
    table = Table(title="Seconds per stage: this run, and computing in all", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for heading in ("seconds", "in all", "images/s", "stored", *(("workers", "moved") if has_workers else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        rate = f"{record.n_images / record.compute_seconds:,.0f}" if record.n_images and record.compute_seconds > 0.05 else ""
        reused = f"{record.n_reused} of {record.n_reused + record.n_computed}" if record.n_reused else ""
        cells = [record.title, f"{record.wall_seconds:.1f}", f"{record.compute_seconds:.1f}", rate, reused]
        if record.n_workers:
            cells += [f"{record.n_workers} at {record.utilisation or 0:.0%}", decimal(record.n_bytes)]
        table.add_row(*cells)
    table.add_section()
    table.add_row("all", f"{sum(r.wall_seconds for r in records):.1f}", f"{sum(r.compute_seconds for r in records):.1f}")
    return table
