"""What a cluster does to a run: nodes that vanish, a driver that is killed. The final bytes are those of an undisturbed run."""

import os
import signal
import subprocess
import time

import psutil
import pytest
import ray
from commands import checksums, command, environment, tiny_run
from ray.cluster_utils import Cluster
from tiny import UNITS, Watcher, config_of, failing, run, task

from ray_ltdd.cluster.executor import make_executor
from ray_ltdd.executor import SilentReporter
from ray_ltdd.runs import open_run

pytestmark = pytest.mark.slow

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 100,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 5,
}


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    return run(tmp_path_factory.mktemp("inline"), inline=True)


@pytest.fixture
def cluster():
    """A head without CPUs, as in cluster.yaml; nodes come and go."""
    ray.shutdown()
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20, "_system_config": QUICK_TO_NOTICE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, namespace="ray_ltdd", log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster):
    return cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)


@pytest.mark.extended
def test_a_node_killed_in_the_middle_changes_no_byte(tmp_path, inline, cluster):
    nodes = [add_node(cluster), add_node(cluster)]

    def kill_a_node():
        cluster.remove_node(nodes.pop(), allow_graceful=False)

    assert (
        run(tmp_path, "cluster.workers=2", reporter=Watcher({"Recover": kill_a_node, "Students": lambda: nodes.append(add_node(cluster))})) == inline
    )


@pytest.mark.extended
def test_a_host_that_rays_memory_monitor_ends_is_replaced(tmp_path):
    """Ray then raises an error of its own, not that of an actor that died."""
    ray.shutdown()
    memory = psutil.virtual_memory()
    # room for whatever other tests take meanwhile
    threshold = 1 - memory.available / memory.total * 0.7
    monitored = {"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 50}
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        namespace="ray_ltdd",
        _system_config=monitored,
    )
    marks = tmp_path / "marks"
    marks.mkdir()
    try:
        with (
            open_run(config_of(tmp_path, "cluster.workers=1"), SilentReporter(), make_executor=make_executor) as opened,
            pytest.warns(UserWarning, match=r"an expert host on .* died; number 3"),
        ):
            (artifact,) = opened.executor.compute("Stage", [task(failing, 3, kind="monitor once", marks=str(marks))])
    finally:
        ray.shutdown()
    assert artifact.record["number"] == 3 and len(list(marks.iterdir())) == 2


class Preemptor(SilentReporter):
    """Takes a node away and adds a new one every few seconds, from the driver's own thread: Ray starts nodes nowhere else."""

    def __init__(self, cluster, seconds):
        self.cluster, self.seconds, self.n_killed = cluster, seconds, 0
        self.node, self.since = add_node(cluster), time.monotonic()

    def workers(self, lines):
        if time.monotonic() - self.since > self.seconds:
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.n_killed += 1
            self.node, self.since = add_node(self.cluster), time.monotonic()


def test_spot_nodes_that_die_every_few_seconds_change_no_byte(tmp_path, cluster):
    """One node stays; another is taken away every few seconds and replaced by a new one, as preempted spot machines are."""
    add_node(cluster)
    preemptor = Preemptor(cluster, 3)
    disturbed = run(tmp_path / "disturbed", "cluster.workers=2", reporter=preemptor)
    assert preemptor.n_killed >= 2
    assert disturbed == run(tmp_path / "undisturbed", inline=True)


@pytest.mark.extended
@pytest.mark.parametrize("title", ["Recover", "Students"])
def test_a_killed_driver_is_continued_by_the_same_command(tmp_path, inline, title):
    """The Ray it had started dies with it; nothing computed is lost, nothing half-written is used."""
    arguments = tiny_run(tmp_path, *UNITS, "cluster.workers=2")
    first = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    stage = {"Recover": "recover", "Students": "students"}[title]
    deadline = time.monotonic() + 200
    while not list((tmp_path / "store" / stage).glob("*/manifest.json")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert first.poll() is None, first.stdout.read()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run(command(*arguments, "--quiet"), env=environment(), check=True, capture_output=True, timeout=280)
    assert checksums(tmp_path) == inline
