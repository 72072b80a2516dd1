"""Students scored on class-balanced training images, for choosing settings without the test set and without setting images aside."""

import numpy as np
import pytest
from commands import quickstart_run

from ray_ltdd import workbench
from ray_ltdd.errors import InputError
from ray_ltdd.results.rows import read_rows
from ray_ltdd.runs import execute

TINY = (
    "cluster.executor=inline",
    "compute.compile=off",
    "experts={epochs: 2, accuracy_floor: 0}",
    "recover.steps=2",
    "evaluate={epochs: 2, seeds: 2, part: balanced_train, baselines: []}",
)


def opened(folder, *overrides):
    return quickstart_run(folder, *TINY, *overrides)


@pytest.mark.parametrize("most", [3, 100])
def test_every_class_has_as_many_as_the_smallest_and_all_are_training_images(tmp_path, monkeypatch, most):
    monkeypatch.setattr(workbench, "MOST_TRAINING_IMAGES_SCORED", most)
    bench = opened(tmp_path).bench
    bank, train = bench.bank("balanced_train"), bench.bank("train")
    n = min(most, int(bench.split.count_K.min()))
    assert np.bincount(bank.label_N).tolist() == [n] * 10 and bench.n_images("balanced_train") == len(bank) == 10 * n
    assert set(bank.index_N.tolist()) <= set(train.index_N.tolist())
    assert len(set(bank.index_N.tolist())) == len(bank)


def test_students_and_experts_are_scored_on_them_and_the_rows_say_so(tmp_path):
    with opened(tmp_path) as run:
        report = execute(run)
        n = run.bench.n_images("balanced_train")
    rows = read_rows(run.folder / "results").to_pylist()
    assert {row["part"] for row in rows} == {"balanced_train"} and {row["n_tested"] for row in rows} == {n}
    assert [outcome.method for outcome in report.outcomes] == ["distilled", "observer", "teacher"]


def test_baselines_that_train_on_them_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"^[^\n]*evaluate\.part=balanced_train[^\n]*evaluate\.baselines=\[\][^\n]*$"):
        opened(tmp_path, "evaluate.baselines=[random]")
