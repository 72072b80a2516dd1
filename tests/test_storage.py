"""Really full and really read-only disks, and what is turned into a sentence and what is not."""

import errno
import os
import resource
import subprocess

import pytest
import torch
from commands import checksums
from safetensors import SafetensorError

from ray_ltdd.artifacts import ArtifactStore, Key, Payload
from ray_ltdd.errors import InputError
from ray_ltdd.results.distilled import write_distilled
from ray_ltdd.results.gallery import draw_gallery
from ray_ltdd.results.rows import append_rows
from ray_ltdd.storage import atomic_file, atomic_folder, readable_os_error

KEY = Key("stage", 1, {}, {}, 0)


def write_everything(folder):
    """Every kind of file a run leaves, one writer a call."""
    image = torch.randint(0, 256, (20, 3, 64, 64), dtype=torch.uint8)
    store = ArtifactStore(folder, checkpoint_seconds=0)
    rows = [{"artifact": "a", "fingerprint": "f", "method": "m", "settings": os.urandom(100_000).hex()}]

    def interrupted(slot):
        slot.offer(lambda: {"x": torch.rand(100_000)})

    yield lambda: store.get_or_compute(KEY, lambda slot: Payload({"x": torch.rand(100_000)}))
    yield lambda: store.get_or_compute(Key("other", 1, {}, {}, 0), interrupted)
    yield lambda: write_distilled(folder / "distilled", image, torch.zeros(20, dtype=torch.int64), torch.zeros(20, 1).half(), ["a"], "card")
    yield lambda: append_rows(folder / "results", rows)
    yield lambda: draw_gallery(folder / "gallery.png", {"distilled": [image]}, ["a"], [1], "title")


def test_a_full_disk_is_one_sentence_for_every_writer_and_leaves_nothing_half(mounted):
    folder = mounted("size=64k")
    for write in write_everything(folder):
        with pytest.raises(
            InputError, match=r"^output.(root|store)=[^\n]* cannot be written \(No space left on device\): free space there or set [^\n]*$"
        ):
            write()
    left = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks"]
    assert left == [] and checksums(folder) == {}


def test_a_read_only_disk_is_one_sentence(mounted):
    folder = mounted("ro")
    for setting, write in (
        ("store", lambda: ArtifactStore(folder / "store")),
        ("root", lambda: append_rows(folder / "results", [{"artifact": "", "fingerprint": "", "method": ""}])),
    ):
        with pytest.raises(InputError, match=rf"cannot be written \(Read-only file system\): make it a writable folder or set output.{setting}"):
            write()


def test_what_a_read_only_store_holds_can_be_used(mounted):
    folder = mounted("size=4m")
    written, _ = ArtifactStore(folder).get_or_compute(KEY, lambda slot: Payload({"x": torch.ones(3)}))
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    store = ArtifactStore(folder)
    found, computed = store.get_or_compute(KEY, lambda slot: pytest.fail("computed again"))
    assert not computed and found.manifest == written.manifest
    with pytest.raises(InputError, match="Read-only file system"):
        store.get_or_compute(Key("other", 1, {}, {}, 0), lambda slot: Payload({}))


def test_a_limit_of_file_sizes_is_one_sentence(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = ArtifactStore(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
        with pytest.raises(InputError, match=r"^output.store=.* cannot be written \(File too large\)"):
            store.get_or_compute(KEY, lambda slot: Payload({"x": torch.rand(100_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_disk_quota_that_safetensors_tells_of_in_words_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"\(Disk quota exceeded\): free space there"), readable_os_error(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)")
    with pytest.raises(SafetensorError), readable_os_error(tmp_path):
        raise SafetensorError("Error while deserializing header: invalid header")


@pytest.mark.parametrize("place", ["/proc/x", "a" * 300, "loop/x"])
def test_where_no_folder_can_be_made_is_one_sentence(tmp_path, place):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"^output.store=[^\n]* cannot be written [^\n]*: make it a writable folder or set output.store"):
        ArtifactStore(tmp_path / place)


@pytest.mark.parametrize("number", [errno.EIO, errno.ECONNRESET])
def test_other_errors_pass(tmp_path, number):
    with pytest.raises(OSError) as caught, readable_os_error(tmp_path):
        raise OSError(number, "x")
    assert not isinstance(caught.value, InputError) and caught.value.errno == number


def test_the_sentence_names_the_setting_given(tmp_path):
    with pytest.raises(InputError, match=r"^data.root=.* set data.root to another folder$"), readable_os_error(tmp_path, "data.root"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_of_two_writers_of_one_folder_the_first_stays(tmp_path):
    with atomic_folder(tmp_path / "final") as slow:
        (slow / "x").write_text("slow")
        with atomic_folder(tmp_path / "final") as quick:
            (quick / "x").write_text("quick")
    assert (tmp_path / "final" / "x").read_text() == "quick" and [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize(("mode", "readable"), [(0o700, 0o600), (0o750, 0o640), (0o775, 0o644), (0o777, 0o644)])
def test_files_are_as_readable_as_their_folder_and_writable_by_their_owner(tmp_path, mode, readable):
    """Who keeps a folder to themselves keeps what a run writes there; in one that all may write to, as /tmp, a file is its owner's."""
    tmp_path.chmod(mode)
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o600)
    assert (tmp_path / "a").stat().st_mode & 0o777 == readable


def test_what_a_killed_writer_left_goes_and_what_another_writes_stays(tmp_path):
    left, at_work, other = (tmp_path / f".{number:08d}.partial-{name}" for number, name in ((1, "[a] 1"), (2, "[a] 1"), (3, "b")))
    for path in (left, at_work, other):
        path.write_text("half")
    for path in (left, other):
        os.utime(path, (0, 0))
    with atomic_file(tmp_path / "[a] 1") as temporary:
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([at_work.name, other.name, "[a] 1"])
