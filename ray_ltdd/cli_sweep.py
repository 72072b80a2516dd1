"""The commands `sweep` and `export`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ray_ltdd.reporting import make_console

app = typer.Typer(rich_markup_mode=None)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings of the sweep, or of all its runs, such as recover.steps=75")
]


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/sweep/digits_quick.yaml")],
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(help="trials of every cell in all, earlier ones included")] = None,
    max_hours: Annotated[float | None, typer.Option(help="after which no trial starts")] = None,
    concurrency: Annotated[int | None, typer.Option(help="trials at a time; 1 makes the suggestions reproducible")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="say what would be computed, how long and how much disk it takes; start nothing")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="begin trials that failed again")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress, only the outcome")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the outcome as JSON and nothing else")] = False,
) -> None:
    """Search settings over all cells of a sweep, and test each cell's winner. The same command continues or extends it.

    Exit code 1: a final run failed, or all trials of a cell did.
    """
    from ray_ltdd.search.load import load_sweep

    given = {"trials": trials, "max_hours": max_hours, "concurrency": concurrency}
    loaded = load_sweep(config, [*(overrides or []), *(f"{name}={value}" for name, value in given.items() if value is not None)])
    if plan:
        _print_plan(loaded, as_json)
    else:
        _run(loaded, retry_failed, quiet or as_json, as_json)


def _run(loaded: Any, retry_failed: bool, quiet: bool, as_json: bool) -> None:
    from ray_ltdd.cluster.sweep import run_sweep
    from ray_ltdd.sweep_view import make_view, print_lines, report_tables

    view = make_view(quiet)
    if not quiet:
        view.reporter.console.print(f"Sweep folder: {loaded.folder}", soft_wrap=True)
    with view.open():
        report = run_sweep(loaded, view, retry_failed)
    if as_json:
        print(json.dumps(report.describe(), indent=1))
    else:
        console = make_console()
        print_lines(console, report_tables(report))
        for name, path in (("studies", "study.journal"), ("result rows", "results"), ("final runs", "finals")):
            console.print(f"{name:>12}: {Path(report.folder) / path}", soft_wrap=True, highlight=False)
    if report.has_failed:
        raise typer.Exit(1)


def _print_plan(loaded: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from ray_ltdd.cluster.studies import found_studies
    from ray_ltdd.cluster.sweep import tested_finals
    from ray_ltdd.search.costs import read_costs, stored_experts
    from ray_ltdd.search.estimate import estimate
    from ray_ltdd.search.plan import plan_sweep
    from ray_ltdd.sweep_view import plan_tables, print_lines

    store, data_root = loaded.config.output.store_path, loaded.cells[0].trial().data.root
    studies = found_studies(loaded)
    done = {study.cell.name: study.n_done() for study in studies}
    planned = plan_sweep(loaded, done, stored_experts(store, data_root), tested_finals(loaded, studies))
    cost = estimate(planned, read_costs(store, data_root))
    if as_json:
        stages = [
            {"stage": stage.stage, "asked": stage.n_asked, "shared": stage.n_shared, "stored": stage.n_stored, "to_compute": len(stage.runs)}
            for stage in planned.stages
        ]
        totals = {"compute_seconds": cost.compute_seconds, "wall_seconds": cost.wall_seconds, "bytes": cost.n_bytes, "unmeasured": cost.unmeasured}
        print(json.dumps({"cells": [asdict(cell) for cell in planned.cells], "stages": stages, **totals}, indent=1))
        return
    print_lines(make_console(), plan_tables(planned, cost, str(loaded.folder)))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN|SWEEP", help="folder of a run or a sweep, or one that holds such")],
    output: Annotated[Path | None, typer.Option(help="CSV file; empty: FOLDER/results.csv; - prints")] = None,
) -> None:
    """Write all result rows as CSV; lists and mappings are JSON in their cells."""
    from ray_ltdd.results.export import csv_text, write_csv

    if output == Path("-"):
        print(csv_text(folder), end="")
        return
    path = output or folder / "results.csv"
    print(f"{write_csv(folder, path)} rows in {path}")
