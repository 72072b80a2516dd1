"""Jobs through Ray's real job server, on a cluster of one machine with token authentication: what `docs/cluster.md` tells a user to do."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from commands import ROOT, checksums, cli, command, tiny_run

RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS, STOP_SECONDS, START_ATTEMPTS = 60, 20, 3

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class JobServer:
    """A running head with its job server.

    Attributes:
        address: of the job server, as `ray job submit --address` takes it.
        environment: of a process that may use the cluster; it holds the way to the token.
    """

    address: str
    environment: dict[str, str]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def submit(self, *entrypoint: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, which prints the job's log and ends with it."""
        arguments = [RAY, "job", "submit", "--address", self.address, "--", *entrypoint]
        return subprocess.run(arguments, capture_output=True, text=True, env=environment or self.environment, timeout=200)

    def version(self, token: str | None) -> int:
        """The HTTP status of the simplest question to the server."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{self.address}/api/version", headers=headers), timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def free_ports(count):
    """Ports that nobody listens to; held together, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_head(environment):
    """`ray start --head`, in the foreground and on ports of its own, so that other Rays on this machine are not disturbed."""
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port", "runtime-env-agent-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    arguments = [RAY, "start", "--head", "--block", "--dashboard-host", "127.0.0.1", "--include-dashboard", "true", "--disable-usage-stats"]
    arguments += ["--node-ip-address", "127.0.0.1", "--num-cpus", "1", "--object-store-memory", str(100 * 2**20)]
    arguments += [word for name, port in ports.items() for word in (f"--{name}", str(port))]
    with start_log(environment).open("w") as log:
        # jobs start where Ray was started, as on a cluster's head
        process = subprocess.Popen(arguments, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    return process, JobServer(f"http://127.0.0.1:{ports['dashboard-port']}", environment)


@contextmanager
def running_head(environment, token):
    """A head that answers. Another test process may take one of its ports between our look and Ray's: Ray then ends, and is started on others."""
    for _ in range(START_ATTEMPTS):
        process, server = start_head(environment)
        deadline = time.monotonic() + START_SECONDS
        try:
            while process.poll() is None:
                if server.version(token) == 200:
                    yield server
                    return
                assert time.monotonic() < deadline, start_log(environment).read_text()
                time.sleep(0.5)
        finally:
            stop_head(process)
    raise AssertionError(start_log(environment).read_text())


def start_log(environment):
    return Path(environment["RAY_TMPDIR"], "start.log")


def stop_head(process):
    """End this Ray and its processes, by their numbers: `ray stop` would end every Ray on the machine."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    process.terminate()
    _, alive = psutil.wait_procs(family[1:], STOP_SECONDS)
    for one in alive:
        one.kill()
    process.wait(STOP_SECONDS)


@pytest.fixture(scope="module")
def token():
    return secrets.token_hex(32)


@pytest.fixture(scope="module")
def job_server(token):
    # paths of sockets are limited to 107 characters, which pytest's own folders come near
    folder = Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        with running_head({name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | own, token) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.extended
def test_a_run_as_a_job_ends_with_the_bytes_of_a_run_in_process(job_server, tmp_path):
    settings = ["cluster.executor=ray", "cluster.address=auto", "cluster.workers=1", "cluster.gpu_share=0", "cluster.memory_gb=1"]
    done = job_server.submit(*command(*tiny_run(tmp_path / "job", *settings)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Run folder: {tmp_path}/job/" in done.stdout and "distilled, soft labels" in done.stdout and "succeeded" in done.stdout
    here = cli(*tiny_run(tmp_path / "here", "cluster.executor=inline"))
    assert here.returncode == 0, here.stderr
    expected = checksums(tmp_path / "here")
    assert len(expected) >= 10 and checksums(tmp_path / "job") == expected


def test_a_job_that_fails_says_so_and_how(job_server):
    done = job_server.submit(*command("show", "configs/quikstart.yaml"))
    assert done.returncode != 0
    assert "did you mean" in done.stdout and "failed" in done.stdout + done.stderr


def test_nobody_gets_in_without_the_token(job_server, tmp_path, token):
    assert (job_server.version(token), job_server.version(None), job_server.version("x" * 64)) == (200, 401, 403)
    stranger = {name: value for name, value in job_server.environment.items() if name != "RAY_AUTH_TOKEN_PATH"} | {"HOME": str(tmp_path)}
    for environment in (stranger | {"RAY_AUTH_MODE": "disabled"}, stranger | {"RAY_AUTH_TOKEN": "x" * 64}):
        done = job_server.submit("touch", str(tmp_path / "entered"), environment=environment)
        assert done.returncode != 0 and not (tmp_path / "entered").exists()


def test_the_job_server_listens_to_this_machine_only(job_server):
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == job_server.port]
    assert listening == ["127.0.0.1"]
