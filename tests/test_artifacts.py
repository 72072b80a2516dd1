"""What `test_store.py` leaves: manifests, keys as JSON sees them, killed in the middle of a write, several finders of one damage."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_ltdd.artifacts import MANIFEST, PAYLOAD, ArtifactStore, CheckpointSlot, Key, Payload, checksum
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.errors import InputError

KEY = Key("stage", 1, {"a": 1}, {"up": "x"}, 0)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4), st.lists, max_leaves=4)
mappings = st.dictionaries(st.text(max_size=4), values, max_size=4)


@settings(deadline=None, max_examples=60)
@given(settings_=mappings, upstream=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3))
def test_the_order_of_settings_does_not_matter_and_their_names_do(settings_, upstream):
    key = Key("stage", 1, settings_, upstream, 0)
    turned = Key("stage", 1, dict(reversed(settings_.items())), dict(reversed(upstream.items())), 0)
    assert key.digest == turned.digest
    for name in settings_:
        renamed = {new if (new := f"{old}'") and old == name else old: value for old, value in settings_.items()}
        assert Key("stage", 1, renamed, upstream, 0).digest != key.digest or renamed == settings_
    if settings_ and not upstream:
        assert Key("stage", 1, {}, {k: str(v) for k, v in settings_.items()}, 0).digest != key.digest


def test_a_key_survives_being_written_and_read(tmp_path):
    """A tuple in the settings is a list in JSON: both must name the same artifact."""
    config = ExperimentConfig().recover.model_dump(mode="json")
    read = json.loads(json.dumps(config))
    assert Key("recover", 1, config, {}, 0).digest == Key("recover", 1, read, {}, 0).digest


def test_the_manifest_says_what_made_the_artifact(tmp_path):
    store = ArtifactStore(tmp_path)

    def compute(slot):
        time.sleep(0.05)
        return Payload({"x": torch.ones(3)}, {"note": 1})

    artifact, _ = store.get_or_compute(KEY, compute)
    manifest = json.loads((artifact.folder / MANIFEST).read_text())
    assert {name: manifest[name] for name in ("stage", "version", "settings", "upstream", "seed")} == KEY.describe()
    assert manifest["digest"] == KEY.digest and manifest["record"] == {"note": 1}
    assert manifest["checksum"] == checksum(artifact.folder / PAYLOAD)
    assert manifest["seconds"] == artifact.seconds >= 0.05 and manifest["peak_memory_mb"] > 10
    assert manifest["created"].endswith("+00:00") and {"ray_ltdd", "torch", "python"} <= manifest["versions"].keys() and manifest["device"]


def test_seconds_are_summed_over_interrupted_attempts(tmp_path):
    store = ArtifactStore(tmp_path, checkpoint_seconds=0)

    def interrupted(slot):
        time.sleep(0.2)
        slot.offer(lambda: {"x": torch.zeros(1)})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_or_compute(KEY, interrupted)

    def continued(slot):
        assert slot.load() is not None
        return Payload({"x": torch.ones(1)})

    artifact, _ = store.get_or_compute(KEY, continued)
    assert 0.2 <= artifact.seconds < 2
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_same_payload_has_the_same_bytes_whatever_its_layout(tmp_path):
    plain = torch.arange(24.0).view(1, 2, 3, 4)
    strided = plain.to(memory_format=torch.channels_last).requires_grad_(True)
    folders = [
        ArtifactStore(tmp_path / name).get_or_compute(KEY, lambda slot, x=x: Payload({"x": x}))[0].folder
        for name, x in (("a", plain), ("b", strided))
    ]
    assert checksum(folders[0] / PAYLOAD) == checksum(folders[1] / PAYLOAD)


KILLED_WRITER = """
import os, resource, signal, sys, torch
from ray_ltdd.artifacts import ArtifactStore, Key, Payload

class Fatal(dict):
    def items(self):
        os.kill(os.getpid(), signal.SIGKILL)

def die_in_the_next_write():
    # the kernel ends a process that writes a file beyond this size, in the middle of the write
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

def compute(slot):
    if sys.argv[2] == "checkpoint":
        slot.offer(lambda: {"x": torch.ones(3)})
    if sys.argv[2] != "manifest":
        die_in_the_next_write()
    if sys.argv[2] == "checkpoint":
        slot.offer(lambda: {"x": torch.zeros(1_000_000)})
    return Payload({"x": torch.ones(1_000_000)}, {"fatal": Fatal(a=1)})

ArtifactStore(sys.argv[1], checkpoint_seconds=0).get_or_compute(Key("stage", 1, {"a": 1}, {"up": "x"}, 0), compute)
"""


def kill_a_writer(root, where):
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(root), where], env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=60)
    assert done.returncode == -(signal.SIGKILL if where == "manifest" else signal.SIGXFSZ)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["payload", "manifest"])
def test_killed_in_the_middle_of_writing_an_artifact(tmp_path, where):
    """Half a payload, or a payload without manifest: nobody must take that for an artifact, and the next call leaves no litter."""
    kill_a_writer(tmp_path, where)
    assert any(path.is_file() for path in (tmp_path / KEY.stage).rglob("*")), "meant to kill in the middle"
    store = ArtifactStore(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.find(KEY) is None
        artifact, computed = store.get_or_compute(KEY, lambda slot: Payload({"x": torch.full((3,), 2.0)}))
    assert computed and artifact.tensors()["x"].tolist() == [2.0] * 3
    assert [path.name for path in artifact.folder.parent.iterdir()] == [KEY.digest]


@pytest.mark.slow
def test_killed_in_the_middle_of_writing_a_checkpoint(tmp_path):
    """The one before is whole and is continued; the half one does not stay."""
    kill_a_writer(tmp_path, "checkpoint")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "the test is meant to leave the checkpoint before and half a new one"
    found = []
    ArtifactStore(tmp_path).get_or_compute(KEY, lambda slot: found.append(slot.load()) or Payload({"x": torch.ones(3)}))
    assert found[0]["x"].tolist() == [1.0] * 3
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("cut", [0, 1, 8, -1])
def test_a_checkpoint_cut_anywhere_is_a_warning(tmp_path, cut):
    slot = CheckpointSlot(tmp_path / "c.safetensors", min_seconds=0)
    slot.offer(lambda: {"x": torch.arange(4)})
    path = tmp_path / "c.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.warns(UserWarning, match="damaged"):
        assert CheckpointSlot(path).load() is None


def test_a_checkpoint_with_a_flipped_bit_is_a_warning(tmp_path):
    """Like an artifact's payload: training that continues from wrong weights would store a wrong artifact under a right key."""
    slot = CheckpointSlot(tmp_path / "c.safetensors", min_seconds=0)
    slot.offer(lambda: {"x": torch.arange(1000)})
    content = bytearray((tmp_path / "c.safetensors").read_bytes())
    content[-500] ^= 0x10
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert slot.load() is None


@pytest.mark.parametrize("missing", [PAYLOAD, MANIFEST])
def test_a_missing_file_is_damage(tmp_path, missing):
    store = ArtifactStore(tmp_path)
    artifact, _ = store.get_or_compute(KEY, lambda slot: Payload({"x": torch.ones(3)}))
    (artifact.folder / missing).unlink()
    with pytest.warns(UserWarning, match="is damaged"):
        assert store.get_or_compute(KEY, lambda slot: Payload({"x": torch.ones(3)}))[1]
    assert store.get_or_compute(KEY, lambda slot: pytest.fail("computed again"))[1] is False


def test_several_finders_of_one_damage_compute_it_once(tmp_path):
    """All verify the damaged payload at the same time; only one may set it aside, and nobody the new one."""
    store = ArtifactStore(tmp_path)
    artifact, _ = store.get_or_compute(KEY, lambda slot: Payload({"x": torch.zeros(5_000_000)}))
    with (artifact.folder / PAYLOAD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    barrier, outcomes, n_computed = threading.Barrier(4), [], []

    def compute(slot):
        n_computed.append(1)
        return Payload({"x": torch.zeros(5_000_000)})

    def ask():
        barrier.wait()
        try:
            outcomes.append(ArtifactStore(tmp_path).get_or_compute(KEY, compute)[0].digest)
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert outcomes == [KEY.digest] * 4 and len(n_computed) == 1
    assert len(list(artifact.folder.parent.glob("*.damaged-*"))) == 1
    assert store.find(KEY) is not None


def test_a_missing_input_is_not_blamed_on_the_store(tmp_path):
    """An operating system's error about something else than the store must not say that output.store cannot be written."""

    def compute(slot):
        raise PermissionError(13, "Permission denied", "/somewhere/else/train.parquet")

    with pytest.raises(PermissionError, match=r"train\.parquet"):
        ArtifactStore(tmp_path).get_or_compute(KEY, compute)


def test_what_cannot_be_read_just_now_is_no_damage(tmp_path, monkeypatch):
    """Too many open files, a network's storage away: what may be hours of an expert is neither set aside nor computed again."""
    store = ArtifactStore(tmp_path)
    artifact, _ = store.get_or_compute(KEY, lambda slot: Payload({"x": torch.ones(3)}))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be read \(Too many open files\): mend that, or remove the folder"):
            store.find(KEY)
        with pytest.raises(InputError, match="cannot be read"):
            store.get_or_compute(KEY, lambda slot: pytest.fail("computed again"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert store.find(KEY).folder == artifact.folder
