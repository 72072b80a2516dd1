import numpy as np
import pytest
from sklearn.datasets import load_digits

from ray_ltdd.data.catalogue import find_benchmark
from ray_ltdd.data.sources import open_source
from ray_ltdd.errors import InputError


def test_digits_fill_the_range_of_a_byte(tmp_path):
    contents = open_source(find_benchmark("digits_lt"), None, tmp_path).load()
    digits = load_digits()
    assert contents.test is None and len(contents.class_names) == 10
    np.testing.assert_array_equal(contents.train.label_N, digits.target)
    image_HW = np.asarray(next(contents.train.images(np.array([5]))).open())
    np.testing.assert_allclose(image_HW / 255 * 16, digits.images[5], atol=16 / 255 / 2)


def test_digits_take_no_path(tmp_path):
    with pytest.raises(InputError, match=r"digits_lt comes with scikit-learn: remove data.path"):
        open_source(find_benchmark("digits_lt"), str(tmp_path), tmp_path)


@pytest.mark.parametrize("name", ["image_folder", "parquet"])
def test_own_data_needs_a_path(tmp_path, name):
    with pytest.raises(InputError, match=f"data.dataset={name} needs data.path: set data.path to a folder with train"):
        open_source(find_benchmark(name), None, tmp_path)


@pytest.mark.parametrize("name", ["imagenet_lt", "tiny_imagenet_lt"])
def test_missing_dataset_says_what_from_where_and_where_to(tmp_path, name):
    with pytest.raises(InputError, match=f"is not at .*/sources/{name}: download .*http.*{tmp_path}/sources/{name}"):
        open_source(find_benchmark(name), None, tmp_path).identity()
