"""The Ray executor: the same bytes as in one process, whatever works on them and whatever is killed; failures in one sentence."""

import os
import signal
import time
from dataclasses import replace
from itertools import combinations

import pytest
import ray
from tiny import Watcher, config_of, failing, numbered, run, slow, task

from ray_ltdd.cluster.executor import make_executor
from ray_ltdd.cluster.hosts import list_hosts, stop_hosts
from ray_ltdd.errors import InputError
from ray_ltdd.executor import SilentReporter
from ray_ltdd.runs import open_run

pytestmark = pytest.mark.slow
STAGES = ("Experts", "Calibrate", "Select crops", "Recover", "Students")


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    """Checksums of the tiny run in this process alone."""
    return run(tmp_path_factory.mktemp("inline"), inline=True)


@pytest.fixture
def opened(tmp_path, ray_here):
    with open_run(config_of(tmp_path, "cluster.workers=2"), SilentReporter(), make_executor=make_executor) as run_here:
        yield run_here


def kill_a_host():
    """SIGKILL to the process of one that is at work."""
    hosts = [host for host in list_hosts("auto") if host.facts is not None]
    busy = [host for host in hosts if host.label] or hosts
    os.kill(busy[0].facts.pid, signal.SIGKILL)


@pytest.mark.parametrize(("workers", "order"), [pytest.param(1, "heaviest first", marks=pytest.mark.extended), (4, "by digest")])
def test_any_number_of_workers_and_any_order_give_the_bytes_of_one_process(tmp_path, inline, ray_here, monkeypatch, workers, order):
    if order == "by digest":
        monkeypatch.setattr("ray_ltdd.cluster.executor.heaviest_first", lambda tasks, costs: sorted(tasks, key=lambda task: task.key.digest))
    assert run(tmp_path, f"cluster.workers={workers}") == inline


def test_workers_killed_in_the_middle_of_every_stage_change_no_byte(tmp_path, inline, ray_here):
    watcher = Watcher(dict.fromkeys(STAGES, kill_a_host))
    assert run(tmp_path, "cluster.workers=2", reporter=watcher) == inline
    assert watcher.actions == {}, "every stage had its killing"


def test_artifacts_come_in_the_tasks_order_and_what_exists_is_not_sent(opened):
    executor = opened.executor
    assert [a.record["number"] for a in executor.compute("Stage", [task(numbered, n) for n in (2, 9, 5)])] == [2, 9, 5]
    again = executor.compute("Stage", [task(numbered, n) for n in (9, 7, 2)])
    assert [a.record["number"] for a in again] == [9, 7, 2]
    (record,) = executor.records()
    assert (record.n_computed, record.n_reused, record.n_images) == (4, 2, 34)
    assert 0 < record.n_workers <= 2 and record.busy_seconds > 0 and record.n_bytes > 0
    assert os.getpid() not in {a.record["pid"] for a in again}


def test_inputs_in_common_arrive(opened):
    shared = 10
    artifacts = opened.executor.compute("Stage", [task(numbered, n, scale=shared) for n in (1, 2, 3)])
    assert [a.tensors()["x"].item() for a in artifacts] == [10, 20, 30]


def test_tasks_run_side_by_side(opened):
    """Two workers work at the same time, each on one task at a time."""
    opened.executor.compute("Warm up", [task(slow, n, seconds=0.5) for n in (10, 20)])
    artifacts = opened.executor.compute("Stage", [task(slow, n, seconds=1.5) for n in (30, 40, 50, 60)])
    times = [(a.record["pid"], a.record["began"], a.record["ended"]) for a in artifacts]
    at_once = [(first, second) for first, second in combinations(times, 2) if first[1] < second[2] and second[1] < first[2]]
    assert len({pid for pid, _, _ in times}) == 2
    assert at_once and all(first[0] != second[0] for first, second in at_once)


def test_progress_is_told_while_a_task_runs(tmp_path, ray_here):
    told, lines = [], []

    class Listener(Watcher):
        def _told(self, title, n):
            told.append(n)

        def workers(self, shown):
            lines.extend(shown)

    with open_run(config_of(tmp_path, "cluster.workers=1"), Listener({}), make_executor=make_executor) as opened:
        opened.executor.compute("Stage", [task(slow, 100, seconds=3)])
    assert sum(told) == 100 and len(told) > 2
    assert any("number 100" in line for line in lines)


@pytest.mark.parametrize(
    ("kind", "sentence"), [("nan", "the loss became NaN: lower recover.learning_rate."), ("bug", "ZeroDivisionError: division by zero")]
)
def test_a_task_that_fails_three_times_ends_the_run_in_one_sentence(opened, tmp_path, kind, sentence):
    marks = tmp_path / "marks"
    marks.mkdir()
    with pytest.raises(InputError) as caught:
        opened.executor.compute("Recover", [task(failing, 3, kind=kind, marks=str(marks)), task(numbered, 2)])
    text = str(caught.value)
    assert text.startswith(f"Recover, number 3: {sentence} (tried 3 times, last on ") and "\n" not in text
    assert len(list(marks.iterdir())) == 3
    traceback = (opened.folder / "errors").glob("*.txt").__next__()
    assert str(traceback) in text and traceback.read_text().count("Traceback") == 3


@pytest.mark.parametrize(
    ("kind", "said"),
    [("killed once", "an expert host on .* died;"), ("memory once", r"memory ran out on .*, where one expert host is ended \(1 left\);")],
)
def test_a_host_that_runs_out_of_memory_or_dies_once_is_no_end(opened, tmp_path, kind, said):
    marks = tmp_path / "marks"
    marks.mkdir()
    with pytest.warns(UserWarning, match=f"{said}.* number 3"):
        artifacts = opened.executor.compute("Stage", [task(failing, 3, kind=kind, marks=str(marks)), task(numbered, 2)])
    assert [a.record["number"] for a in artifacts] == [3, 2] and len(list(marks.iterdir())) == 2


@pytest.mark.extended
def test_a_task_too_large_for_one_host_alone_is_one_sentence_with_what_to_lower(opened, tmp_path):
    """The second of two hosts is taken out, the last one stays."""
    marks = tmp_path / "marks"
    marks.mkdir()
    sentence = (
        r"^Stage, number 3: RuntimeError: .*allocate memory.* \(tried 3 times, [^\n]*\): memory ran out: raise cluster.gpu_share .*batch_size\.$"
    )
    with pytest.warns(UserWarning, match="memory ran out") as warned, pytest.raises(InputError, match=sentence):
        opened.executor.compute("Stage", [task(failing, 3, kind="torch's memory", marks=str(marks)), task(numbered, 2)])
    assert sum("memory ran out" in str(warning.message) for warning in warned) == 1
    assert len(list(marks.iterdir())) == 3 and len(list_hosts("auto")) == 1


def test_hosts_that_keep_dying_under_a_task_end_the_run(opened, tmp_path, monkeypatch):
    from ray_ltdd.cluster import dispatch

    monkeypatch.setattr(dispatch, "MOST_DEATHS", 3)
    marks = tmp_path / "marks"
    marks.mkdir()
    with pytest.raises(InputError, match=r"^Stage, number 3: 3 expert hosts died under it; the last: [^\n]+$"):
        opened.executor.compute("Stage", [task(failing, 3, kind="killed", marks=str(marks))])


def test_a_request_no_node_can_satisfy_says_so(tmp_path, ray_here):
    settings = ("cluster.cpus_per_worker=64", "cluster.wait_seconds=2")
    started = time.monotonic()
    with open_run(config_of(tmp_path, *settings), SilentReporter(), make_executor=make_executor) as opened, pytest.raises(InputError) as caught:
        opened.executor.compute("Stage", [task(numbered, 1)])
    assert 2 <= time.monotonic() - started < 10
    assert str(caught.value).startswith("no node of the cluster can hold an expert host of 64 CPU, 1.5 GB (nodes: 4 CPU, ")


def test_kept_hosts_serve_the_next_run_and_are_stopped_by_name(tmp_path, ray_here):
    config = config_of(tmp_path, "cluster.workers=2", "cluster.keep_hosts=true")
    pids = []
    for number in (1, 2):
        with open_run(config, SilentReporter(), make_executor=make_executor) as opened:
            pids.append({a.record["pid"] for a in opened.executor.compute("Stage", [task(slow, n, seconds=2.0) for n in (10 * number, 11 * number)])})
    hosts = list_hosts("auto")
    assert len(hosts) == 2 and {host.facts.pid for host in hosts} == pids[0] == pids[1]
    assert len({host.group for host in hosts}) == 1 and all(host.state == "idle" for host in hosts)
    with pytest.raises(InputError, match="there is no host of the group abc"):
        stop_hosts("auto", "abc")
    assert len(stop_hosts("auto", hosts[0].group)) == 2
    deadline = time.monotonic() + 10
    while list_hosts("auto") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list_hosts("auto") == []


def test_a_run_behind_kept_hosts_of_other_experts_says_who_holds_the_cluster(tmp_path, ray_here):
    """It waits, and goes on once they are stopped."""
    with open_run(config_of(tmp_path, "cluster.cpus_per_worker=4", "cluster.keep_hosts=true"), SilentReporter(), make_executor=make_executor) as kept:
        kept.executor.compute("Stage", [task(numbered, 1)])
        group = kept.executor.group
    stopped = []

    class Operator(SilentReporter):
        def workers(self, lines):
            if warned and not stopped:
                stopped.extend(stop_hosts("auto", group))

    config = config_of(tmp_path, "cluster.cpus_per_worker=4", "cluster.wait_seconds=1", "observer.model.width=16")
    with (
        pytest.warns(UserWarning, match=f"no expert host has started yet: .* \\(groups: {group}\\): `ray-ltdd hosts list`") as warned,
        open_run(config, Operator(), make_executor=make_executor) as opened,
    ):
        (artifact,) = opened.executor.compute("Stage", [task(numbered, 2)])
    assert len(stopped) == 1 and artifact.record["number"] == 2 and len(warned) == 1


def test_idle_hosts_that_others_have_ended_are_no_deaths_of_the_next_task(tmp_path, ray_here, monkeypatch):
    """Two runs of a group share hosts, and the one that created them ends."""
    from ray_ltdd.cluster import dispatch

    monkeypatch.setattr(dispatch, "MOST_DEATHS", 2)
    config = config_of(tmp_path, "cluster.workers=3")
    with (
        open_run(config, SilentReporter(), make_executor=make_executor) as first,
        open_run(config_of(tmp_path, "cluster.workers=3", "evaluate.seeds=9"), SilentReporter(), make_executor=make_executor) as second,
    ):
        first.executor.compute("Stage", [task(slow, n, seconds=2.0) for n in (10, 20, 30)])
        second.executor.compute("Stage", [task(slow, n, seconds=2.0) for n in (40, 50, 60)])
        assert first.executor.group == second.executor.group
        first.executor.close()
        with pytest.warns(UserWarning, match="died; number 99"):
            (artifact,) = second.executor.compute("Stage", [task(numbered, 99)])
    assert artifact.record["number"] == 99


def test_a_run_ends_the_hosts_it_created(opened):
    opened.executor.compute("Stage", [task(numbered, 1)])
    assert len(list_hosts("auto")) == 1
    opened.executor.close()
    deadline = time.monotonic() + 10
    while list_hosts("auto") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list_hosts("auto") == []


def test_hosts_of_other_experts_are_another_group(tmp_path, ray_here):
    first, second = (
        open_run(config_of(tmp_path, *more), SilentReporter(), make_executor=make_executor).executor.group
        for more in ([], ["observer.model.width=16"])
    )
    same = open_run(config_of(tmp_path, "evaluate.seeds=9"), SilentReporter(), make_executor=make_executor).executor.group
    assert first == same != second


def test_a_missing_store_is_one_sentence(tmp_path, ray_here):
    """As on a node that does not mount it."""
    with open_run(config_of(tmp_path), SilentReporter(), make_executor=make_executor) as opened:
        opened.executor.spec = replace(opened.executor.spec, probe=tmp_path / "nowhere")
        with pytest.raises(InputError, match=r"does not see the artifact store .*: put output.root and data.root on storage"):
            opened.executor.compute("Stage", [task(numbered, 1)])


def test_an_address_without_a_cluster_is_one_sentence(tmp_path):
    ray.shutdown()
    refused = pytest.raises(InputError, match=r"cluster.address=127.0.0.1:1: no Ray cluster answers")
    with open_run(config_of(tmp_path, "cluster.address=127.0.0.1:1"), SilentReporter(), make_executor=make_executor) as opened, refused:
        opened.executor.compute("Stage", [task(numbered, 1)])
