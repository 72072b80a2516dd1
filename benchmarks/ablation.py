"""What every component of the method is worth: the same experiment again and again, each time with one component taken away or exchanged.

    python benchmarks/ablation.py [--config FILE] [--only NAME] [--variant "NAME: key=value key=value"] [key=value ...]

--only and --variant may be given several times. With evaluate.part=balanced_train settings are compared without reading the test set.

Every variant is an ordinary run, so what two of them have in common is computed once, an interrupted ablation is continued by the same command, and
all rows are under the output folder. The difference is to the first line, with a 95 % interval (Welch) over students. These are trained on *one*
distilled set a variant: the interval says nothing about another draw of experts or crops.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table
from scipy import stats

from ray_ltdd.cluster.executor import make_executor
from ray_ltdd.config import load_config
from ray_ltdd.reporting import make_reporter
from ray_ltdd.results.load import load_results
from ray_ltdd.runs import Report, execute, open_run

ROOT = Path(__file__).parents[1]

WHOLE = "everything"

VARIANTS: dict[str, tuple[str, ...]] = {
    WHOLE: (),
    "no debiasing": ("experts.debias=false",),
    "no fair statistics": ("calibrate.class_weights=sample", "calibrate.momentum={schedule: constant, value: 0.1}"),
    "sample weights, exact moments": ("calibrate.class_weights=sample",),
    "constant momentum 0.1": ("calibrate.momentum={schedule: constant, value: 0.1}",),
    "constant momentum 0.01": ("calibrate.momentum={schedule: constant, value: 0.01}",),
    "power momentum 0.5": ("calibrate.momentum={schedule: power, exponent: 0.5}",),
    "warm-up momentum 0.1": ("calibrate.momentum={schedule: warmup, value: 0.1}",),
    "mean of class variances": ("calibrate.variance=mean_of_classes",),
    "confident initial crops": ("select_crops.method=confidence",),
    "random initial crops": ("select_crops.method=random",),
    "initial noise": ("select_crops.method=noise",),
    "no recovery": ("recover.steps=0",),
    "one label an image": ("relabel.labels=one",),
    "recovery on large crops": ("recover.min_scale=0.5",),
    "stored labels, 50 epochs": ("relabel.labels=stored", "relabel.stored_epochs=50"),
    "online labels": ("relabel.labels=online",),
}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "cifar10_lt.yaml"))
    parser.add_argument(
        "--only",
        action="append",
        choices=VARIANTS,
        metavar="NAME",
        help=f"of {', '.join(VARIANTS)}; the first is always made",
    )
    parser.add_argument("--variant", action="append", default=[], help='one of your own, such as "short: recover.steps=50 evaluate.epochs=300"')
    parser.add_argument("overrides", nargs="*", help="settings of all variants, such as evaluate.epochs=1000 relabel.stored_epochs=1000")
    arguments = parser.parse_args()
    own = dict(map(parse_variant, arguments.variant))
    named = list(VARIANTS) if not arguments.only and not own else [WHOLE, *(arguments.only or ())]
    variants = {name: VARIANTS[name] for name in dict.fromkeys(named)} | own
    table = Table(title_justify="left")
    for heading in ("variant", "students", "top-1", "many", "medium", "few", "difference", "run"):
        table.add_column(heading, justify="left" if heading in ("variant", "run") else "right", no_wrap=True)
    whole: list[float] = []
    for name, changes in variants.items():
        report = run_variant(arguments.config, [*arguments.overrides, "evaluate.baselines=[]", *changes])
        students = next(outcome for outcome in report.outcomes if outcome.method == "distilled")
        part = report.run.config.evaluate.part
        table.title = f"Students of the distilled images, top-1 in percent on {report.run.bench.n_images(part):,} {part} images"
        groups = ["" if (mean := students.mean[group]) is None else f"{mean:.1f}" for group in ("many", "medium", "few")]
        top1 = top1_of_students(report)
        table.add_row(name, str(students.n), students.top1, *groups, difference(top1, whole) if whole else "", report.run.folder.name)
        # as far as it is known, so that an interrupted ablation has shown something
        Console(width=140).print(table)
        whole = whole or top1


def parse_variant(text: str) -> tuple[str, tuple[str, ...]]:
    """Split `NAME: key=value key=value`, quoted as in a shell."""
    name, _, changes = text.partition(":")
    return name.strip(), tuple(shlex.split(changes))


def run_variant(config: str, overrides: Sequence[str]) -> Report:
    """Run one variant, or find it done."""
    with open_run(load_config(config, overrides).config, make_reporter(quiet=False), make_executor=make_executor) as run:
        return execute(run)


def top1_of_students(report: Report) -> list[float]:
    """Top-1 of each student of a run in percent; those that `ray-ltdd evaluate` trained later in the same folder are not the run's."""
    rows = load_results(report.run.folder)
    own = rows[(rows["method"] == "distilled") & (rows["fingerprint"] == report.run.config.fingerprint)]
    return (100 * own["top1"]).tolist()


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """Mean of `values` minus that of `others`, with Welch's 95 % interval where both have deviations."""
    gap = f"{fmean(values) - fmean(others):+.1f}"
    if min(len(values), len(others)) < 2:
        return gap
    interval = stats.ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
    return f"{gap} [{interval.low:+.1f}, {interval.high:+.1f}]"


if __name__ == "__main__":
    main()
