"""What all tests share: one torch thread, no compilation, small real data, a home folder of their own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

LONGEST_FIRST = ("test_sweep", "test_failures", "test_ray_executor", "test_ray_failures", "test_end_to_end", "test_job_server", "test_data_parallel")


def pytest_configure(config: pytest.Config) -> None:
    """Give this test run an empty home folder of its own, which test processes, Ray's and notebooks inherit."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    home = Path(tempfile.mkdtemp(prefix="ray-ltdd-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    # compiled kernels lie there under a name made of their source: those of an earlier test run spare each process three seconds
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = {"XDG_CACHE_HOME": str(cache if os.access(cache, os.W_OK) else home / "cache")}
    # data.root lies in the home folder: digits that an earlier version decoded there would be read in place of what this one decodes. And the user's
    # matplotlibrc is not ours to test, and the font list of the home folder can lack fonts: one written while an installation was being removed named
    # only the system's, and every notebook with a formula then warned
    os.environ |= {**own, "HOME": str(home), "MPLCONFIGDIR": str(home / "matplotlib")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take minutes first: test processes take whole files, and one that began last would be waited for by all others."""
    rank = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    # two threads a test wait for each other at every small operation when test processes share the cores: the same tests took 22 s with one
    # thread and several minutes with two beside one busy process
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with cifar10/ and cifar100/, Parquet files in the hub's schema; skips where it is absent."""
    folder = Path(os.environ.get("RAY_LTDD_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not all((folder / name / "train.parquet").is_file() for name in ("cifar10", "cifar100")):
        pytest.skip(f"no CIFAR files in {folder}")
    return folder


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system in memory; skips where that is not permitted."""
    folder, shells = tmp_path / "mount", []
    folder.mkdir()

    def mount(options):
        # the shell's input ends when this process does, however it does: a killed test run leaves no mount behind
        script = 'mount -t tmpfs -o "$0" tmpfs "$1" && echo mounted && cat; umount -l "$1"'
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        shells.append(subprocess.Popen(["sh", "-c", script, options, str(folder)], **pipes, start_new_session=True))
        if not shells[0].stdout.readline():
            pytest.skip("mounting is not permitted here")
        return folder

    yield mount
    for shell in shells:
        shell.communicate()
