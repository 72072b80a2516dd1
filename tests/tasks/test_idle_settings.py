"""Settings that change nothing, as the others are, make no other key: what a sweep has computed is found again."""

import pytest
from pydantic import ValidationError

from ray_ltdd.stages.calibrate import CalibrateConfig
from ray_ltdd.stages.select_crops import SelectCropsConfig
from ray_ltdd.statistics.schedules import MomentumConfig


@pytest.mark.parametrize(("schedule", "used"), [("cumulative", set()), ("constant", {"value"}), ("warmup", {"value"}), ("power", {"exponent"})])
def test_a_schedule_keeps_what_it_uses(schedule, used):
    plain = MomentumConfig(schedule=schedule)
    for name in ("value", "exponent"):
        changed = MomentumConfig(schedule=schedule, **{name: 0.3})
        assert (changed.in_effect() == plain) == (name not in used) and (changed.in_effect() == changed) == (name in used)


@pytest.mark.parametrize("class_weights", ["uniform", "sample", "effective_number"])
def test_the_targets_beta_is_of_effective_numbers(class_weights):
    plain, changed = (CalibrateConfig(class_weights=class_weights, beta=beta).target() for beta in (0.999, 0.9))
    assert (plain != changed) == (class_weights == "effective_number") and plain["class_weights"] == class_weights
    assert CalibrateConfig(variance="mean_of_classes").target() != CalibrateConfig().target()


@pytest.mark.parametrize(
    ("method", "idle"),
    [
        ("confidence", set()),
        ("random", {"confidence_threshold", "max_rounds"}),
        ("noise", {"confidence_threshold", "max_rounds", "crops_per_image", "min_scale", "max_scale", "flip"}),
    ],
)
def test_a_choice_of_crops_keeps_what_its_method_uses(method, idle):
    changes = {"confidence_threshold": 0.5, "max_rounds": 2, "crops_per_image": 7, "min_scale": 0.3, "max_scale": 0.9, "flip": False}
    assert set(changes) == set(SelectCropsConfig.model_fields) - {"method"}
    plain = SelectCropsConfig(method=method)
    for name, value in changes.items():
        changed = SelectCropsConfig(method=method, **{name: value})
        assert (changed.in_effect() == plain) == (name in idle) and changed.in_effect().method == method
    with pytest.raises(ValidationError):
        SelectCropsConfig(method=method, min_scale=0.9, max_scale=0.3)
