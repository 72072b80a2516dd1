"""A folder's results are of one dataset, wherever it lies."""

from dataclasses import replace

import pytest

from ray_ltdd.data.belonging import RECORD, record_data, require_same_data
from ray_ltdd.data.prepare import DataConfig, prepare_dataset
from ray_ltdd.errors import InputError


def test_other_data_are_refused_for_a_use_that_is_known(tmp_path):
    digits = prepare_dataset(DataConfig(root=str(tmp_path / "data")))
    moved, other = replace(digits, source="elsewhere"), replace(digits, source="elsewhere", fingerprint="0" * 64)
    folder = tmp_path / "run"
    require_same_data(folder, {"a": digits})
    assert not folder.exists()
    record_data(folder, {"a": digits})
    written = (folder / RECORD).read_bytes()
    for data in (digits, moved):
        require_same_data(folder, {"a": data})
        record_data(folder, {"a": data})
    assert (folder / RECORD).read_bytes() == written
    with pytest.raises(InputError, match=rf"has results of other data \({digits.source}, fingerprint {digits.fingerprint[:8]}\) than these \(else"):
        require_same_data(folder, {"b": digits, "a": other})
    require_same_data(folder, {"b": other})
    record_data(folder, {"a": digits, "b": other})
    with pytest.raises(InputError, match="00000000"):
        require_same_data(folder, {"a": digits, "b": digits})


@pytest.mark.parametrize("text", ["", "{", "3", "[]", '{"digits_lt": 3}', '{"digits_lt": {"fingerprint": "ab"}}', '{"digits_lt": null}'])
def test_a_damaged_record_is_one_sentence_and_stays(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    for use in (require_same_data, record_data):
        with pytest.raises(InputError, match=r"data\.json, the record .*, is damaged \(.*\): restore it, or .*\(name=\.\.\.\)[^\n]*\.$"):
            use(tmp_path, {})
    assert (tmp_path / RECORD).read_text() == text
