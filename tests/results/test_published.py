"""The published accuracies as the package holds them."""

import csv
import tomllib
from pathlib import Path

import pytest

from ray_ltdd.data.catalogue import BENCHMARKS
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.results.published import CELL, published, published_of

REPOSITORY = Path(__file__).parents[2]


def test_they_are_those_of_the_reference():
    source = REPOSITORY.parent / "shared" / "reference" / "published_top1.csv"
    if not source.exists():
        pytest.skip(f"no {source}")
    with source.open() as file:
        theirs = [
            (int(r["table"]), r["benchmark"], float(r["imbalance_factor"]), int(r["ipc"]), r["method"], r["top1_mean"], r["top1_std"])
            for r in csv.DictReader(file)
        ]
    ours = published()
    found = list(zip(ours["table"], ours["benchmark"], ours["imbalance_factor"], ours["images_per_class"], ours["method"], strict=True))
    assert found == [row[:5] for row in theirs]
    assert ours["percent"].tolist() == [float(row[5]) for row in theirs]
    assert [None if d != d else d for d in ours["percent_deviation"]] == [float(row[6]) if row[6] else None for row in theirs]


def test_numbers_read_off_the_paper():
    def top1(table, benchmark, factor, images, network, method):
        rows = published().set_index(["table", *CELL, "method"])
        return rows.loc[(table, benchmark, factor, images, network, method), "percent"]

    assert top1(1, "cifar10_lt", 100, 10, "ConvNet-3", "RLDD") == 62.7
    assert top1(5, "imagenet_lt", 256, 20, "ResNet-50", "RLDD") == 48.9
    assert top1(7, "cifar10_lt", 100, 10, "VGG-11", "DAMED") == 29.7
    assert top1(8, "cifar100_lt", 50, 10, "ConvNet-3", "RLDD w/o model debiasing") == 31.7


def test_every_cell_is_one_of_the_benchmarks_and_networks():
    frame = published()
    assert not frame.drop(columns="percent_deviation").isna().any().any()
    for row in frame.itertuples():
        benchmark = BENCHMARKS[row.benchmark]
        assert row.imbalance_factor in benchmark.imbalance_factors and row.images_per_class in benchmark.images_per_class
    named = {
        ModelConfig(architecture=name).label_at(size)
        for name, size in (("convnet", 32), ("convnet", 64), ("vgg11", 32), ("resnet18", 32), ("resnet50", 224), ("alexnet", 32))
    }
    assert set(frame["network"]) == named
    assert not frame.duplicated(["table", *CELL, "method"]).any()


def test_one_number_a_cell_and_the_one_with_a_deviation():
    rldd = published_of("RLDD")
    assert not rldd.duplicated(CELL).any() and len(rldd) == 9 + 9 + 4 + 4 + 4 + 3 + 3
    cell = rldd[
        (rldd["benchmark"] == "cifar10_lt") & (rldd["imbalance_factor"] == 100) & (rldd["images_per_class"] == 10) & (rldd["network"] == "ConvNet-3")
    ]
    assert cell[["percent", "percent_deviation"]].values.tolist() == [[62.7, 0.1]]


def test_who_changes_the_table_changes_a_copy():
    mine = published()
    mine["percent"] = 0.0
    assert published()["percent"].min() > 0


def test_the_file_is_part_of_the_package_and_states_its_source():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "published_top1.csv" in settings["tool"]["setuptools"]["package-data"]["ray_ltdd.results"]
    assert "arXiv 2511.18858" in (REPOSITORY / "ray_ltdd" / "results" / "published_top1.csv").read_text()[:400]
