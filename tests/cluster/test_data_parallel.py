"""Ray Train: two processes train one expert; one is killed in the middle and the bytes are the same; the task's own errors arrive as they are."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError

from ray_ltdd.artifacts import ArtifactStore, CheckpointSlot, Key
from ray_ltdd.cluster.data_parallel import Assignment, Training, train_together
from ray_ltdd.cluster.dispatch import MOST_DEATHS
from ray_ltdd.config import ExperimentConfig, validate
from ray_ltdd.data.prepare import prepare_dataset
from ray_ltdd.data.split import draw_split
from ray_ltdd.errors import InputError
from ray_ltdd.tasks.distil import expert_task
from ray_ltdd.workbench import WorkbenchSpec, split_payload
from ray_ltdd.yaml_files import read_yaml

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_here")]

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TRAINING = {"epochs": 40, "batch_size": 32, "learning_rate": 0.05, "accuracy_floor": 0.0}


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    config = experiment()
    data = config.data.model_copy(update={"root": str(root)})
    prepared = prepare_dataset(data, lambda *_: None)
    split, _ = ArtifactStore(root / "store").get_or_compute(Key("split", 1, {}, {}, 0), lambda _: split_payload(draw_split(config.split, prepared)))
    return WorkbenchSpec(prepared, split, config.compute)


def experiment(**training) -> ExperimentConfig:
    values = read_yaml(QUICKSTART)
    values["experts"] = {**values.get("experts", {}), **TRAINING, **training}
    for role in ("observer", "teacher"):
        values[role] = {**values.get(role, {}), "model": {"architecture": "convnet", "width": 8, "normalization": "batch"}}
    values["cluster"] = {"expert_workers": 2, "memory_gb": 0.5}
    values["compute"] = {"compile": "off"}
    return validate(values, "test")


def train(spec, folder, advance=lambda _: None, cluster=None, **training):
    config = experiment(**training)
    task = expert_task(config, spec.open(), config.observer)
    cluster = config.cluster.model_copy(update=cluster or {})
    return train_together(task, spec, folder / "checkpoints" / "expert.safetensors", 0.0, cluster, advance), task


def workers():
    """The training processes of this test's own Ray, and of no other."""
    own = [process.as_dict(["pid", "cmdline"]) for process in psutil.Process().children(recursive=True)]
    return sorted(process["pid"] for process in own if "RayTrainWorker" in " ".join(process["cmdline"] or []))


@pytest.fixture(scope="module")
def whole(spec, tmp_path_factory):
    folder, done = tmp_path_factory.mktemp("whole"), []
    payload, task = train(spec, folder, done.append)
    return payload, task, folder, done


def test_two_processes_train_an_expert(whole, spec):
    payload, task, folder, done = whole
    assert sum(done) == task.n_images and len(done) > 1 and min(done) > 0
    assert payload.record["n_steps"] == task.n_images / (2 * 32)
    assert payload.made["seconds"] > 0 and payload.made["device"] and payload.made["peak_memory_mb"] > 0, "what a plan reads is the processes' own"
    expert = spec.open().new_expert(task.inputs["settings"].model, 0)
    expert.load_state_dict(payload.tensors)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["expert.safetensors"], "nothing but the checkpoint is left"


@pytest.mark.extended
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_does_not_change_a_byte(whole, spec, tmp_path, victim):
    payload, task, _, _ = whole
    killed, done = [], []

    def advance(n):
        done.append(n)
        if not killed and sum(done) > task.n_images // 4:
            assert (tmp_path / "checkpoints" / "expert.safetensors").exists()
            killed.append(workers()[victim])
            os.kill(killed[0], signal.SIGKILL)

    again, _ = train(spec, tmp_path, advance)
    assert killed and sum(done) == task.n_images
    assert again.record == payload.record and again.tensors.keys() == payload.tensors.keys()
    for name, tensor in payload.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), name


@pytest.mark.extended
def test_the_tasks_own_error_arrives_at_once_as_its_sentence(spec, tmp_path):
    with pytest.raises(InputError, match=r"NaN or infinite in epoch 1 of 40: lower experts.learning_rate \(now 1e\+20\)"):
        train(spec, tmp_path, learning_rate=1e20)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_processes_that_find_no_room_are_one_sentence(spec, tmp_path):
    started = time.monotonic()
    with pytest.raises(InputError, match=r"wait_seconds=2 there was no room for its 2 processes of 3 CPU, 0.5 GB each: lower cluster.expert_workers"):
        train(spec, tmp_path, cluster={"cpus_per_worker": 3.0, "wait_seconds": 2.0})
    assert time.monotonic() - started < 10


@pytest.mark.extended
def test_what_was_left_for_a_driver_that_died_is_taken(whole, spec, tmp_path):
    """The outcome and nothing else: it is there at once, and no process is started."""
    payload, task, _, _ = whole
    checkpoint = tmp_path / "checkpoints" / "expert.safetensors"
    tensors = {f"tensor/{name}": tensor for name, tensor in payload.tensors.items()}
    told = torch.tensor(list(json.dumps({"record": payload.record, "made": payload.made}).encode()), dtype=torch.uint8)
    Assignment(task, spec, checkpoint, 0.0, 1).outcome().offer(lambda: {**tensors, "told": told})
    done = []
    again, _ = train(spec, tmp_path, done.append)
    assert done == [task.n_images] and (again.record, again.made) == (payload.record, payload.made) and list(checkpoint.parent.iterdir()) == []
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in payload.tensors.items())


def fail(training, **failures):
    training._settle(WorkerGroupError("", {int(rank[1:]): failure for rank, failure in failures.items()}))


@pytest.mark.extended
def test_failures_count_until_a_checkpoint_is_reached(whole, spec, tmp_path):
    """The training's own failures `attempts` times, deaths more often; who merely lost the connection to another is no reason."""
    _, task, _, _ = whole
    assignment = Assignment(task, spec, tmp_path / "expert.safetensors", 0.0, 1)
    training = Training(assignment, experiment().cluster, {"CPU": 1.0}, lambda _: None)
    lost, own, died = RuntimeError("third_party/gloo: Connection closed by peer"), ZeroDivisionError("division by zero"), ActorDiedError()
    fail(training, r0=lost, r1=own)
    fail(training, r0=own)
    CheckpointSlot(assignment.checkpoint, 0).offer(lambda: {"n_done": torch.tensor(1)})
    fail(training, r0=own)
    fail(training, r0=own)
    for _ in range(MOST_DEATHS - 1):
        fail(training, r0=died, r1=lost)
    with pytest.raises(InputError, match=r"expert ConvNet .*: ZeroDivisionError: division by zero \(tried 3 times\)"):
        fail(training, r0=lost, r1=own)
    with pytest.raises(
        InputError, match=f"its processes died {MOST_DEATHS} times without reaching another checkpoint; the last: .*died unexpectedly"
    ):
        fail(training, r0=lost, r1=died)
