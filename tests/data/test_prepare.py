import os
import pickle
import pwd
import signal
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_images import encode, pixels

from ray_ltdd.data import prepare
from ray_ltdd.data.prepare import CHUNK_IMAGES, DataConfig, prepare_dataset
from ray_ltdd.data.prepared import NpyWriter, open_prepared
from ray_ltdd.errors import InputError
from ray_ltdd.storage import readable_os_error

BOTH = {"train": {"cat": 3, "dog": 2}, "test": {"cat": 1, "dog": 1}}


@pytest.fixture
def config(tmp_path, write_folder):
    """Seven images in a folder, and where they are decoded to."""
    source = write_folder(tmp_path / "source", BOTH)
    return DataConfig(dataset="image_folder", path=str(source), root=str(tmp_path / "root"), image_size=12)


def test_pixels_labels_and_names(config):
    prepared = prepare_dataset(config)
    assert isinstance(prepared.train.image_NCHW, np.memmap)
    assert prepared.class_names == ("cat", "dog") and prepared.channels == 3 and prepared.image_size == 12
    assert prepared.train.label_N.tolist() == [0, 0, 0, 1, 1] and prepared.train.label_N.dtype == np.int64
    for i in range(5):
        np.testing.assert_array_equal(prepared.train.image_NCHW[i], pixels(i).transpose(2, 0, 1))
    np.testing.assert_array_equal(prepared.test.image_NCHW[1], pixels(6).transpose(2, 0, 1))
    with pytest.raises(ValueError, match="read-only"):
        prepared.train.image_NCHW[0] = 0


def test_the_second_call_decodes_nothing(config):
    calls = []
    first = prepare_dataset(config, lambda done, total: calls.append((done, total)))
    assert calls == [(5, 7), (7, 7)]
    second = prepare_dataset(config, lambda done, total: calls.append((done, total)))
    assert len(calls) == 2 and second.folder == first.folder and second.fingerprint == first.fingerprint


def test_key_and_fingerprint_follow_the_inputs(config, tmp_path):
    first = prepare_dataset(config)
    larger = prepare_dataset(config.model_copy(update={"image_size": 16}))
    assert larger.folder != first.folder and larger.fingerprint != first.fingerprint
    path = tmp_path / "source" / "train" / "cat" / "00000.png"
    path.write_bytes(encode(99))
    changed = prepare_dataset(config)
    assert changed.folder != first.folder and changed.fingerprint != first.fingerprint
    os.utime(path, ns=(5, 5))
    touched = prepare_dataset(config)
    assert touched.folder != changed.folder and touched.fingerprint == changed.fingerprint


@pytest.mark.parametrize("dataset", ["image_folder", "parquet"])
def test_datasets_that_agree_in_names_sizes_and_times_are_told_apart(tmp_path, write_folder, write_parquet, dataset):
    config = DataConfig(dataset=dataset, root=str(tmp_path / "root"), image_size=12)
    prepared = []
    for source, number in ((tmp_path / "a", 0), (tmp_path / "b", 10)):
        for part in ("train", "test"):
            for i in (0, 1):
                (source / part / "xy"[i]).mkdir(parents=True)
                (source / part / "xy"[i] / "0.ppm").write_bytes(encode(number + i, "PPM"))
            write_parquet(source / f"{part}.parquet", [0, 1], first=number)
        for path in source.rglob("*"):
            os.utime(path, ns=(5, 5))
        prepared.append(prepare_dataset(config.model_copy(update={"path": str(source)})))
    sizes = [[path.stat().st_size for path in sorted((tmp_path / name).rglob("*.p*"))] for name in "ab"]
    assert sizes[0] == sizes[1]
    for number, images in zip((0, 10), prepared, strict=True):
        np.testing.assert_array_equal(images.train.image_NCHW[1], pixels(number + 1).transpose(2, 0, 1))


def test_a_dataset_moved_elsewhere_keeps_its_fingerprint(config, tmp_path):
    first = prepare_dataset(config)
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    moved = prepare_dataset(config.model_copy(update={"path": str(tmp_path / "elsewhere")}))
    assert moved.folder != first.folder and moved.fingerprint == first.fingerprint
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert prepare_dataset(config.model_copy(update={"path": str(tmp_path / "link")})).folder == moved.folder


@pytest.mark.parametrize("damage", ["train_images.npy", "test_labels.npy", "prepared.json", "missing"])
def test_damage_is_noticed_and_repaired(config, damage):
    first = prepare_dataset(config)
    reference = np.array(first.train.image_NCHW)
    if damage == "missing":
        (first.folder / "test_images.npy").unlink()
    else:
        content = (first.folder / damage).read_bytes()
        (first.folder / damage).write_bytes(content[:-9])
    with pytest.raises(InputError, match="does not hold a whole prepared dataset"):
        open_prepared(first.folder)
    again = prepare_dataset(config)
    assert again.folder == first.folder and again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.train.image_NCHW, reference)


def test_a_pickle_holds_the_path_and_not_the_pixels(config):
    prepared = prepare_dataset(config)
    content = pickle.dumps(prepared)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).train.image_NCHW, prepared.train.image_NCHW)


def test_two_preparers_decode_once(config):
    calls, results = [], []
    threads = [threading.Thread(target=lambda: results.append(prepare_dataset(config, lambda done, _: calls.append(done)).folder)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1 and calls == [5, 7]


_PREPARE = """
import sys
from ray_ltdd.data.prepare import DataConfig, prepare_dataset
config = DataConfig.model_validate_json(sys.argv[1])
prepare_dataset(config, lambda done, total: print(done, flush=True) or sys.stdin.readline())
"""


@pytest.mark.slow
def test_a_killed_preparation_is_harmless(tmp_path, write_folder):
    source = write_folder(tmp_path / "source", {"train": {"cat": CHUNK_IMAGES, "dog": 5}, "test": {"cat": 1, "dog": 1}})
    config = DataConfig(dataset="image_folder", path=str(source), root=str(tmp_path / "root"), image_size=8)
    # The child stops after its first chunk, half of the training images written, until it is killed there.
    command = [sys.executable, "-c", _PREPARE, config.model_dump_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == f"{CHUNK_IMAGES}\n"
        child.send_signal(signal.SIGKILL)
    left = [path.name for path in (tmp_path / "root").iterdir()]
    assert any(".partial-" in name for name in left)
    prepared = prepare_dataset(config)
    assert len(prepared.train.label_N) == CHUNK_IMAGES + 5
    clean = prepare_dataset(config.model_copy(update={"root": str(tmp_path / "clean")}))
    assert prepared.fingerprint == clean.fingerprint
    assert not [path for path in (tmp_path / "root").iterdir() if ".partial-" in path.name]


def test_an_exception_in_the_middle_leaves_nothing(config, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(config, stop)
    assert [path.suffix for path in (tmp_path / "root").iterdir()] in ([], [".lock"])
    assert len(prepare_dataset(config).train.label_N) == 5


def test_memory_does_not_grow_with_the_images(tmp_path, write_parquet, monkeypatch):
    monkeypatch.setattr(prepare, "CHUNK_IMAGES", 16)
    peaks = []
    for count in (64, 512):
        path = write_parquet(tmp_path / f"{count}.parquet", [0, 1] * (count // 2), row_group_size=64)
        config = DataConfig(dataset="parquet", path=str(path), root=str(tmp_path / "root"), image_size=128, test_per_class=4)
        tracemalloc.start()
        prepare_dataset(config)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 512 * 3 * 128 * 128 / 4, "a quarter of the decoded size"
    assert peaks[1] < 1.3 * peaks[0] + 1e6


def test_held_out_test_part(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "all.parquet", [0, 1, 1, 0, 1, 0, 1])
    config = DataConfig(dataset="parquet", path=str(path), root=str(tmp_path / "root"), image_size=12, test_per_class=2)
    prepared = prepare_dataset(config)
    assert np.bincount(prepared.test.label_N).tolist() == [2, 2]
    assert np.bincount(prepared.train.label_N).tolist() == [1, 2]
    everything = np.concatenate([prepared.train.image_NCHW, prepared.test.image_NCHW])
    found = sorted(next(i for i in range(7) if (pixels(i).transpose(2, 0, 1) == image).all()) for image in everything)
    assert found == list(range(7))
    elsewhere = prepare_dataset(config.model_copy(update={"root": str(tmp_path / "other")}))
    assert elsewhere.fingerprint == prepared.fingerprint
    smaller = prepare_dataset(config.model_copy(update={"test_per_class": 1}))
    assert np.bincount(smaller.test.label_N).tolist() == [1, 1]


def test_no_test_part_must_be_said(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "all.parquet", [0, 1, 1, 0])
    config = DataConfig(dataset="parquet", path=str(path), root=str(tmp_path / "root"))
    with pytest.raises(
        InputError, match=r"no test part: add one \(a folder, or Parquet files, called test, val or validation\), or set data.test_per_class"
    ):
        prepare_dataset(config)
    with pytest.raises(InputError, match=r"class 'cat' has 2 images, so data.test_per_class=2 leaves none to train on"):
        prepare_dataset(config.model_copy(update={"test_per_class": 2}))


def test_a_test_part_and_a_held_out_one(config):
    with pytest.raises(InputError, match=r"data.test_per_class=1 is given but .* has its own test part: remove"):
        prepare_dataset(config.model_copy(update={"test_per_class": 1}))


def test_digits_by_default(tmp_path):
    prepared = prepare_dataset(DataConfig(root=str(tmp_path)))
    assert prepared.train.image_NCHW.shape == (1297, 1, 16, 16) and prepared.test.image_NCHW.shape == (500, 1, 16, 16)
    assert np.bincount(prepared.test.label_N).tolist() == [50] * 10


def test_no_test_reads_what_an_earlier_version_decoded():
    """Neither here nor in processes that a test starts: in the user's own folder, a change of the decoding would change nothing."""
    users_own = Path(pwd.getpwuid(os.getuid()).pw_dir)
    show = "from ray_ltdd.data.prepare import DataConfig; print(DataConfig().root)"
    elsewhere = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout.strip()
    assert DataConfig().root == elsewhere and not Path(elsewhere).is_relative_to(users_own / ".cache")


def test_corrupt_image_is_named_and_nothing_is_left(config, tmp_path):
    path = tmp_path / "source" / "train" / "dog" / "00001.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=rf"{path} cannot be decoded \(.*\): replace or remove the damaged image"):
        prepare_dataset(config)
    assert [entry for entry in (tmp_path / "root").iterdir() if entry.is_dir()] == []
    path.write_bytes(encode(1))
    prepare_dataset(config)


def test_wrong_number_of_classes(tmp_path, write_parquet):
    for part in ("train", "test"):
        write_parquet(tmp_path / "files" / f"{part}.parquet", [0, 1])
    config = DataConfig(dataset="cifar10_lt", path=str(tmp_path / "files"), root=str(tmp_path / "root"))
    with pytest.raises(InputError, match="has 2 classes but cifar10_lt has 10: complete it"):
        prepare_dataset(config)


def test_unknown_dataset_and_size(tmp_path):
    with pytest.raises(InputError, match="did you mean digits_lt"):
        prepare_dataset(DataConfig(dataset="digit_lt", root=str(tmp_path)))
    with pytest.raises(InputError, match=r"data.image_size=33 is not offered for digits_lt: use 16 or 8 or 32"):
        prepare_dataset(DataConfig(image_size=33, root=str(tmp_path)))


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=rf"data.root={root} cannot be written \(.*\): make it a writable folder or set"):
            prepare_dataset(DataConfig(root=str(root)))


def test_a_write_to_a_full_device_is_one_sentence():
    with (
        pytest.raises(InputError, match=r"data.root=/d cannot be written \(No space left on device\): free space there or"),
        readable_os_error(Path("/d"), "data.root"),
    ):
        NpyWriter(Path("/dev/full"), (1 << 20,), np.uint8).append(np.zeros(1 << 20, np.uint8))


def test_writer_refuses_another_number_of_rows(tmp_path):
    writer = NpyWriter(tmp_path / "x.npy", (3,), np.int64)
    writer.append(np.arange(2))
    with pytest.raises(ValueError, match="lacks 8 bytes"):
        writer.close()


_MOUNTED = """
import sys
from ray_ltdd.data.prepare import DataConfig, prepare_dataset
from ray_ltdd.errors import InputError
try:
    prepare_dataset(DataConfig(root=sys.argv[1]))
except InputError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "size=64k",
            "cannot be written (No space left on device): free space there or set data.root to another folder",
        ),
        (
            "ro",
            "cannot be written (Read-only file system): make it a writable folder or set data.root to another folder",
        ),
    ],
)
def test_full_disk_and_read_only_root(tmp_path, options, message):
    """A real file system in a namespace of its own: full after 64 KiB, or read-only."""
    mount = f"mount -t tmpfs -o {options} none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a file system")
    shell = f'{mount} && exec "$0" -c "$1" {tmp_path}/root' if options != "ro" else f'{mount} && exec "$0" -c "$1" {tmp_path}'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", shell, sys.executable, _MOUNTED], capture_output=True, text=True)
    assert message in done.stdout and done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_tiny_imagenet_from_the_zip(tmp_path):
    path = tmp_path / "root" / "sources" / "tiny_imagenet_lt" / "tiny-imagenet-200.zip"
    path.parent.mkdir(parents=True)
    wnids = [f"n{k:03d}" for k in range(200)]
    image = encode(0, "JPEG", (64, 64))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "\n".join(wnids))
        archive.writestr(
            "tiny-imagenet-200/val/val_annotations.txt",
            "".join(f"val_{k}.JPEG\t{w}\t0\t0\t1\t1\n" for k, w in enumerate(wnids)),
        )
        for k, wnid in enumerate(wnids):
            archive.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_0.JPEG", image)
            archive.writestr(f"tiny-imagenet-200/val/images/val_{k}.JPEG", image)
    prepared = prepare_dataset(DataConfig(dataset="tiny_imagenet_lt", root=str(tmp_path / "root")))
    assert prepared.train.image_NCHW.shape == (200, 3, 64, 64)


def n_bytes_read():
    """What this process has read of files so far, memory maps left out."""
    return psutil.Process().io_counters().read_chars


@pytest.mark.slow
@pytest.mark.parametrize(("name", "images", "head"), [("cifar10", 20431, 5000), ("cifar100", 19573, 500)])
def test_the_real_cifar_files(tmp_path, shared_data, name, images, head):
    config = DataConfig(dataset=f"{name}_lt", path=str(shared_data / name), root=str(tmp_path))
    before = n_bytes_read()
    prepared = prepare_dataset(config)
    read_first = n_bytes_read() - before
    assert prepared.train.image_NCHW.shape == (images, 3, 32, 32) and prepared.test.image_NCHW.shape == (
        5000,
        3,
        32,
        32,
    )
    assert np.bincount(prepared.train.label_N)[0] == head
    before, told = n_bytes_read(), []
    again = prepare_dataset(config, lambda done, total: told.append(done))
    assert again.folder == prepared.folder and told == [], "nothing is decoded again"
    assert n_bytes_read() - before < read_first / 50, "labels are read, images are mapped"
