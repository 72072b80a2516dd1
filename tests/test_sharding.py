import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_ltdd.sharding import heaviest_first, work_units


@settings(deadline=None)
@given(n_classes=st.integers(1, 1000), classes_per_unit=st.integers(1, 50))
def test_units_partition_the_classes(n_classes, classes_per_unit):
    units = work_units(n_classes, classes_per_unit)
    assert sorted(label for unit in units for label in unit) == list(range(n_classes))
    assert all(1 <= len(unit) <= classes_per_unit and list(unit) == sorted(unit) for unit in units)
    assert len(units) == -(-n_classes // classes_per_unit)
    assert max(map(len, units)) - min(map(len, units)) <= 1


def test_units_mix_head_and_tail_classes():
    assert work_units(10, 4) == [(0, 3, 6, 9), (1, 4, 7), (2, 5, 8)]
    assert work_units(3, 10) == [(0, 1, 2)]


def test_units_of_a_long_tail_weigh_nearly_alike():
    count_K = [int(500 * 100 ** (-c / 99)) for c in range(100)]
    weights = [sum(count_K[label] for label in unit) for unit in work_units(100, 10)]
    in_blocks = [sum(count_K[start : start + 10]) for start in range(0, 100, 10)]
    assert max(weights) / min(weights) < 1.6 < max(in_blocks) / min(in_blocks)


@settings(deadline=None)
@given(costs=st.lists(st.floats(0, 1e6), max_size=30))
def test_heaviest_first_orders_by_falling_cost_and_keeps_ties_as_they_come(costs):
    ordered = heaviest_first(list(enumerate(costs)), costs)
    assert ordered == sorted(enumerate(costs), key=lambda item: (-item[1], item[0]))


@pytest.mark.parametrize("costs", [[], [3.0]])
def test_nothing_and_one_thing(costs):
    assert heaviest_first(["a"][: len(costs)], costs) == ["a"][: len(costs)]
