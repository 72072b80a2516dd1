import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_ltdd.data.groups import COUNT_RULE, THIRDS_RULE, shot_groups


def test_usual_bounds():
    group_K, rule = shot_groups(np.array([101, 100, 20, 19]))
    assert group_K.tolist() == ["many", "medium", "medium", "few"]
    assert rule == COUNT_RULE


@pytest.mark.parametrize("counts", [[5000, 232, 50, 3000], [90, 50, 20, 10], [5, 4, 3, 2], [500, 400, 3, 2]])
def test_an_empty_group_makes_thirds(counts):
    group_K, rule = shot_groups(np.array(counts))
    largest_first = group_K[np.argsort(-np.array(counts))]
    assert largest_first.tolist() == ["many", "many", "medium", "few"]
    assert rule == THIRDS_RULE


@given(st.lists(st.integers(1, 2000), min_size=3, max_size=40))
def test_groups_never_empty_and_ordered_by_count(counts):
    count_K = np.array(counts)
    group_K, _ = shot_groups(count_K)
    assert set(group_K) == {"many", "medium", "few"}
    assert count_K[group_K == "many"].min() >= count_K[group_K == "medium"].max()
    assert count_K[group_K == "medium"].min() >= count_K[group_K == "few"].max()
