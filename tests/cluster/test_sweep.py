"""A sweep for real: Ray, Tune, Optuna's journal, digits. Its driver is killed, interrupted, a host is killed, trials fail; then what is there."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.dataset as ds
import pytest
from commands import cli, command, environment
from optuna.trial import TrialState
from tiny_sweeps import sweep_file

from ray_ltdd.artifacts import MANIFEST
from ray_ltdd.cluster.hosts import list_hosts
from ray_ltdd.cluster.studies import INTERRUPTED, JOURNAL, found_studies, open_journal, open_studies
from ray_ltdd.cluster.sweep import run_sweep
from ray_ltdd.data.belonging import RECORD
from ray_ltdd.errors import InputError
from ray_ltdd.executor import SilentReporter
from ray_ltdd.results.load import load_results
from ray_ltdd.results.rows import SCHEMA
from ray_ltdd.runs import reopen_config
from ray_ltdd.search.load import load_sweep

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*expert host on.*died")]

N_TRIALS = 3
STATES = ("complete", "pruned", "failed")
EXPLODES = (1e20, 1e21)
SWEEP = {
    "trials": N_TRIALS,
    "concurrency": 2,
    "final_seeds": 2,
    "search": {
        "evaluate.learning_rate": {"choices": [3e-3, *EXPLODES]},
        "recover.steps": {"low": 4, "high": 20},
        "relabel.tau": {"low": 0, "high": 2},
    },
    "sampler": {"kind": "random"},
    "pruner": {"kind": "asha", "evaluation_epochs": [6, 18], "grace": 6, "reduction_factor": 3},
}
OVERRIDES = ("cluster.workers=2", "cluster.attempts=1")


@dataclass
class Watching:
    """A view that does something once, when a trial is done and others are at work on hosts."""

    action: object
    reporter: SilentReporter = field(default_factory=SilentReporter)
    seen: list = field(default_factory=list)

    def update(self, status):
        self.seen.append(status)
        if self.action and any(status.hosts) and sum(cell.n_done for cell in status.cells) > 1:
            action, self.action = self.action, None
            action()


def kill_driver(path):
    """Start the command with one trial at a time, and SIGKILL it when one is done and another is at work."""
    process = subprocess.Popen(command("sweep", str(path), *OVERRIDES, "--concurrency", "1", "cluster.workers=1", "--quiet"), env=environment())
    journal, deadline = load_sweep(path).folder / JOURNAL, time.monotonic() + 120
    while True:
        whole = [line for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")] if journal.exists() else []
        # Optuna's codes: 5 a parameter is drawn, 6 a state is set: 1 complete, 2 pruned, 3 failed
        told = [json.loads(line) for line in whole]
        ended = {log["trial_id"] for log in told if log["op_code"] == 6 and log["state"] in (1, 2, 3)}
        if ended and {log["trial_id"] for log in told if log["op_code"] == 5} - ended:
            break
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL


def press_ctrl_c():
    # whoever started the tests in the background has had SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)


def kill_a_host():
    os.kill(next(host for host in list_hosts("auto") if host.facts is not None).facts.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Finished:
    """The sweep after all that: its folder, its file, loaded, what it said at the end, what was seen meanwhile."""

    folder: Path
    path: Path
    sweep: object
    outcome: dict
    seen: list

    @property
    def store(self):
        return self.folder / "runs" / "store"

    def studies(self):
        return open_studies(self.sweep, open_journal(self.sweep.folder.absolute() / JOURNAL))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_here):
    folder = tmp_path_factory.mktemp("sweep")
    path = sweep_file(folder, **SWEEP)
    kill_driver(path)
    sweep = load_sweep(path, OVERRIDES)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, Watching(press_ctrl_c))
    left = open_studies(sweep, open_journal(sweep.folder.absolute() / JOURNAL))
    assert all(trial.state != TrialState.RUNNING for study in left for trial in study.trials()), "Ctrl-C leaves nothing at work"
    assert 0 < sum(study.n_done() for study in left) < 2 * N_TRIALS
    view = Watching(kill_a_host)
    report = run_sweep(sweep, view)
    assert view.action is None and list_hosts("auto") == [], "one was killed, and nothing stays behind"
    return Finished(folder, path, sweep, json.loads(json.dumps(report.describe())), view.seen)


def test_there_are_the_trials_asked_for_none_twice_none_for_ever_at_work(finished):
    n_interrupted = 0
    for study in finished.studies():
        trials, counted = study.trials(), study.counted()
        interrupted = [trial for trial in trials if trial.user_attrs.get("reason") == INTERRUPTED]
        n_interrupted += len(interrupted)
        assert len(trials) == N_TRIALS + len(interrupted) and study.n_done() == len(counted) == N_TRIALS
        assert not [trial for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
        assert len({json.dumps(study.point(trial)) for trial in counted}) == N_TRIALS
        assert all(trial.state == TrialState.FAIL for trial in interrupted)
    assert n_interrupted >= 2, "one by SIGKILL, one or two by Ctrl-C"


def test_every_trial_has_its_values_or_its_reason(finished):
    sentence = "a student's loss became NaN or infinite: lower evaluate.learning_rate (now 1e+2"
    n_failed = 0
    for study, cell in zip(finished.studies(), finished.outcome["cells"], strict=True):
        failed = [trial for trial in study.counted() if trial.state == TrialState.FAIL]
        n_failed += len(failed)
        assert [t.number for t in failed] == [t.number for t in study.counted() if t.params["evaluate.learning_rate"] in EXPLODES]
        assert all(sentence in trial.user_attrs["reason"] for trial in failed)
        assert cell["status"]["n_failed"] == sum(cell["failures"].values()) == len(failed) < N_TRIALS
        for trial in study.counted():
            if trial.state != TrialState.FAIL:
                assert trial.values and next(iter(trial.intermediate_values)) == 6
                # one begun again may find all it needs computed
                assert trial.user_attrs["busy_seconds"] > 0 or "retry_of" in trial.user_attrs
    assert n_failed > 0


def test_a_search_never_sees_the_test_set(finished):
    """Trials have the base's seed, final runs others; what networks were tested on is part of their artifacts' keys."""
    paths = [path for stage in ("students", "student_parts", "scores") for path in finished.store.glob(f"{stage}/*/{MANIFEST}")]
    manifests = [json.loads(path.read_text()) for path in paths]
    assert {(manifest["seed"] == 0, manifest["settings"]["part"]) for manifest in manifests} == {(True, "validation"), (False, "test")}
    assert len(manifests) > 20


def test_experts_are_trained_once_and_winners_are_compared_with_the_defaults(finished):
    experts = list(finished.store.glob(f"experts/*/{MANIFEST}"))
    # an observer and a teacher of two cells, for all trials and for each of two final seeds; winner and defaults share theirs
    assert len(experts) == 2 * 2 * 3
    asked = next(stage for stage in finished.outcome["stages"] if stage["title"] == "Experts")
    assert asked["n_computed"] + asked["n_shared"] == 2 * (2 * N_TRIALS + 2 * 2 * 2) and 0 < asked["saved_seconds"] < asked["compute_seconds"]
    for cell in finished.outcome["cells"]:
        assert cell["winner_test"]["n"] == cell["defaults_test"]["n"] == cell["comparison"]["n"] == 2
        assert cell["comparison"]["mean"] == pytest.approx(cell["winner_test"]["mean"] - cell["defaults_test"]["mean"])
        assert not cell["winner_is_defaults"] or cell["winner_test"] == cell["defaults_test"]
        assert cell["winner"]["values"]["top1"] == cell["status"]["best"] >= (cell["status"]["default"] or 0)


def test_it_could_be_watched(finished):
    assert max(cell.device_hours for status in finished.seen for cell in status.cells) > 0
    assert {len(status.hosts) for status in finished.seen} >= {2} and finished.seen[-1].phase.endswith("of 8 runs done")


def test_every_reader_finds_one_table_with_a_row_a_trial(finished):
    files = sorted(map(str, (finished.folder / "runs").glob("**/rows-*.parquet")))
    frame = ds.dataset(files, schema=SCHEMA).to_table().to_pandas()
    trials = frame.query("role == 'trial'")
    counted = [(study.cell.name, trial.number) for study in finished.studies() for trial in study.counted()]
    assert sorted(zip(trials["cell"], trials["trial"], strict=True)) == sorted(counted) and set(trials["part"]) == {"validation"}
    for row in trials.to_dict("records"):
        params = json.loads(row["params"])
        assert json.loads(row["settings"])["recover"]["steps"] == params["recover.steps"]
        if row["state"] == "failed":
            assert params["evaluate.learning_rate"] in EXPLODES and "NaN" in row["reason"] and row["top1"] != row["top1"]
            continue
        assert row["n_tested"] == 180 and list(row["objectives"]) == [row["top1"]] and len(row["per_class"]) == 10
        assert row["epochs"] in ({"complete": [24], "pruned": [6, 18]}[row["state"]])
        assert dict(row["stage_seconds"])["Recover"] > 0 and row["peak_memory_mb"] > 0
    finals = frame.query("role != 'trial' and method == 'distilled'")
    assert len(finals) == 8 and set(finals["part"]) == {"test"} and set(finals["role"]) == {"winner", "defaults"}
    query = f"SELECT role, state, count(*) AS n FROM read_parquet('{finished.folder}/runs/**/rows-*.parquet', union_by_name = true) GROUP BY ALL"
    assert duckdb.sql(query).df().groupby("role")["n"].sum().to_dict() == frame.groupby("role").size().to_dict()
    assert len(pd.read_parquet(files, schema=SCHEMA)) == len(frame) == len(load_results(finished.folder / "runs", STATES))


def test_export_writes_all_rows(finished):
    done = cli("export", str(finished.sweep.folder), "--output", str(finished.folder / "all.csv"))
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(finished.folder / "all.csv")) == len(load_results(finished.sweep.folder, STATES))


def test_a_trials_folder_is_a_runs(finished):
    study = next(iter(finished.studies()))
    trial = study.counted()[-1]
    config = reopen_config(finished.sweep.folder / "trials" / f"{study.cell.study_name}-{trial.number:04d}")
    assert config.fingerprint == study.cell.trial(study.point(trial)).fingerprint


def test_the_same_command_says_it_again_and_nothing_else(finished):
    done = cli("sweep", str(finished.path), *OVERRIDES, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["cells"] == finished.outcome["cells"]


def test_the_plan_starts_nothing_and_knows_what_is_done(finished, tmp_path):
    done = cli("sweep", str(finished.path), "--trials", str(N_TRIALS + 1), "--plan", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [cell["n_trials"] for cell in plan["cells"]] == [1, 1] and plan["compute_seconds"] > 0
    nothing = json.loads(cli("sweep", str(finished.path), *OVERRIDES, "--plan", "--json").stdout)
    assert [(cell["n_trials"], cell["n_finals"]) for cell in nothing["cells"]] == [(0, 0)] * 2 and nothing["stages"] == []
    assert found_studies(load_sweep(sweep_file(tmp_path, **SWEEP))) == [] and not (tmp_path / "runs").exists()


def test_a_sweep_does_not_go_on_with_other_data(tmp_path):
    sweep = load_sweep(sweep_file(tmp_path, **SWEEP), OVERRIDES)
    sweep.folder.mkdir(parents=True)
    (sweep.folder / RECORD).write_text(json.dumps({sweep.cells[-1].name: {"fingerprint": "0" * 64, "source": "elsewhere"}}))
    with pytest.raises(InputError, match=r"has results of other data \(elsewhere, fingerprint 00000000\)"):
        run_sweep(sweep, Watching(None))
    assert {path.name for path in sweep.folder.iterdir()} <= {RECORD, ".lock"}
