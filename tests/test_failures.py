"""Killed processes, Ctrl-C, and every kind of bad input."""

import io
import json
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import checksums, cli, cli_here, command, environment, tiny_run
from PIL import Image

pytestmark = pytest.mark.slow

ALWAYS_SAVED = "output.checkpoint_seconds=0"


@pytest.fixture(scope="module")
def undisturbed_output(tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    assert cli(*tiny_run(output)).returncode == 0
    return output


@pytest.fixture(scope="module")
def undisturbed(undisturbed_output):
    return checksums(undisturbed_output)


def disturb(output: Path, stage: str, number: signal.Signals, *overrides: str) -> subprocess.Popen[str]:
    """Start a run, and send it a signal once a checkpoint of `stage` is on disk."""
    return disturb_at(output, f"store/checkpoints/{stage}-*.safetensors", number, *overrides)


def disturb_at(output: Path, pattern: str, number: signal.Signals, *overrides: str) -> subprocess.Popen[str]:
    """Start a run, and send it a signal once there is such a file in `output`."""
    # whoever started the tests may have had SIGINT ignored, which children inherit
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    arguments = command(*tiny_run(output, ALWAYS_SAVED, *overrides))
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment(), preexec_fn=listen)
    deadline = time.monotonic() + 120
    while not list(output.glob(pattern)):
        assert process.poll() is None, f"the run ended before there was {pattern}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.wait(60)
    return process


@pytest.mark.parametrize("stage", ["experts", "recover", "students"])
def test_killed_and_continued_gives_the_same_bytes(undisturbed, tmp_path, stage):
    process = disturb(tmp_path, stage, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(checksums(tmp_path)) < len(undisturbed)
    done = cli(*tiny_run(tmp_path, ALWAYS_SAVED))
    assert done.returncode == 0, done.stderr
    assert checksums(tmp_path) == undisturbed
    assert not list((tmp_path / "store" / "checkpoints").iterdir()) and not list(tmp_path.rglob("*.partial*"))


def left_for_people(output: Path) -> tuple[dict[str, bytes], list[dict[str, object]]]:
    """The distilled dataset's files, the gallery, and the rows less where the run lies and how long its stages took."""
    files = [file for file in [*output.glob("*/distilled/*"), *output.glob("*/gallery.png")] if ".partial" not in file.name]
    (rows,) = output.glob("*/results/rows-*.parquet")
    table = pq.read_table(rows).drop_columns(["settings", "stage_seconds"])
    return {str(file.relative_to(output)): file.read_bytes() for file in files}, table.to_pylist()


def test_killed_while_it_writes_what_people_read(undisturbed_output, tmp_path):
    """All is computed; then rows, the distilled dataset, the summary and the gallery are written one after another."""
    shutil.copytree(undisturbed_output / "store", tmp_path / "store")
    for folder in ("results", "distilled"):
        assert disturb_at(tmp_path, f"*/{folder}/*", signal.SIGKILL).returncode == -signal.SIGKILL
    done = cli(*tiny_run(tmp_path, ALWAYS_SAVED), "--json")
    assert done.returncode == 0, done.stderr
    files, rows = left_for_people(tmp_path)
    assert len(files) == 4 and len(rows) == 4
    assert (files, rows) == left_for_people(undisturbed_output) and checksums(tmp_path) == checksums(undisturbed_output)
    summary = json.loads(done.stdout)
    assert json.loads((Path(summary["run"]) / "summary.json").read_text())["outcomes"] == summary["outcomes"]


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.extended)])
def test_ctrl_c_is_one_sentence_and_the_run_goes_on(undisturbed, tmp_path, executor):
    process = disturb(tmp_path, "students", signal.SIGINT, f"cluster.executor={executor}", "compute.threads=1")
    errors = process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in errors
    assert "interrupted; the same command continues" in errors
    assert cli(*tiny_run(tmp_path, ALWAYS_SAVED)).returncode == 0
    assert checksums(tmp_path) == undisturbed


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 12, 3), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def image_folder(tmp_path):
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(4):
                (tmp_path / "images" / part / name / f"{i}.png").write_bytes(png(50 * label + i))
    return tmp_path / "images"


def write_parquet(path: Path, labels: list[int]) -> None:
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(len(labels))]
    features = '{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
    table = pa.table({"image": images, "label": labels}).replace_schema_metadata({"huggingface": features})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)


def refusal(tmp_path: Path, *overrides: str) -> str:
    """Run with bad input; return what was said, after checking that it is one plain sentence a problem and status 2."""
    done = cli_here(*tiny_run(tmp_path / "runs", f"data.root={tmp_path / 'data'}", *overrides))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("ray-ltdd: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("recover.stepz=3",), "there is no setting 'recover.stepz': did you mean 'recover.steps'?"),
        (("split.imbalance_factor=0.5",), "split.imbalance_factor (it is 0.5): input should be greater than or equal to 1"),
        (("distill.images_per_class=0",), "distill.images_per_class (it is 0)"),
        (("data.dataset=cifar10_ltt",), "did you mean cifar10_lt?"),
        (("data.dataset=tiny_imagenet_lt",), "download http"),
        (("data.dataset=image_folder", "data.path=/nowhere"), "/nowhere"),
        (("split.head_count=500",), "needs 500 training images"),
        (("compute.device=cuda",), "no CUDA device"),
        (("calibrate.layers=batch_norm", "observer.model.normalization=instance"), "no batch_norm layer to monitor"),
        (("experts.accuracy_floor=9.9",), "it has learnt next to nothing"),
        (("cluster.gpu_share=1.5",), "cluster.gpu_share (it is 1.5): give a share up to 1 or a whole number"),
        (("cluster.cpus_per_worker=0.12345",), "cluster.cpus_per_worker (it is 0.12345): give at most four decimals"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_settings(tmp_path, overrides, sentence):
    assert sentence in refusal(tmp_path, *overrides)


def test_bad_files(tmp_path, image_folder):
    folder = ("data.dataset=image_folder", f"data.path={image_folder}", "data.image_size=16")
    good = (image_folder / "train" / "dog" / "0.png").read_bytes()
    (image_folder / "train" / "dog" / "0.png").write_bytes(good[:40])
    assert str(image_folder / "train" / "dog" / "0.png") in refusal(tmp_path, *folder)
    for path in (image_folder / "train" / "dog").iterdir():
        path.unlink()
    assert "dog" in refusal(tmp_path, *folder)

    parquet = tmp_path / "parquet"
    given = ("data.dataset=parquet", f"data.path={parquet}", "data.image_size=16")
    write_parquet(parquet / "test.parquet", [0, 1] * 4)
    write_parquet(parquet / "train.parquet", [0, 1, 7, 1])
    said = refusal(tmp_path, *given)
    assert "7" in said and "train.parquet" in said
    whole = (parquet / "train.parquet").read_bytes()
    (parquet / "train.parquet").write_bytes(whole[: len(whole) // 2])
    assert str(parquet / "train.parquet") in refusal(tmp_path, *given)


@pytest.mark.parametrize(
    ("options", "reason", "setting"), [("size=64k", "No space left on device", "output.store"), ("ro", "Read-only file system", "output.root")]
)
def test_bad_disks(mounted, options, reason, setting):
    done = cli(*tiny_run(mounted(options) / "runs"))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert reason in done.stderr and f"set {setting} to another folder" in done.stderr


@pytest.mark.parametrize("arguments", [("evaluate", "."), ("gallery", ".")])
def test_a_folder_that_is_no_run(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = cli_here(*arguments)
    assert done.returncode == 2 and "is no run" in done.stderr and "Traceback" not in done.stderr


def test_unknown_commands_and_missing_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, sentence in ((("frobnicate",), "No such command"), (("run", "nothing.yaml"), "there is no configuration file nothing.yaml")):
        done = cli_here(*arguments)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
