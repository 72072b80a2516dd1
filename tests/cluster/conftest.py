"""A Ray on this machine for the tests, and the tiny run they compare."""

import os

import pytest
import ray

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# the hosts are all the processes a test wants: idle ones, one a logical CPU, would only import ray
os.environ.setdefault("RAY_prestart_worker_first_driver", "false")


@pytest.fixture(scope="module")
def ray_here():
    """Four logical CPUs; real processes."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False, namespace="ray_ltdd")
    yield
    ray.shutdown()
