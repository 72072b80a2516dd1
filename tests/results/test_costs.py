"""Costs from summaries: what is loaded, and what more workers gained."""

import json

import numpy as np
import pytest

from ray_ltdd import InputError
from ray_ltdd.executor import StageRecord
from ray_ltdd.results.costs import COLUMNS, load_costs, read_summary, scaling_figures, stage_figures, worker_gains


def finished(folder, workers, seconds, fingerprint="abc", reused=0):
    """A run's summary with one stage computed by workers and one by the process itself."""
    records = [
        StageRecord("Recover", wall_seconds=seconds, compute_seconds=10.0, n_computed=4, n_reused=reused, n_workers=workers, busy_seconds=10.0),
        StageRecord("Relabel", wall_seconds=1.0, compute_seconds=1.0, n_computed=1),
    ]
    folder.mkdir(parents=True)
    summary = {"fingerprint": fingerprint, "stages": {record.title: record.describe() for record in records}}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_costs_of_all_runs_below_a_folder(tmp_path):
    finished(tmp_path / "deep" / "one", 2, 6.0)
    finished(tmp_path / "two", 1, 11.0)
    finished(tmp_path / "artifacts of all" / "not a run", 1, 11.0)
    (tmp_path / "artifacts of all" / "locks").mkdir()
    costs = load_costs(tmp_path)
    assert list(costs.columns) == COLUMNS and costs["run"].tolist() == ["one", "one", "two", "two"]
    recover = costs[costs["stage"] == "Recover"].set_index("run")
    assert recover["utilisation"]["one"] == pytest.approx(10 / 12) and recover["n_workers"].tolist() == [2, 1]
    assert list(stage_figures(tmp_path)) == ["one", "two"]


def test_gains_need_fresh_stages_of_several_numbers_of_workers(tmp_path):
    finished(tmp_path / "1", 1, 12.0)
    finished(tmp_path / "2", 2, 8.0)
    finished(tmp_path / "4", 4, 4.0)
    finished(tmp_path / "4 from the store", 4, 0.1, reused=4)
    finished(tmp_path / "other settings", 8, 0.5, fingerprint="other")
    gains = worker_gains(load_costs(tmp_path))
    assert gains["n_workers"].tolist() == [1, 2, 4] and set(gains["stage"]) == {"Recover"}
    np.testing.assert_allclose(gains["speedup"], [1, 1.5, 3])
    np.testing.assert_allclose(gains["efficiency"], [1, 0.75, 0.75])
    (figure,) = scaling_figures(load_costs(tmp_path)).values()
    ideal, line = figure.axes[0].get_lines()
    np.testing.assert_allclose(ideal.get_ydata(), [1, 2, 4])
    np.testing.assert_allclose(line.get_ydata(), gains["speedup"])


def test_summaries_of_earlier_versions_say_less(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"stages": {"Recover": {"wall_seconds": 2.0, "compute_seconds": 1.0}}}))
    costs = load_costs(tmp_path)
    assert costs["wall_seconds"].tolist() == [2.0] and costs["n_workers"].isna().all()
    assert worker_gains(costs).empty and scaling_figures(costs) == {} and len(stage_figures(tmp_path)) == 1


def test_missing_and_damaged(tmp_path):
    assert read_summary(tmp_path) is None and load_costs(tmp_path).empty
    with pytest.raises(InputError, match="there is no folder"):
        load_costs(tmp_path / "nowhere")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match="damaged") as refusal:
        load_costs(tmp_path)
    assert "\n" not in str(refusal.value)
