"""What a sweep says of its cells while it runs, from studies with trials of known durations."""

from datetime import datetime, timedelta

import pytest
from optuna.trial import TrialState, create_trial
from tiny_sweeps import sweep_of

from ray_ltdd.cluster.status import Meter
from ray_ltdd.cluster.studies import JOURNAL, open_journal, open_studies
from ray_ltdd.cluster.trial import BUSY
from ray_ltdd.placement import ClusterConfig

CLUSTER = ClusterConfig(cpus_per_worker=3)


@pytest.fixture
def watched(tmp_path):
    """A sweep of two cells at two trials at a time, its studies and their meter; nothing has run."""
    sweep = sweep_of(tmp_path, concurrency=2)
    sweep.folder.mkdir(parents=True)
    studies = open_studies(sweep, open_journal(sweep.folder / JOURNAL))
    return list(studies), Meter(sweep, studies, CLUSTER)


def ended(study, seconds, begun=None, state=TrialState.COMPLETE):
    """Add a trial that took `seconds`."""
    trial = create_trial(state=state, value=None if state == TrialState.FAIL else 50.0, user_attrs={BUSY: seconds / 2})
    trial.datetime_start = begun or datetime.now()
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
    study.study.add_trial(trial)


def etas(meter):
    return [cell.eta_seconds for cell in meter.status("searching", {}).cells]


def test_the_time_left_follows_from_the_trials_of_this_call(watched):
    (first, second), meter = watched
    a, b = first.cell.name, second.cell.name
    meter.waiting = lambda: [a, b, a, b, b]
    assert etas(meter) == [None, None], "no trial has ended"
    ended(first, 3600, begun=datetime.now() - timedelta(days=1))
    ended(first, 0.01, state=TrialState.FAIL)
    assert etas(meter) == [None, None], "an earlier call's trials ran on other hosts, a failed one says nothing"
    ended(first, 30)
    ended(second, 50, state=TrialState.PRUNED)
    # 40 s a trial, two at a time: the first cell's last is the third in line, the second's the fifth
    assert etas(meter) == pytest.approx([60, 100])
    second.study.ask()
    assert etas(meter) == pytest.approx([60, 120])
    meter.waiting = list
    assert etas(meter) == [None, pytest.approx(40)], "the first has nothing left, the second a trial at work"


def test_busy_hosts_are_counted_with_what_they_hold(watched):
    (first, _), meter = watched
    ended(first, 7200)
    hours = [cell.device_hours for cell in meter.status("searching", {}).cells]
    assert hours == pytest.approx([CLUSTER.cpus_per_worker, 0]) and meter.device_unit == "CPU-hours"
    meter.set_devices(0.25)
    status = meter.status("searching", {"b": "", "a": "recovery"})
    assert status.cells[0].device_hours == pytest.approx(0.25) and (status.device_unit, status.hosts) == ("GPU-hours", ("recovery", ""))
