import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ray_ltdd.data.describe import describe, profile_figure, profile_rows
from ray_ltdd.data.prepare import DataConfig, prepare_dataset
from ray_ltdd.data.split import SplitConfig, draw_split


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    prepared = prepare_dataset(DataConfig(root=str(tmp_path_factory.mktemp("digits"))))
    return prepared, draw_split(SplitConfig(imbalance_factor=10, validation_per_class=3), prepared)


def with_classes(split, class_count):
    count_K = np.maximum(1, (1280 * 256 ** (-np.arange(class_count) / class_count)).astype(int))
    return dataclasses.replace(split, count_K=count_K), [f"n{k:08d}" for k in range(class_count)]


def rendered(table, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_describe_is_plain_data(drawn):
    facts = json.loads(json.dumps(describe(*drawn)))
    assert facts["images"] == {"source": 1297, "train": 446, "validation": 30, "test": 500}
    assert facts["count_per_class"] == [110, 85, 65, 51, 39, 30, 23, 18, 14, 11]
    assert facts["imbalance_factor"] == 10 and facts["split"] == "digits_lt-exponential-if10-main-s0"
    assert facts["split_fingerprint"] == drawn[1].fingerprint and facts["dataset_fingerprint"] == drawn[0].fingerprint
    assert facts["group_per_class"][0] == "many" and facts["bytes"] > 1797 * 256


@pytest.mark.parametrize("class_count", [1, 10, 30, 31, pytest.param(1000, marks=pytest.mark.slow)])
def test_figure_draws_every_class(tmp_path, drawn, class_count):
    split, names = with_classes(drawn[1], class_count)
    path = tmp_path / "new" / "profile.png"
    profile_figure(split, names, path)
    image = Image.open(path)
    assert image.format == "PNG" and image.size == (1200, 600)
    colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert (0x00, 0x72, 0xB2) in colours
    if class_count >= 3:
        assert {(0xE6, 0x9F, 0x00), (0xCC, 0x79, 0xA7)} <= colours


def test_a_class_name_is_no_formula(tmp_path, drawn):
    split, names = with_classes(drawn[1], 3)
    profile_figure(split, ["$\\frac$", *names[1:]], tmp_path / "profile.png")
    assert (tmp_path / "profile.png").exists()


def test_terminal_chart(drawn):
    text = rendered(profile_rows(drawn[1], drawn[0].class_names))
    rows = text.splitlines()
    assert "digits_lt-exponential-if10-main-s0" in rows[0] and len(rows) == 12
    assert rows[2].count("█") == 40 and rows[11].count("█") == 4 and "many" in rows[2] and "few" in rows[11]


def test_terminal_chart_of_many_classes_keeps_both_ends(drawn):
    split, names = with_classes(drawn[1], 1000)
    text = rendered(profile_rows(split, names))
    assert "40 of 1000 classes" in text and names[0] in text and names[-1] in text and len(text.splitlines()) == 42


def test_class_names_are_not_read_as_markup(drawn):
    split, _ = with_classes(drawn[1], 2)
    assert "[bold]odd[/]" in rendered(profile_rows(split, ["[bold]odd[/]", "even"]))


def test_class_names_are_not_read_as_mathematics(tmp_path, drawn):
    split, _ = with_classes(drawn[1], 3)
    profile_figure(split, ["a$b_", "c$d^$", "$x_$"], tmp_path / "profile.png")
    assert (tmp_path / "profile.png").is_file()
