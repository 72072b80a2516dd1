from pathlib import Path

import pytest

from ray_ltdd.data.catalogue import BENCHMARKS, find_benchmark
from ray_ltdd.errors import InputError


def test_the_published_benchmarks_are_listed_with_their_sizes():
    facts = {name: (b.class_count, b.head_count, b.image_sizes) for name, b in BENCHMARKS.items()}
    assert facts["cifar10_lt"] == (10, 5000, (32,))
    assert facts["cifar100_lt"] == (100, 500, (32,))
    assert facts["tiny_imagenet_lt"] == (200, 500, (64,))
    assert facts["imagenet_lt"] == (1000, 1280, (64, 224))
    assert facts["digits_lt"][0] == 10
    assert {"image_folder", "parquet"} < set(facts)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match=r"data.dataset='cifar10lt' is unknown: did you mean cifar10_lt\?"):
        find_benchmark("cifar10lt")
    with pytest.raises(InputError, match="known: cifar10_lt, cifar100_lt"):
        find_benchmark("qqqq")


def test_image_size_not_offered():
    assert find_benchmark("imagenet_lt").resolve_image_size(None) == 64
    assert find_benchmark("imagenet_lt").resolve_image_size(224) == 224
    assert find_benchmark("image_folder").resolve_image_size(48) == 48
    with pytest.raises(InputError, match=r"data.image_size=128 is not offered for imagenet_lt: use 64 or 224"):
        find_benchmark("imagenet_lt").resolve_image_size(128)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_instructions_say_what_and_where_without_open_placeholders(name):
    text = BENCHMARKS[name].how_to_get(Path("/the/place"))
    assert "{place}" not in text and "{{" not in text and "{archive}" not in text
    if BENCHMARKS[name].class_count and name != "digits_lt":
        assert "http" in text and "/the/place" in text
