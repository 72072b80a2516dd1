import re
from fractions import Fraction
from math import floor

import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_ltdd.data.prepare import DataConfig, prepare_dataset
from ray_ltdd.data.prepared import ImageSet, PreparedDataset
from ray_ltdd.data.split import SplitConfig, class_counts, draw_split
from ray_ltdd.errors import InputError


def named(class_count):
    return [f"class{k}" for k in range(class_count)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare_dataset(DataConfig(root=str(tmp_path_factory.mktemp("digits"))))


def in_memory(tmp_path, counts, channels=3, seed=0):
    """A prepared dataset with shuffled labels and random pixels."""
    random = np.random.default_rng(seed)
    label_N = random.permutation(np.repeat(np.arange(len(counts)), counts))
    image_NCHW = random.integers(0, 256, (len(label_N), channels, 4, 4), dtype=np.uint8)
    part = ImageSet(image_NCHW, label_N)
    return PreparedDataset(tmp_path, "image_folder", tuple(named(len(counts))), 4, channels, "memory", part, part, "ab" * 32)


def test_the_published_counts_of_cifar10_lt():
    count_K = class_counts(SplitConfig(imbalance_factor=100), np.full(10, 5000), named(10), 5000)
    assert count_K.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert count_K.sum() == 12406 and count_K.dtype == np.int64


@pytest.mark.parametrize(("factor", "last", "total"), [(10, 50, 19573), (20, 25, 15907), (50, 10, 12608)])
def test_the_published_counts_of_cifar100_lt(factor, last, total):
    count_K = class_counts(SplitConfig(imbalance_factor=factor), np.full(100, 500), named(100), 500)
    assert (count_K[0], count_K[-1], count_K.sum()) == (500, last, total)


@pytest.mark.parametrize("profile", ["exponential", "step"])
def test_rounding_does_not_cost_the_last_class_an_image(profile):
    config = SplitConfig(profile=profile, imbalance_factor=49, head_count=196)
    assert 196 * 49.0**-1 < 4
    assert class_counts(config, np.full(10, 196), named(10))[-1] == 4


def exact_floor(head, factor, c, last):
    """The largest n with n^last * IF^c <= head^last, in integers: floor(head * IF^(-c / last)) without rounding."""
    low, high = 0, head
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**last * factor**c <= Fraction(head) ** last else (low, middle - 1)
    return low


@given(st.integers(1, 3000), st.fractions(1, 300, max_denominator=8), st.integers(1, 25))
def test_exponential_counts_equal_exact_arithmetic(head, factor, class_count):
    exact = [exact_floor(head, factor, c, max(class_count - 1, 1)) for c in range(class_count)]
    config = SplitConfig(imbalance_factor=float(factor), head_count=head)
    if min(exact) == 0:
        with pytest.raises(InputError, match="is left with no training image"):
            class_counts(config, np.full(class_count, head), named(class_count))
    else:
        assert class_counts(config, np.full(class_count, head), named(class_count)).tolist() == exact


@given(st.integers(1, 500), st.integers(1, 50), st.floats(0.01, 0.99), st.integers(2, 30))
def test_step_counts(head, factor, fraction, class_count):
    config = SplitConfig(profile="step", imbalance_factor=factor, head_count=head * factor, step_fraction=fraction)
    count_K = class_counts(config, np.full(class_count, 500 * 50), named(class_count))
    heads = (count_K == head * factor).sum() if factor > 1 else 1
    assert set(count_K.tolist()) == {head * factor, floor(Fraction(head * factor, factor))}
    if factor > 1:
        assert 1 <= heads < class_count and abs(heads - fraction * class_count) <= 1
        assert (np.diff(count_K) <= 0).all()


def test_counts_and_natural():
    available_K = np.array([7, 3, 9])
    assert class_counts(SplitConfig(profile="natural"), available_K, named(3), 5).tolist() == [7, 3, 9]
    assert class_counts(SplitConfig(profile="counts", counts=(1, 3, 2)), available_K, named(3)).tolist() == [1, 3, 2]
    with pytest.raises(InputError, match=r"split.counts has 2 entries but the dataset has 3 classes: give one each"):
        class_counts(SplitConfig(profile="counts", counts=(1, 3)), available_K, named(3))
    with pytest.raises(InputError, match=r"class 'class1' needs 4 .* source offers 3: .* or a smaller count"):
        class_counts(SplitConfig(profile="counts", counts=(1, 4, 2)), available_K, named(3))


def test_head_count_default():
    config = SplitConfig(imbalance_factor=1)
    assert class_counts(config, np.full(2, 9), named(2), 5).tolist() == [5, 5]
    assert class_counts(config, np.full(2, 4), named(2), 5).tolist() == [4, 4]
    assert class_counts(config, np.full(2, 4), named(2)).tolist() == [4, 4]


def test_too_few_images_name_class_numbers_and_remedy():
    config, available_K = SplitConfig(imbalance_factor=10, validation_per_class=7), np.array([100, 20, 30])
    message = (
        r"class 'class1' needs 31 training images for split.profile=exponential but the source offers 20 beside the 7 "
        r"for validation: set split.allow_fewer=true or split.head_count of 10 to 63"
    )
    with pytest.raises(InputError, match=message):
        class_counts(config, available_K, named(3), 100)
    fewer = config.model_copy(update={"allow_fewer": True})
    assert class_counts(fewer, available_K, named(3), 100).tolist() == [100, 20, 10]
    fitting = config.model_copy(update={"head_count": 63})
    assert class_counts(fitting, available_K, named(3)).tolist() == [63, 19, 6]


REMEDY = re.compile(r"split\.(\w+)(?:=(\w+)| of (?:at most )?(\d+)(?: to (\d+))?)(?: with split\.(allow_fewer)=true)?")


def remedies_of(error, config):
    """The settings that each remedy of an error's sentence stands for; of a range both ends."""
    for name, word, first, last, fewer in REMEDY.findall(str(error).partition(": set ")[2]):
        aside = {"allow_fewer": True} if fewer else {}
        for value in filter(None, (word, first, last)):
            yield SplitConfig(**{**config.model_dump(), name: True if value == "true" else value, **aside})


@settings(max_examples=100, deadline=None)
@given(
    available=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    profile=st.sampled_from(["exponential", "step"]),
    factor=st.one_of(st.integers(1, 400), st.floats(1, 400)),
    head_count=st.one_of(st.none(), st.integers(1, 400)),
    benchmark_head_count=st.one_of(st.none(), st.integers(1, 400)),
    allow_fewer=st.booleans(),
)
def test_no_remedy_leads_to_another_error(available, profile, factor, head_count, benchmark_head_count, allow_fewer):
    available_K = np.array(available)
    config = SplitConfig(profile=profile, imbalance_factor=factor, head_count=head_count, allow_fewer=allow_fewer)
    try:
        class_counts(config, available_K, named(len(available)), benchmark_head_count)
    except InputError as error:
        remedies = list(remedies_of(error, config))
        assert remedies and (remedies[0].profile == "natural") == (benchmark_head_count is None)
        for remedy in remedies:
            assert class_counts(remedy, available_K, named(len(available)), benchmark_head_count).min() >= 1


def test_own_long_tailed_data_is_told_of_the_natural_profile_first():
    natural = r"set split.profile=natural to take all there are \(if the dataset is long-tailed already\) or "
    with pytest.raises(InputError, match=rf"source offers 1: {natural}split.imbalance_factor of at most 20 with split.allow_fewer=true$"):
        class_counts(SplitConfig(), np.array([1, 12, 20, 6]), named(4))
    with pytest.raises(InputError, match=rf"'class1' is left with no training image .*: {natural}split.imbalance_factor of at most 30"):
        class_counts(SplitConfig(), np.array([30, 30]), named(2))


def test_a_class_without_images():
    with pytest.raises(InputError, match=r"class 'class1' is left with no training image \(the source offers 0\): add images"):
        class_counts(SplitConfig(profile="natural"), np.array([3, 0]), named(2))


@pytest.mark.parametrize(
    "bad",
    [
        {"imbalance_factor": 0.5},
        {"profile": "counts"},
        {"counts": (1, 2)},
        {"profile": "counts", "counts": (0, 2)},
        {"name": "a/b"},
        {"head_count": 0},
        {"imbalance_factr": 2},
    ],
)
def test_settings_refuse(bad):
    with pytest.raises(pydantic.ValidationError):
        SplitConfig(**bad)


def test_order_labels_and_moments(digits):
    split = draw_split(SplitConfig(imbalance_factor=10, validation_per_class=5), digits)
    assert split.name == "digits_lt-exponential-if10-main-s0"
    label_N = digits.train.label_N[split.train_index_N]
    assert np.bincount(label_N).tolist() == split.count_K.tolist()
    np.testing.assert_array_equal(np.lexsort((split.train_index_N, label_N)), np.arange(len(label_N)))
    assert np.bincount(digits.train.label_N[split.validation_index_N]).tolist() == [5] * 10
    pixel_NCHW = digits.train.image_NCHW[split.train_index_N].astype(np.float64) / 255
    np.testing.assert_allclose(split.mean_C, pixel_NCHW.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(split.std_C, pixel_NCHW.std((0, 2, 3)), rtol=1e-12)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    counts=st.lists(st.integers(12, 60), min_size=2, max_size=5),
    factors=st.tuples(st.floats(1, 4), st.floats(1, 4)),
    validation=st.integers(0, 4),
    seed=st.integers(0, 5),
)
def test_splits_are_nested_and_disjoint_from_validation(tmp_path, counts, factors, validation, seed):
    prepared = in_memory(tmp_path, counts)
    common = {"validation_per_class": validation, "seed": seed, "allow_fewer": True}
    small, large = [draw_split(SplitConfig(imbalance_factor=f, **common), prepared) for f in sorted(factors, reverse=True)]
    assert set(small.train_index_N) <= set(large.train_index_N)
    np.testing.assert_array_equal(small.validation_index_N, large.validation_index_N)
    assert not set(large.train_index_N) & set(large.validation_index_N)
    assert len(set(large.train_index_N)) == large.count_K.sum() and len(large.validation_index_N) == validation * len(counts)
    natural = draw_split(SplitConfig(profile="natural", **common), prepared)
    np.testing.assert_array_equal(natural.validation_index_N, large.validation_index_N)
    assert natural.count_K.tolist() == [count - validation for count in counts]
    everything = np.concatenate([natural.train_index_N, natural.validation_index_N])
    assert sorted(everything) == list(range(sum(counts)))


def test_a_validation_part_leaves_the_training_draw_alone(digits):
    plain = draw_split(SplitConfig(imbalance_factor=10), digits)
    aside = draw_split(SplitConfig(imbalance_factor=10, validation_per_class=5), digits)
    np.testing.assert_array_equal(plain.train_index_N, aside.train_index_N)
    assert plain.fingerprint != aside.fingerprint


def test_a_class_draw_does_not_depend_on_the_other_classes(tmp_path):
    prepared = in_memory(tmp_path, [9, 9, 9])
    one = draw_split(SplitConfig(profile="counts", counts=(4, 2, 3)), prepared)
    other = draw_split(SplitConfig(profile="counts", counts=(1, 2, 9)), prepared)
    of_class1 = [s.train_index_N[prepared.train.label_N[s.train_index_N] == 1] for s in (one, other)]
    np.testing.assert_array_equal(*of_class1)


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "second"}, {"imbalance_factor": 11}, {"validation_per_class": 1}])
def test_the_fingerprint_reacts(digits, change):
    config = SplitConfig(imbalance_factor=10)
    first, again = draw_split(config, digits), draw_split(config, digits)
    assert first.fingerprint == again.fingerprint and len(first.fingerprint) == 64
    assert draw_split(config.model_copy(update=change), digits).fingerprint != first.fingerprint


def test_the_fingerprint_reacts_to_the_dataset(tmp_path):
    config, prepared = SplitConfig(profile="natural"), in_memory(tmp_path, [5, 5])
    other = PreparedDataset(**{**vars(prepared), "fingerprint": "cd" * 32})
    assert draw_split(config, prepared).fingerprint != draw_split(config, other).fingerprint


def test_moments_do_not_depend_on_chunks(tmp_path, monkeypatch):
    prepared = in_memory(tmp_path, [40, 40])
    whole = draw_split(SplitConfig(profile="natural"), prepared)
    monkeypatch.setattr("ray_ltdd.data.split._CHUNK_BYTES", 7 * 48)
    parts = draw_split(SplitConfig(profile="natural"), prepared)
    assert whole.mean_C.tolist() == parts.mean_C.tolist() and whole.std_C.tolist() == parts.std_C.tolist()


def test_validation_that_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"class 'class1' has 3 images, so split.validation_per_class=3 leaves none"):
        draw_split(SplitConfig(profile="natural", validation_per_class=3), in_memory(tmp_path, [5, 3]))


def test_blank_images(tmp_path):
    prepared = in_memory(tmp_path, [5, 5])
    prepared.train.image_NCHW[:, 1] = 7
    with pytest.raises(InputError, match="all pixels of channel 1 of the training images are equal"):
        draw_split(SplitConfig(profile="natural"), prepared)
