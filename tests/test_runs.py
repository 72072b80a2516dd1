"""What a run tells its user beside the numbers."""

import numpy as np

from ray_ltdd.runs import inert_schedule
from ray_ltdd.stages.calibrate import CalibrateConfig
from ray_ltdd.statistics.schedules import MomentumConfig

COUNT_K = np.array([500, 257, 256, 5])


def test_a_schedule_that_cannot_show_is_said():
    constant = CalibrateConfig(momentum=MomentumConfig(schedule="constant"), batch_size=256)
    (sentence,) = inert_schedule(constant, COUNT_K)
    assert "schedule=constant changes nothing for 2 of 4 classes" in sentence and "lower calibrate.batch_size (now 256)" in sentence
    assert inert_schedule(constant.model_copy(update={"batch_size": 4}), COUNT_K) == []
    assert inert_schedule(CalibrateConfig(), COUNT_K) == []
