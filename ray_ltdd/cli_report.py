"""`ray-ltdd report`: one page about a run, or about a folder of runs such as a sweep's."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN|SWEEP", help="folder of a run, or one that holds runs")],
    output: Annotated[Path | None, typer.Option(help="HTML file, or a folder for report.html; empty: report.html in the folder itself")] = None,
) -> None:
    """Write one self-contained HTML page about a run or a sweep. It reads what is there and computes nothing."""
    from ray_ltdd.results.report.page import write_report

    print(write_report(folder, output))
