"""The page: what is there is gathered, drawn, and put into the templates that lie beside this file."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ray_ltdd.errors import InputError
from ray_ltdd.results.export import STATES
from ray_ltdd.results.fair import CAVEAT
from ray_ltdd.results.figures.class_accuracy import class_accuracy
from ray_ltdd.results.figures.stage_costs import stage_costs
from ray_ltdd.results.load import load_results
from ray_ltdd.results.protocol import STANDING
from ray_ltdd.results.published import PAPER
from ray_ltdd.results.report import facts, fair, method, outcome, pictures
from ray_ltdd.results.report.contents import RunContents, is_run, read_run
from ray_ltdd.results.report.several import several
from ray_ltdd.results.summary import TITLES
from ray_ltdd.results.table_formats import render
from ray_ltdd.storage import atomic_file, readable_os_error

PAGE = "report.html"


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page about a run, or about all runs in a folder such as a sweep's.

    Args:
        folder: of a run, or one that holds runs.
        output: the HTML file, or an existing folder for report.html; None: FOLDER/report.html.

    Returns:
        the file written, whole or not at all.

    Raises:
        InputError: there is no such folder, it holds no result rows and is no run, or the file cannot be written.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give one that `ray-ltdd run` or `ray-ltdd sweep` made.")
    page = run_page(read_run(folder)) if is_run(folder) else several_page(load_results(folder, STATES), folder)
    path = output or folder / PAGE
    path = path / PAGE if path.is_dir() else path
    with readable_os_error(path, "--output"), atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def run_page(contents: RunContents) -> str:
    """Return the page about one run as HTML."""
    rows, summary = contents.rows, contents.summary
    problems = list(contents.missing)
    beside = _or_problem(lambda: outcome.published_tables(rows), problems) if rows is not None else None
    stages = dict((summary or {}).get("stages") or {})
    return _render(
        "run.html",
        title=contents.folder.absolute().name,
        lead=method.lead(contents),
        problems=problems,
        tiles=_tiles(contents, beside or []),
        steps=method.steps(contents),
        outcomes=outcome.outcome_tables(rows) if rows is not None else [],
        fair=fair.run_scores(contents),
        published=beside,
        benchmark=method.benchmark_name(contents.settings),
        classes=_class_pictures(contents),
        gallery=pictures.gallery_rows(contents.images, _counts(rows)) if contents.images is not None else [],
        n_classes=len(contents.images.class_names) if contents.images is not None else 0,
        gallery_png=pictures.data_uri(contents.gallery, "image/png") if contents.gallery and contents.images is None else None,
        costs=pictures.picture(stage_costs(stages, ""), "seconds of every stage") if stages else None,
        sizes=facts.sizes(contents),
        notes=list((summary or {}).get("notes") or []),
        changed=facts.changed_settings(contents.settings),
        sections=facts.settings_by_section(contents.settings),
        provenance=facts.provenance(contents),
        command=facts.command(contents),
    )


def several_page(rows: pd.DataFrame, folder: Path) -> str:
    """Return the page about all runs in a folder, whose rows of `load_results` (of all states) are given, as HTML."""
    found = several(rows, folder)
    tables = [Markup(render(table, "html")) for table in found.tables]
    drawn = {title: pictures.picture(figure, title) for title, figure in found.figures.items()}
    return _render("several.html", title=folder.absolute().name, found=found, tables=tables, pictures=drawn)


def _class_pictures(contents: RunContents) -> list[pictures.Picture]:
    if contents.rows is None:
        return []
    names = contents.images.class_names if contents.images is not None else None
    known = contents.rows[contents.rows["per_class"].notna()]
    return [
        pictures.picture(class_accuracy(own, names), f"accuracy of every class on the {part} part, and its training images")
        for part, own in known.groupby("part", sort=False)
    ]


def _counts(rows: pd.DataFrame | None) -> list[int] | None:
    return None if rows is None else [int(n) for n in rows.iloc[0]["count_per_class"]]


def _tiles(contents: RunContents, beside: list[outcome.PublishedTable]) -> list[tuple[str, str, str]]:
    """What to see first: name, number, what it is."""
    rows = contents.rows
    if rows is None:
        return []
    tiles = []
    for table in outcome.outcome_tables(rows):
        best = next((own for own in table.outcomes if own.method == "distilled"), None)
        if best is not None:
            seeds = f"{best.n} student{'' if best.n == 1 else 's'}"
            tiles.append((f"distilled, {table.part} top-1", f"{best.top1} %", f"{best.network}, {seeds}, {best.n_images:,} images"))
            tiles.append(("fewer images", f"{sum(_counts(rows) or []) / best.n_images:,.0f}×", f"{best.n_images:,} for {sum(_counts(rows) or []):,}"))
            break
    reference = next((row for table in beside for row in table.rows if row.method == "RLDD"), None)
    if reference is not None:
        deviation = f"± {reference.deviation:.1f}, " if reference.deviation is not None else ""
        tiles.insert(1, ("published, same cell", f"{reference.percent:.1f} %", f"{deviation}the paper's method; its protocol differs"))
    known = facts.sizes(contents)
    if known is not None:
        tiles.append(("to keep", known[0], f"of images, and {known[1]} of labels"))
    seconds = sum(float(record["compute_seconds"]) for record in ((contents.summary or {}).get("stages") or {}).values())
    if seconds:
        tiles.append(("computed in", facts.duration(seconds), "all stages, baselines included"))
    return tiles


def _or_problem(make: Callable[[], Any], problems: list[str]) -> Any:
    try:
        return make()
    except InputError as error:
        problems.append(f"{str(error)[0].upper()}{str(error)[1:]}")
        return None


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ray_ltdd.results", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"method_titles": TITLES, "paper": PAPER, "standing": STANDING, "fair_titles": fair.TITLES, "fair_caveat": CAVEAT}
    environment.filters["imbalance"] = facts.imbalance
    environment.filters["number"] = lambda value, digits=1: "" if value is None or value != value else f"{value:,.{digits}f}"
    return environment


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)
