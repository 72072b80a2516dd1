"""A sweep's driver: the hosts, one Tune run over all cells, the winners' final runs, the summary. An ended or killed one is continued by the next."""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ray
from filelock import FileLock, Timeout
from ray import tune
from ruamel.yaml import YAML

from ray_ltdd.cluster.background import in_background
from ray_ltdd.cluster.keeper import HostKeeper
from ray_ltdd.cluster.messages import HostSpec
from ray_ltdd.cluster.pool import HostPool, group_of
from ray_ltdd.cluster.records import stage_uses, write_all_rows, write_rows
from ray_ltdd.cluster.searcher import EndOnRequest, ReportingScheduler, StudySearcher
from ray_ltdd.cluster.session import connected
from ray_ltdd.cluster.status import Meter, cell_reports
from ray_ltdd.cluster.studies import JOURNAL, CellStudy, Studies, open_journal, open_studies
from ray_ltdd.cluster.trial import Final, TrialSetup, run_final, run_trial
from ray_ltdd.data.belonging import record_data, require_same_data
from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.executor import Reporter
from ray_ltdd.placement import ClusterConfig
from ray_ltdd.results.summary import SUMMARY as RUN_SUMMARY
from ray_ltdd.runs import prepare
from ray_ltdd.search.cells import Cell, interleave
from ray_ltdd.search.config import SweepConfig
from ray_ltdd.search.load import Sweep
from ray_ltdd.search.plan import Pair
from ray_ltdd.search.report import SweepReport, SweepStatus
from ray_ltdd.storage import absolute, atomic_file, readable_os_error
from ray_ltdd.yaml_files import with_settings

SETTINGS, SUMMARY, LOCK, SUPERSEDED = "sweep.yaml", "sweep_summary.json", ".lock", ".superseded"
VIEW_SECONDS = 0.5
END_SECONDS = 3.0
"""How long Tune may take to end its trials before their processes are ended under it."""
TRIAL_BYTES = 2**20
"""Of memory that Ray sets aside for a trial: the hosts have the CPUs, and Tune takes no empty request."""
PROCESS_RETRIES = 2
"""How often a trial whose own process dies is begun again."""


class View(Protocol):
    """Who is shown where a sweep stands."""

    @property
    def reporter(self) -> Reporter:
        """Told the progress of what is not a trial."""
        ...

    def update(self, status: SweepStatus) -> None:
        """Show it, called twice a second."""
        ...


@dataclass(frozen=True)
class Driver:
    """A sweep that is being run.

    Attributes:
        sweep: its settings and cells, all paths absolute.
        setup: what trials are told.
        studies: the record.
        view: who is shown where it stands.
        meter: what is shown.
    """

    sweep: Sweep
    setup: TrialSetup
    studies: Studies
    view: View
    meter: Meter

    def search(self, keeper: HostKeeper) -> None:
        """Run the trials that are still to be run, of all cells in turns."""
        config = self.sweep.config
        order = list(interleave(self.sweep.cells, config.trials, config.warm_start.head_start, self.studies.n_done()))
        if not order:
            return
        deadline = float("inf") if config.max_hours is None else time.monotonic() + 3600 * config.max_hours
        searcher = StudySearcher(self.studies, order, self._ended, deadline)
        self.meter.waiting = searcher.waiting
        stop = EndOnRequest()
        with _tune_folder(self.setup.folder) as folder:
            fitting = in_background(self._tuner(searcher, stop, len(order), folder).fit, "ray-tune")
            try:
                while not wait([fitting], timeout=VIEW_SECONDS).done:
                    keeper.raise_failure()
                    self.view.update(self.meter.status("searching", keeper.labels))
                with readable_os_error(self.setup.folder):
                    fitting.result()
            finally:
                stop.asked.set()
                wait([fitting], timeout=END_SECONDS)
                self.meter.waiting = list

    def _tuner(self, searcher: StudySearcher, stop: EndOnRequest, n_trials: int, folder: Path) -> tune.Tuner:
        # trials only drive, and leave nothing behind that the next one must not find: they may have one process after the other
        trainable = tune.with_resources(tune.with_parameters(run_trial, setup=self.setup), {"cpu": 0, "memory": TRIAL_BYTES})
        return tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=ReportingScheduler(searcher),
                num_samples=n_trials,
                max_concurrent_trials=self.sweep.config.concurrency,
                reuse_actors=True,
                trial_dirname_creator=_trial_folder_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=PROCESS_RETRIES),
                stop=stop,
                verbose=0,
            ),
        )

    def _ended(self, study: CellStudy, number: int) -> None:
        write_rows(study, study.trials()[number], self.setup)

    def finals(self) -> list[Final]:
        """The final runs, see `finals_of`."""
        return finals_of(self.studies, self.sweep.config.final_seeds)

    def run_finals(self, keeper: HostKeeper, finals: Sequence[Final]) -> list[tuple[Final, str]]:
        """Run them, as many at a time as trials; return those that failed, and why."""
        remote: Any = ray.remote(num_cpus=0, max_retries=PROCESS_RETRIES)(run_final)
        waiting, flying, failed = list(finals), dict[ray.ObjectRef, Final](), list[tuple[Final, str]]()
        while waiting or flying:
            while waiting and len(flying) < self.sweep.config.concurrency:
                final = waiting.pop(0)
                flying[remote.remote(final, self.setup)] = final
            done, _ = ray.wait(list(flying), timeout=VIEW_SECONDS)
            for reference in done:
                final = flying.pop(reference)
                reason = _answer(reference)
                if reason is not None:
                    failed.append((final, reason))
            keeper.raise_failure()
            n_left = len(waiting) + len(flying)
            self.view.update(self.meter.status(f"testing winners and defaults, {len(finals) - n_left} of {len(finals)} runs done", keeper.labels))
        return failed


def finals_of(studies: Iterable[CellStudy], n_seeds: int) -> list[Final]:
    """The final runs: of every cell's winner and of the defaults, seed by seed, so that both find the seed's experts trained."""
    winners = [(study.cell.name, study.front()[0], study) for study in studies if study.front()]
    return [
        final
        for number in range(n_seeds)
        for cell, winner, study in winners
        for final in (Final(cell, "winner", winner.number, study.point(winner), number), Final(cell, "defaults", None, None, number))
    ]


def tested_finals(sweep: Sweep, studies: Iterable[CellStudy]) -> dict[str, set[Pair]]:
    """Role and number of the final runs each cell's winner and defaults have already, by the cell's name; read without changing anything."""
    setup, tested = _setup(_with_absolute_paths(sweep)), dict[str, set[Pair]]()
    for final in finals_of(studies, sweep.config.final_seeds):
        if _is_tested(final, setup):
            tested.setdefault(final.cell, set()).add((final.role, final.number))
    return tested


def _is_tested(final: Final, setup: TrialSetup) -> bool:
    return (final.folder(setup) / RUN_SUMMARY).exists()


def _setup(sweep: Sweep) -> TrialSetup:
    folder, store, compute = str(sweep.folder), str(sweep.config.output.store_path), sweep.cells[0].trial().compute
    group = group_of(folder, store, compute.model_dump_json())
    return TrialSetup(sweep.config.name, sweep.folder, group, {cell.name: cell for cell in sweep.cells}, sweep.config.pruner.rungs)


def _answer(reference: ray.ObjectRef) -> str | None:
    try:
        answer: str | None = ray.get(reference)
    except ray.exceptions.RayError as error:
        return on_one_line(error)
    return answer


def run_sweep(sweep: Sweep, view: View, retry_failed: bool = False) -> SweepReport:
    """Run a sweep, or what is left of it, to its end.

    Args:
        sweep: of `load_sweep`.
        view: who is shown where it stands.
        retry_failed: begin failed trials again, each under a new number.

    Raises:
        InputError: another process runs the sweep, data or folders cannot be used, its trials so far are of other data, the studies' directions
            are others, no host can be had.
        KeyboardInterrupt: Ctrl-C; trials at work are begun again by the next call.
    """
    started = time.monotonic()
    _check(sweep.config)
    sweep = _with_absolute_paths(sweep)
    folder = sweep.folder
    with ExitStack() as stack:
        stack.enter_context(_only_driver(folder))
        _keep_to_data(sweep, view.reporter)
        _write_settings(sweep)
        studies = open_studies(sweep, open_journal(folder / JOURNAL))
        studies.end_running()
        if retry_failed:
            studies.retry_failed()
        first = sweep.cells[0].trial()
        setup = _setup(sweep)
        write_all_rows(studies, setup)
        # begun again by the next driver, in whichever way this one ends
        stack.callback(studies.end_running)
        driver = Driver(sweep, setup, studies, view, Meter(sweep, studies, first.cluster))
        failed = _compute(driver, first.cluster, first.output.checkpoint_seconds)
        write_all_rows(studies, setup)
        retire(setup, driver.finals())
        report = SweepReport(
            str(folder),
            sweep.config.objectives,
            cell_reports(driver.meter, driver.finals(), failed, setup),
            tuple(stage_uses(studies, driver.finals(), setup)),
            time.monotonic() - started,
            driver.meter.device_unit,
            _notes(driver),
        )
        with readable_os_error(folder), atomic_file(folder / SUMMARY) as temporary:
            temporary.write_text(json.dumps(report.describe(), indent=1))
    return report


def _compute(driver: Driver, cluster: ClusterConfig, checkpoint_seconds: float) -> list[tuple[Final, str]]:
    """Search and test, on hosts that stand as long as it takes; without any where nothing is left to do."""
    config = driver.sweep.config
    if all(n >= config.trials for n in driver.studies.n_done().values()) and not _missing(driver):
        return []
    store = Path(config.output.store_path)
    with readable_os_error(store, "output.store"):
        store.mkdir(parents=True, exist_ok=True)
    with connected(cluster.address), _quiet_tune():
        pool = HostPool(HostSpec(store, store, checkpoint_seconds, 0.0, f"sweep {config.name}"), driver.setup.group, cluster)
        driver.meter.set_devices(pool.spec.gpu_share)
        with HostKeeper(pool) as keeper:
            driver.search(keeper)
            return driver.run_finals(keeper, _missing(driver))


def _missing(driver: Driver) -> list[Final]:
    return [final for final in driver.finals() if not _is_tested(final, driver.setup)]


def retire(setup: TrialSetup, finals: Sequence[Final]) -> None:
    """Put the final runs of former winners and budgets out of the readers' way: a cell has one reported winner."""
    current = {final.folder(setup).name for final in finals}
    prefixes = tuple(f"{cell}-{role}-" for cell in setup.cells for role in ("winner", "defaults"))
    folder = setup.folder / "finals"
    old = [path for path in folder.glob("*") if path.name.startswith(prefixes) and path.name not in current]
    with readable_os_error(folder):
        for path in old:
            (folder / SUPERSEDED).mkdir(exist_ok=True)
            shutil.rmtree(folder / SUPERSEDED / path.name, ignore_errors=True)
            path.rename(folder / SUPERSEDED / path.name)


def _notes(driver: Driver) -> tuple[str, ...]:
    config, left = driver.sweep.config, {name: driver.sweep.config.trials - n for name, n in driver.studies.n_done().items()}
    short = [f"{name} {n}" for name, n in left.items() if n > 0]
    if not short:
        return ()
    why = "the search ended early" if config.max_hours is None else f"max_hours={config.max_hours} were over"
    return (f"{why}: trials still to be run: {', '.join(short)}; the same command runs them.",)


def _check(config: SweepConfig) -> None:
    # a base may say so for its own runs
    if config.set.get("cluster.executor") == "inline":
        raise InputError("set: cluster.executor=inline: a sweep needs Ray; leave it out, and give cluster.workers=1 to have one process at work.")


def _with_absolute_paths(sweep: Sweep) -> Sweep:
    """A trial's process stands elsewhere, and maybe on another machine."""
    output = sweep.config.output
    own = output.model_copy(update={"root": absolute(output.root), "store": absolute(str(output.store_path))})
    return Sweep(sweep.config.model_copy(update={"output": own}), tuple(_absolute_cell(cell, own.store or "") for cell in sweep.cells))


def _absolute_cell(cell: Cell, store: str) -> Cell:
    config = cell.trial()
    paths = {"output.root": absolute(config.output.root), "output.store": store, "data.root": absolute(config.data.root)}
    if config.data.path:
        paths["data.path"] = absolute(config.data.path)
    return replace(cell, trial_values=with_settings(cell.trial_values, paths), final_values=with_settings(cell.final_values, paths))


@contextmanager
def _only_driver(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder, and sweep out what a killed driver left in it.

    Raises:
        InputError: another driver holds it, or it cannot be written.
    """
    with readable_os_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another `ray-ltdd sweep` runs the sweep in {folder}: wait for it, or give this one another name.") from None
    try:
        for left in folder.glob(".tune-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


def _keep_to_data(sweep: Sweep, reporter: Reporter) -> None:
    """Prepare all datasets; refuse those that are not what the sweep's trials so far were of."""
    configs = {cell.name: cell.trial() for cell in sweep.cells}
    by_settings = {config.data.model_dump_json(): config for config in configs.values()}
    prepared = {settings: prepare(config, reporter) for settings, config in by_settings.items()}
    datasets = {name: prepared[config.data.model_dump_json()] for name, config in configs.items()}
    require_same_data(sweep.folder, datasets)
    record_data(sweep.folder, datasets)


def _write_settings(sweep: Sweep) -> None:
    """Write the sweep's resolved settings to its folder."""
    with readable_os_error(sweep.folder), atomic_file(sweep.folder / SETTINGS) as temporary, temporary.open("w") as file:
        YAML().dump(sweep.config.model_dump(mode="json"), file)


@contextmanager
def _tune_folder(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".tune-", dir=folder, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _trial_folder_name(trial: Any) -> str:
    return str(trial.trial_id)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Set what Tune reads from the environment only, and keep its own words off the terminal: the sweep says itself what happens."""
    wanted = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        # its snapshots are never read
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    }
    before = {name: os.environ.get(name) for name in wanted}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.air", "ray.train")]
    levels = [logger.level for logger in loggers]
    os.environ |= wanted
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
