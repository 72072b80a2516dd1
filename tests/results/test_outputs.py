"""Rows, tables, the distilled dataset and its picture."""

import io
import multiprocessing
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from ray_ltdd import InputError, load_distilled
from ray_ltdd.executor import StageRecord
from ray_ltdd.results.distilled import CardFacts, png_bytes, write_card, write_distilled
from ray_ltdd.results.gallery import draw_gallery
from ray_ltdd.results.rows import SCHEMA, append_rows, read_rows
from ray_ltdd.results.summary import aggregate, outcome_table, stage_table


def row(number=0, top1=0.5, method="distilled", **more):
    blank = dict.fromkeys(SCHEMA.names)
    known = {"schema_version": 1, "artifact": f"{method}{number}", "fingerprint": "f", "method": method, "network": "ConvNet-3", "number": number}
    counts = {"count_per_class": [50, 5], "images_per_class": 3, "per_class": [top1, top1], "top1": top1, "many": 0.7, "few": 0.2}
    return blank | known | counts | more


def test_rows_come_back_once(tmp_path):
    append_rows(tmp_path, [row(0), row(1)])
    append_rows(tmp_path, [row(0), row(1)])
    append_rows(tmp_path, [row(1), row(2, stage_seconds={"Recover": 2.0})])
    table = read_rows(tmp_path)
    assert table.schema == SCHEMA and sorted(table["number"].to_pylist()) == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 2
    assert len(pd.read_parquet(tmp_path)) == 4, "readable as one table by others"


def _append(folder, number):
    append_rows(Path(folder), [row(number)])


def test_many_writers(tmp_path):
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    writers = [context.Process(target=_append, args=(str(tmp_path), n % 3)) for n in range(6)]
    [writer.start() for writer in writers]
    [writer.join() for writer in writers]
    assert sorted(read_rows(tmp_path)["number"].to_pylist()) == [0, 1, 2]


def test_no_rows_are_an_empty_table(tmp_path):
    assert len(read_rows(tmp_path)) == 0


def test_aggregation_is_over_seeds():
    outcomes = aggregate([row(0, 0.5), row(1, 0.6), row(0, 0.9, "whole", medium=None)])
    assert outcomes[0].n == 2 and outcomes[0].mean["top1"] == pytest.approx(55) and outcomes[0].deviation == pytest.approx(7.0710678)
    assert outcomes[0].top1 == "55.0 ± 7.1" and outcomes[0].n_images == 6
    assert outcomes[1].deviation is None and outcomes[1].mean["medium"] is None and outcomes[1].n_images == 55


def test_tables_fit_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(outcome_table(aggregate([row(0), row(1, 0.6), row(0, 0.9, "whole")]), "test", 5000, "by count"))
    console.print(stage_table([StageRecord("Students", 1.0, 2.0, n_computed=1, n_reused=3, n_images=500)]))
    text = console.export_text()
    assert "distilled, soft labels" in text and "55.0 ± 7.1" in text and "3 of 4" in text and "…" not in text


def test_top5_is_told_of_more_than_ten_classes():
    counts = {"count_per_class": [5] * 11, "top5": 0.875, "medium": 0.5}
    eleven, ten = (aggregate([row(n, 0.5, **counts | more) for n in range(2)]) for more in ({}, {"count_per_class": [5] * 10}))
    assert eleven[0].describe()["top5_percent"] == pytest.approx(87.5) and ten[0].describe()["top5_percent"] is None
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(outcome_table(eleven, "test", 5000, "by count"))
    console.print(outcome_table(ten, "test", 5000, "by count"))
    with_top5, without = console.export_text().split("Accuracy of")[1:]
    assert "top-5" in with_top5 and "87.5" in with_top5 and "…" not in with_top5
    assert "top-5" not in without and "87.5" not in without


def test_teachers_of_several_networks_are_told_apart():
    console = Console(file=io.StringIO(), width=80)
    experts = [row(0, method="observer"), row(0, method="teacher"), row(1, method="teacher", network="ResNet-9 (width 32)")]
    console.print(outcome_table(aggregate([row(0), row(1, 0.6), *experts]), "test", 5000, "by count"))
    printed = console.file.getvalue()
    assert "│teacher ConvNet-3 " in printed and "│teacher ResNet-9 (width 32) │" in printed and "│the observer itself " in printed


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return {c: torch.randint(0, 256, (6, c, 8, 8), dtype=torch.uint8, generator=generator) for c in (1, 3)}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_distilled_dataset_comes_back_exactly(tmp_path, images, channels):
    image, label, logit = images[channels], torch.tensor([0, 0, 0, 1, 1, 1]), torch.randn(6, 2).half()
    write_distilled(tmp_path / "distilled", image, label, logit, ["cat", "dog"], "card")
    for path in (tmp_path, tmp_path / "distilled", tmp_path / "distilled" / "train.parquet"):
        loaded = load_distilled(path)
        assert torch.equal(loaded.image_NCHW, image) and torch.equal(loaded.label_N, label)
        assert torch.equal(loaded.logit_NK, logit.float()) and loaded.class_names == ("cat", "dog")
    frame = pd.read_parquet(tmp_path / "distilled" / "train.parquet")
    assert sum(len(entry["bytes"]) for entry in frame["image"]) == png_bytes(image)
    item = loaded[5]
    assert torch.equal(item[0], image[5].float() / 255) and int(item[1]) == 1


def test_the_hub_library_reads_it(tmp_path, images):
    datasets = pytest.importorskip("datasets")
    write_distilled(tmp_path, images[3], torch.tensor([0, 0, 0, 1, 1, 1]), torch.randn(6, 2).half(), ["cat", "dog"], "card")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert loaded.features["label"].names == ["cat", "dog"] and loaded[0]["image"].size == (8, 8)


def test_damage_and_absence_are_sentences(tmp_path, images):
    with pytest.raises(InputError, match="there is no distilled dataset"):
        load_distilled(tmp_path)
    write_distilled(tmp_path, images[3], torch.zeros(6, dtype=torch.int64), torch.randn(6, 2).half(), ["cat", "dog"], "card")
    path = tmp_path / "train.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is damaged"):
        load_distilled(tmp_path)
    pq.write_table(read_rows(tmp_path), path)
    with pytest.raises(InputError, match="no distilled dataset"):
        load_distilled(tmp_path)


def test_the_card_states_both_kinds_of_bytes():
    facts = CardFacts("t", "s", "sp", 3, 2, 1234, 5678, "one", [("distilled", "55.0")], {"a": 1})
    card = write_card(facts)
    assert "1,234 of images; 5,678 of labels" in card and "| distilled | 55.0 |" in card and card.startswith("---\n")


@pytest.mark.parametrize(("n_classes", "per_class", "channels"), [(2, 3, 1), (2, 3, 3), pytest.param(100, 12, 3, marks=pytest.mark.slow)])
def test_the_gallery_shows_images_and_names(tmp_path, n_classes, per_class, channels):
    images = list(torch.randint(0, 256, (n_classes, per_class, channels, 8, 8), dtype=torch.uint8))
    panels = {"initial": images, "distilled": images, "real": [of_class[: 1 + k % 3] for k, of_class in enumerate(images)]}
    draw_gallery(tmp_path / "g.png", panels, [f"class {k}" for k in range(n_classes)], [1] * n_classes, "title")
    with Image.open(tmp_path / "g.png") as picture:
        width, height = picture.size
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert 300 < width < 3000 and 200 < height < 3000 and len(colours) > 50
