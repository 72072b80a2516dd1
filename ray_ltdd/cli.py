"""The command line. Commands only parse, call and print."""

import io
import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ray_ltdd import cli_report, cli_sweep
from ray_ltdd.errors import InputError
from ray_ltdd.reporting import make_console, make_reporter

INTERRUPTED = 130

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Prepare and describe datasets.")
app.add_typer(data_app, name="data")
app.add_typer(cli_sweep.app)
hosts_app = typer.Typer(no_args_is_help=True, help="Expert hosts that stand on a cluster (cluster.keep_hosts=true leaves them).")
app.add_typer(hosts_app, name="hosts")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings by dotted name, such as recover.steps=75")]
Address = Annotated[str, typer.Option("--address", help="auto: the cluster this machine belongs to; or HOST:PORT of its head")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress, only the outcome")]
ExecutorChoice = Annotated[str | None, typer.Option("--executor", help="ray or inline (this process alone, for debugging); as cluster.executor")]
Json = Annotated[bool, typer.Option("--json", help="print the outcome as JSON and nothing else")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/quickstart.yaml")],
    overrides: Overrides = None,
    executor: ExecutorChoice = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Distil a long-tailed dataset and test what students learn from it. An interrupted run is continued by the same command."""
    changes = [*(overrides or []), *([f"cluster.executor={executor}"] if executor else [])]
    _connect_early(config, changes)
    from ray_ltdd.cluster.executor import make_executor
    from ray_ltdd.config import load_config
    from ray_ltdd.runs import execute, open_run

    reporter = make_reporter(quiet or as_json)
    with open_run(load_config(config, changes).config, reporter, make_executor=make_executor) as opened:
        if not (quiet or as_json):
            reporter.console.print(f"Run folder: {opened.folder}", soft_wrap=True)
            reporter.console.print(f"Split: {opened.bench.split.name}, fingerprint {opened.bench.split.fingerprint[:12]}", soft_wrap=True)
        report = execute(opened)
    _print_report(report, as_json)


@app.command()
def show(
    config: Annotated[Path, typer.Argument(metavar="CONFIG")],
    overrides: Overrides = None,
    meanings: Annotated[bool, typer.Option("--meanings", help="say besides what every setting means")] = False,
    as_json: Json = False,
) -> None:
    """Print every resolved setting and where its value came from."""
    from ray_ltdd.config import leaves, load_config, setting_meaning

    loaded = load_config(config, overrides or [])
    values = loaded.config.model_dump(mode="json")
    if as_json:
        print(json.dumps(values, indent=1))
        return
    headings = ("setting", "value", "from", *(["meaning"] if meanings else []))
    rows = [(name, json.dumps(value), loaded.origins[name], *([setting_meaning(name)] if meanings else [])) for name, value in leaves(values)]
    console = make_console()
    if not console.is_terminal:
        for name, value, *rest in rows:
            print(f"{name} = {value}  # {'; '.join(rest)}")
        return
    table = Table(title=f"Settings, fingerprint {loaded.config.fingerprint}", title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row, style="dim" if row[2] == "default" else None)
    console.print(table)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[evaluate.NAME=VALUE]...", help="how students are trained, such as evaluate.epochs=900")
    ] = None,
    student: Annotated[str | None, typer.Option(help="architecture, such as vgg11; empty: the run's own")] = None,
    seeds: Annotated[int | None, typer.Option(help="number of students")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train further students on a run's distilled images: another architecture, more seeds, another recipe.

    Everything else is the run's: so are its baselines, which are trained alike (evaluate.baselines=[] leaves them out).
    """
    from ray_ltdd import pipeline, runs
    from ray_ltdd.cluster.executor import make_executor

    changes = list(overrides or [])
    for text in changes:
        if not text.startswith("evaluate."):
            raise InputError(f"cannot use '{text}': only settings under evaluate. are changed here; `ray-ltdd run {folder}/settings.yaml` takes all.")
    changes += [f"evaluate.model={{architecture: {student}}}"] if student is not None else []
    changes += [f"evaluate.seeds={seeds}"] if seeds is not None else []
    config = runs.reopen_config(folder, changes)
    with runs.open_run(config, make_reporter(quiet or as_json), folder, make_executor) as opened:
        distilled = pipeline.distil(config, opened.bench, opened.executor)
        report = runs.evaluate(opened, distilled)
    _print_report(report, as_json)


@app.command()
def gallery(folder: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]) -> None:
    """Draw a run's real, initial and distilled images."""
    from ray_ltdd import pipeline
    from ray_ltdd.executor import StoredExecutor
    from ray_ltdd.runs import draw_run_gallery, open_run, reopen_config

    with open_run(reopen_config(folder), make_reporter(quiet=True), folder, lambda parts: StoredExecutor(parts.store)) as opened:
        print(draw_run_gallery(opened, pipeline.distil(opened.config, opened.bench, opened.executor)))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, and what would be slow on it and why."""
    from ray_ltdd.doctor import examine

    facts, advice = examine()
    if as_json:
        print(json.dumps({"facts": facts, "advice": advice}, indent=1))
        return
    table = Table(show_header=False, title="This machine", title_justify="left")
    for name, value in facts.items():
        table.add_row(name, value)
    console = make_console()
    console.print(table)
    for sentence in advice:
        console.print(f"- {sentence}", soft_wrap=True)


@data_app.command("prepare")
def data_prepare(name: Annotated[str, typer.Argument(help="a benchmark's name or a YAML file")], overrides: Overrides = None) -> None:
    """Fetch and decode a dataset once."""
    from ray_ltdd.runs import prepare

    prepared = prepare(_data_config(name, overrides), make_reporter(quiet=False))
    print(f"{prepared.dataset}: {len(prepared.train.label_N):,} training and {len(prepared.test.label_N):,} test images")
    print(f"prepared in {prepared.folder}")


@data_app.command("describe")
def data_describe(
    name: Annotated[str, typer.Argument(help="a benchmark's name or a YAML file")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="PNG of the profile; empty: SPLIT.png in the current folder")] = None,
    as_json: Json = False,
) -> None:
    """Print a long-tailed split's counts per class and its fingerprint, and draw its profile."""
    from ray_ltdd.data.describe import describe, profile_figure, profile_rows
    from ray_ltdd.data.split import draw_split
    from ray_ltdd.runs import prepare

    config = _data_config(name, overrides)
    prepared = prepare(config, make_reporter(quiet=as_json))
    split = draw_split(config.split, prepared)
    path = output or Path(f"{split.name}.png")
    profile_figure(split, prepared.class_names, path)
    if as_json:
        print(json.dumps({**describe(prepared, split), "figure": str(path)}, indent=1))
        return
    make_console().print(profile_rows(split, prepared.class_names))
    print(f"split {split.name}, fingerprint {split.fingerprint[:12]}")
    print(f"picture: {path}")


@hosts_app.command("list")
def hosts_list(address: Address = "auto", as_json: Json = False) -> None:
    """Show the expert hosts of a cluster: where they stand, what they serve, what they do."""
    from ray_ltdd.cluster.hosts import list_hosts

    hosts = list_hosts(address)
    if as_json:
        plain = [{"group": h.group, "name": h.name, "state": h.state, **(asdict(h.facts) if h.facts else {})} for h in hosts]
        print(json.dumps(plain, indent=1))
        return
    if not hosts:
        print("no expert hosts")
        return
    table = Table()
    for heading in ("group", "node", "process", "device", "serves", "does"):
        table.add_column(heading)
    for host in hosts:
        facts = host.facts
        table.add_row(host.group, *((facts.node, str(facts.pid), facts.device, facts.title) if facts else ("", "", "", "")), host.state)
    make_console().print(table)


@hosts_app.command("stop")
def hosts_stop(
    group: Annotated[str | None, typer.Argument(metavar="[GROUP]", help="as `hosts list` shows it; empty: all")] = None, address: Address = "auto"
) -> None:
    """End expert hosts. What they had computed is in the store; a run that uses them starts others."""
    from ray_ltdd.cluster.hosts import stop_hosts

    names = stop_hosts(address, group)
    print(f"ended {len(names)} expert host{'' if len(names) == 1 else 's'}")


def _connect_early(config: Path, overrides: list[str]) -> None:
    from ray_ltdd.cluster.session import connect_early, peek

    cluster = peek(config, overrides)
    if cluster is not None and cluster.executor == "ray":
        connect_early(cluster.address)


def _data_config(name: str, overrides: list[str] | None) -> Any:
    from ray_ltdd.config import load_config, validate
    from ray_ltdd.yaml_files import override

    if name.endswith((".yaml", ".yml")):
        return load_config(name, overrides or []).config
    values: dict[str, Any] = {"data": {"dataset": name}}
    for text in overrides or []:
        override(values, text)
    return validate(values, "command line")


app.command()(cli_report.report)


def _print_report(report: Any, as_json: bool) -> None:
    from ray_ltdd.results.summary import outcome_table, stage_table

    if as_json:
        print(json.dumps(report.describe(), indent=1))
        return
    console = make_console()
    n_tested = report.run.bench.n_images(report.run.config.evaluate.part)
    console.print(stage_table(report.records))
    console.print(outcome_table(report.outcomes, report.run.config.evaluate.part, n_tested, report.group_rule))
    for note in report.notes:
        console.print(f"Note: {note}", soft_wrap=True)
    labels = report.run.config.relabel.labels
    kept = " (the teacher in the loop)" if labels == "online" else ""
    console.print(f"Bytes: {report.image_bytes:,} of images, {report.label_bytes:,} of '{labels}' labels{kept}.", soft_wrap=True)
    for name, path in (("picture", "gallery.png"), ("dataset", "distilled"), ("result rows", "results")):
        console.print(f"{name:>12}: {report.run.folder / path}", soft_wrap=True, highlight=False)


def main() -> None:
    """Entry point: input errors end with one sentence each and status 2, Ctrl-C with status 130."""
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        # where standard output cannot say ± or a class's name, the outcome of hours is still printed
        sys.stdout.reconfigure(errors="replace")
    # Ray prints a paragraph for every worker that dies, whatever its settings; what it means for the run is said in a line of our own
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        status = app(standalone_mode=False)
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is None:
            raise
        _fail(f"{usage()} (`ray-ltdd --help` lists the commands)", 2)
    # typer turns Ctrl-C inside a command into this status
    if status == INTERRUPTED:
        _fail("interrupted; the same command continues where this one stopped.", INTERRUPTED)
    sys.exit(status or 0)


def _fail(message: str, status: int) -> None:
    for line in message.splitlines():
        print(f"ray-ltdd: {line}", file=sys.stderr)
    sys.exit(status)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"ray-ltdd: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
