"""Damaged and foreign files: a sentence that names the file, never a traceback, never wrong content taken for right."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ray_ltdd import InputError, load_distilled
from ray_ltdd.results.distilled import write_distilled
from ray_ltdd.results.rows import SCHEMA, append_rows, read_rows

ROW = dict.fromkeys(SCHEMA.names) | {"artifact": "a", "fingerprint": "f", "method": "distilled", "per_class": [0.5, None]}


@pytest.fixture
def distilled(tmp_path):
    image_NCHW = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_distilled(tmp_path, image_NCHW, torch.tensor([0, 0, 0, 1, 1, 1]), torch.zeros(6, 2).half(), ["cat", "dog"], "card")
    return tmp_path / "train.parquet"


def test_flipped_bits_are_noticed_or_harmless(distilled):
    """Every 40th byte in turn."""
    content, whole = distilled.read_bytes(), load_distilled(distilled)
    n_noticed, silent = 0, []
    for at in range(0, len(content), 40):
        damaged = bytearray(content)
        damaged[at] ^= 0x20
        distilled.write_bytes(damaged)
        try:
            found = load_distilled(distilled)
        except InputError as error:
            n_noticed += 1
            assert str(distilled) in str(error) and "\n" not in str(error).strip()
            continue
        same = (
            torch.equal(found.image_NCHW, whole.image_NCHW)
            and torch.equal(found.label_N, whole.label_N)
            and torch.equal(found.logit_NK, whole.logit_NK)
        )
        silent += [] if same else [at]
    assert n_noticed > 10 and silent == []


@pytest.mark.parametrize("change", ["no metadata", "no names", "no JSON", "no logits", "no images", "images of two sizes", "no rows"])
def test_foreign_parquet_is_one_sentence(distilled, change):
    table = pq.read_table(distilled)
    if change == "no metadata":
        table = table.replace_schema_metadata(None)
    elif change == "no names":
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"label": {}}}})})
    elif change == "no JSON":
        table = table.replace_schema_metadata({"huggingface": "{"})
    elif change == "no logits":
        table = table.drop_columns("logits")
    elif change == "no images":
        table = table.set_column(0, "image", pa.array([{"bytes": b"junk", "path": ""}] * 6))
    elif change == "images of two sizes":
        from ray_ltdd.results.distilled import _png

        small = _png(torch.zeros(3, 4, 4, dtype=torch.uint8).numpy())
        table = table.set_column(0, "image", pa.array([{"bytes": small, "path": ""}, *table["image"].to_pylist()[1:]]))
    else:
        table = table.slice(0, 0)
    pq.write_table(table, distilled)
    with pytest.raises(InputError, match=r"train\.parquet is no distilled dataset or is damaged"):
        load_distilled(distilled)


def test_classes_without_test_images_and_missing_groups_are_null(tmp_path):
    append_rows(tmp_path, [ROW])
    (row,) = read_rows(tmp_path).to_pylist()
    assert row["per_class"] == [0.5, None] and row["many"] is None and row["image_bytes"] is None


def test_every_field_comes_back(tmp_path):
    values = {pa.int32(): 3, pa.int64(): 2**40, pa.float64(): 0.1, pa.string(): "é", pa.list_(pa.float64()): [0.25], pa.list_(pa.int64()): [5]}
    full = {field.name: values.get(field.type, [("Recover", 1.5)]) for field in SCHEMA}
    append_rows(tmp_path, [full])
    assert read_rows(tmp_path).to_pylist() == [full]


@pytest.mark.parametrize("cut", [0, 100, -20])
def test_a_damaged_rows_file_is_one_sentence(tmp_path, cut):
    path = append_rows(tmp_path, [ROW])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=path.name):
        read_rows(tmp_path)


def test_the_same_result_under_other_settings_is_another_row(tmp_path):
    for change in ({}, {"fingerprint": "g"}, {"method": "random"}, {"artifact": "b"}, {}):
        append_rows(tmp_path, [ROW | change])
    assert len(read_rows(tmp_path)) == 4


def test_a_result_computed_anew_takes_the_place_of_the_lost_one(tmp_path):
    for created, top1 in (("2026-01-01", 0.5), ("2026-01-01", 0.6), ("2026-01-02", 0.9)):
        append_rows(tmp_path, [ROW | {"created": created, "top1": top1}])
        assert read_rows(tmp_path)["top1"].to_pylist() == [0.9 if created == "2026-01-02" else 0.5]


def test_a_damaged_rows_file_is_replaced_by_whoever_has_its_rows(tmp_path):
    path = append_rows(tmp_path, [ROW])
    path.write_bytes(path.read_bytes()[:20])
    append_rows(tmp_path, [ROW])
    assert len(read_rows(tmp_path)) == 1
