"""Tiny real datasets, written by the tests that read them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_images import encode


@pytest.fixture
def write_folder():
    """Write ROOT/<part>/<class>/<i>.png for `{part: {class: count}}`; image i of everything written has `pixels(i)`."""

    def write(root, parts, suffix=".png", form="PNG", size=(12, 12)):
        number = 0
        for part, classes in parts.items():
            for name, count in classes.items():
                folder = Path(root) / part / name
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    (folder / f"{i:05d}{suffix}").write_bytes(encode(number, form, size))
                    number += 1
        return Path(root)

    return write


@pytest.fixture
def write_parquet():
    """Write one Parquet file in the hub's schema; row i holds `pixels(first + i)`."""

    def write(path, labels, names=("cat", "dog"), first=0, image="image", label="label", row_group_size=3, size=(12, 12), kind=None):
        images = [{"bytes": encode(first + i, size=size), "path": f"{i}.png"} for i in range(len(labels))]
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({image: pa.array(images, struct), label: pa.array(labels, kind or pa.int64())})
        if names is not None:
            features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=row_group_size)
        return path

    return write
