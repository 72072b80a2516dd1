"""What a sweep of 16 trials costs over one trial, against 16 separate runs: how much sharing experts and other stages saves.

    python benchmarks/sweep_sharing.py [--config FILE] [--trials 16] [--separate 2] [--output FOLDER] [key=value ...]

The first cell of a sweep file is searched with one trial, then continued to all of them, in a store of its own; no trial is pruned, no final run is
made. Then some of its trials are run again, each into a store of its own, as `ray-ltdd run` would. Costs are seconds of computation by the expert
hosts (what a machine is paid for) and seconds on the clock, which include the start of Ray.
"""

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path

from ray_ltdd.cluster.executor import make_executor
from ray_ltdd.cluster.studies import JOURNAL, open_journal, open_studies
from ray_ltdd.cluster.sweep import run_sweep
from ray_ltdd.executor import SilentReporter
from ray_ltdd.runs import execute, open_run
from ray_ltdd.search.load import Sweep, load_sweep
from ray_ltdd.search.report import SweepReport
from ray_ltdd.sweep_view import make_view

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "sweep" / "digits_quick.yaml"), help="sweep file; its first cell is used")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--separate", type=int, default=2, help="trials that are run again by themselves, evenly spread over all")
    parser.add_argument("--output", default="runs/sweep_sharing", help="emptied first, so that everything is computed")
    parser.add_argument("overrides", nargs="*", help="settings, such as experts.epochs=1")
    arguments = parser.parse_args()
    output = Path(arguments.output).absolute()
    shutil.rmtree(output, ignore_errors=True)
    fixed = [f"output.root={output}", "pruner={kind: none}", "final_seeds=0", "warm_start={kind: none}"]
    one, first_wall = measure(arguments.config, [*arguments.overrides, *fixed, "trials=1"])
    whole, rest_wall = measure(arguments.config, [*arguments.overrides, *fixed, f"trials={arguments.trials}"])
    show("one trial", spent(one), first_wall, spent(one))
    show(f"{arguments.trials} trials of one sweep", spent(whole), first_wall + rest_wall, spent(one))
    sweep = first_cell(load_sweep(arguments.config, [*arguments.overrides, *fixed]))
    seconds, walls = zip(*(run_alone(sweep, number, output) for number in spread(arguments.trials, arguments.separate)), strict=True)
    n, scale = arguments.trials, arguments.trials / len(seconds)
    show(f"{n} separate runs ({len(seconds)} were made)", scale * sum(seconds), scale * sum(walls), spent(one))
    for use in whole.stages:
        print(f"  {use.title}: {use.n_computed} of {use.n_asked} computed, {use.saved_seconds:.1f} s saved")


def measure(config: str, overrides: list[str]) -> tuple[SweepReport, float]:
    """Run the sweep's first cell; return what it says and the seconds it took."""
    started = time.monotonic()
    view = make_view(quiet=False)
    with view.open():
        report = run_sweep(first_cell(load_sweep(config, overrides)), view)
    return report, time.monotonic() - started


def first_cell(sweep: Sweep) -> Sweep:
    return replace(sweep, cells=sweep.cells[:1])


def spread(n: int, n_chosen: int) -> list[int]:
    return [i * (n - 1) // max(n_chosen - 1, 1) for i in range(n_chosen)]


def run_alone(sweep: Sweep, number: int, output: Path) -> tuple[float, float]:
    """Run one of the sweep's trials into a store of its own; return its seconds of computation and on the clock."""
    (study,) = open_studies(sweep, open_journal(sweep.folder / JOURNAL))
    config = sweep.cells[0].trial(study.point(study.trials()[number]))
    alone = config.output.model_copy(update={"root": str(output / "separate" / str(number)), "store": None})
    started = time.monotonic()
    with open_run(config.model_copy(update={"output": alone}), SilentReporter(), make_executor=make_executor) as run:
        report = execute(run)
    return sum(record.compute_seconds for record in report.records), time.monotonic() - started


def spent(report: SweepReport) -> float:
    """Seconds of computation, what was shared left out."""
    return sum(use.compute_seconds - use.saved_seconds for use in report.stages)


def show(name: str, seconds: float, wall: float, unit: float) -> None:
    print(f"{name}: {seconds:.1f} s of computation, {wall:.1f} s on the clock, {seconds / unit:.2f} times one trial")


if __name__ == "__main__":
    main()
