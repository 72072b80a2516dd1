"""The artifact store: keys, single flight, damage, killed writers, unwritable disks."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ray_ltdd.artifacts import MANIFEST, PAYLOAD, ArtifactStore, CheckpointSlot, Key, Payload
from ray_ltdd.errors import InputError
from ray_ltdd.storage import atomic_file, atomic_folder, readable_os_error

KEY = Key("stage", 1, {"a": 1}, {"up": "x"}, 0)


def payload(value=1.0):
    return Payload({"x": torch.full((3,), value)}, {"note": "n"})


@pytest.mark.parametrize(
    "change",
    [{"stage": "other"}, {"version": 2}, {"settings": {"a": 2}}, {"settings": {"b": 1}}, {"upstream": {"up": "y"}}, {"seed": 1}],
)
def test_digest_reacts_to_every_attribute(change):
    assert replace(KEY, **change).digest != KEY.digest
    assert replace(KEY).digest == KEY.digest


def test_computed_once_and_read_back(tmp_path):
    store = ArtifactStore(tmp_path)
    first, computed = store.get_or_compute(KEY, lambda slot: payload())
    again, computed_again = store.get_or_compute(KEY, lambda slot: pytest.fail("computed twice"))
    assert (computed, computed_again) == (True, False)
    assert torch.equal(again.tensors()["x"], torch.ones(3)) and again.record == {"note": "n"}
    assert first.digest == again.digest == KEY.digest
    assert (first.folder / PAYLOAD).stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("file", [PAYLOAD, MANIFEST])
def test_damage_is_noticed_set_aside_and_computed_again(tmp_path, file):
    store = ArtifactStore(tmp_path)
    artifact, _ = store.get_or_compute(KEY, lambda slot: payload())
    content = bytearray((artifact.folder / file).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (artifact.folder / file).write_bytes(content[: -1 if file == MANIFEST else None])
    with pytest.warns(UserWarning, match="damaged"):
        again, computed = store.get_or_compute(KEY, lambda slot: payload(2.0))
    assert computed and float(again.tensors()["x"][0]) == 2.0
    assert len(list(artifact.folder.parent.glob("*.damaged-*"))) == 1


SLOW_WRITER = """
import sys, time, torch
from pathlib import Path
from ray_ltdd.artifacts import ArtifactStore, Key, Payload
root, log = Path(sys.argv[1]), Path(sys.argv[2])
def compute(slot):
    with log.open("a") as file: file.write("computed\\n")
    time.sleep(1.5)
    return Payload({"x": torch.ones(3)})
ArtifactStore(root).get_or_compute(Key("stage", 1, {"a": 1}, {"up": "x"}, 0), compute)
"""


def writer(tmp_path):
    return subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(tmp_path / "store"), str(tmp_path / "log")])


def wait_for(path: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.slow
def test_of_two_processes_one_computes(tmp_path):
    processes = [writer(tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "computed\n"


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_and_blocks_nobody(tmp_path):
    process = writer(tmp_path)
    wait_for(tmp_path / "log")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    store = ArtifactStore(tmp_path / "store")
    assert store.find(KEY) is None
    _, computed = store.get_or_compute(KEY, lambda slot: payload())
    assert computed


def test_atomic_writes_leave_nothing_when_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "half").write_text("x")
        raise KeyboardInterrupt
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_checkpoint_round_trip_age_and_damage(tmp_path):
    slot = CheckpointSlot(tmp_path / "c.safetensors", min_seconds=0)
    assert slot.load() is None
    slot.offer(lambda: {"x": torch.arange(4)})
    later = CheckpointSlot(tmp_path / "c.safetensors", min_seconds=1e6)
    assert torch.equal(later.load()["x"], torch.arange(4))
    later.offer(lambda: pytest.fail("saved too soon"))
    (tmp_path / "c.safetensors").write_bytes(b"junk")
    with pytest.warns(UserWarning, match="damaged"):
        assert slot.load() is None
    slot.clear()
    assert not (tmp_path / "c.safetensors").exists()


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"output.store=.*file cannot be written .*: make it a writable folder or set output.store"):
        ArtifactStore(tmp_path / "file")


def test_a_full_disk_is_one_sentence():
    with pytest.raises(InputError, match="No space left on device"), readable_os_error(Path("/dev/full")), open("/dev/full", "wb") as file:
        file.write(b"x" * 100_000)
