import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from reference.moments import newest_weight

from ray_ltdd.statistics.schedules import MomentumConfig, momentum

NAMES = ("cumulative", "constant", "power", "warmup")
COUNT_K = st.lists(st.integers(0, 40), min_size=4, max_size=4)


@settings(deadline=None, max_examples=80)
@given(schedule=st.sampled_from(NAMES), value=st.floats(0.01, 1), exponent=st.floats(0.1, 4), before_K=COUNT_K, batch_K=COUNT_K)
def test_against_one_class_after_another(schedule, value, exponent, before_K, batch_K):
    a_K = momentum(MomentumConfig(schedule=schedule, value=value, exponent=exponent), torch.tensor(before_K), torch.tensor(batch_K))
    assert a_K.dtype == torch.float64
    assert a_K.tolist() == pytest.approx([newest_weight(schedule, n, b, value, exponent) for n, b in zip(before_K, batch_K, strict=True)])
    assert bool(((a_K >= 0) & (a_K <= 1)).all())


@pytest.mark.parametrize("schedule", NAMES)
def test_the_first_batch_counts_whole_and_an_absent_class_nothing(schedule):
    a_K = momentum(MomentumConfig(schedule=schedule, value=0.2, exponent=3), torch.tensor([0, 0, 7]), torch.tensor([3, 0, 0]))
    assert a_K.tolist() == [1.0, 0.0, 0.0]


def test_power_one_is_cumulative_and_smaller_exponents_forget_faster():
    before_K, batch_K = torch.tensor([6]), torch.tensor([2])
    a = [momentum(MomentumConfig(schedule="power", exponent=e), before_K, batch_K).item() for e in (0.5, 1.0, 2.0)]
    assert a == pytest.approx([0.5, 0.25, 0.0625])


@pytest.mark.parametrize("change", [{"value": 0.0}, {"value": 1.1}, {"exponent": 0.0}, {"schedule": "fixed"}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValidationError):
        MomentumConfig(**change)
