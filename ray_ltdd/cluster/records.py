"""What a sweep's driver leaves about trials that have ended: their result rows, and what they asked of the stages."""

import json
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ray_ltdd.cluster.studies import INTERRUPTED, REASON, CellStudy, Studies
from ray_ltdd.cluster.trial import Final, TrialSetup, read_record
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.data.catalogue import find_benchmark
from ray_ltdd.errors import InputError
from ray_ltdd.results.rows import SCHEMA, SCHEMA_VERSION, append_rows
from ray_ltdd.results.summary import SUMMARY
from ray_ltdd.search.report import StageUse

_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def write_all_rows(studies: Studies, setup: TrialSetup) -> None:
    """Write the rows of every trial that has ended, where they are not there yet: a driver may have been killed before it wrote them."""
    for study in studies:
        for trial in study.counted():
            if trial.state in _STATES:
                write_rows(study, trial, setup)


def write_rows(study: CellStudy, trial: FrozenTrial, setup: TrialSetup) -> None:
    """Write the rows of one trial that has ended: one a student, with the accuracy it had when it ended; one without, where it failed.

    Raises:
        InputError: the folder cannot be written.
    """
    if trial.user_attrs.get(REASON) == INTERRUPTED:
        return
    point = study.point(trial)
    known = {"state": _STATES[trial.state], "objectives": trial.values, "reason": trial.user_attrs.get(REASON)}
    rows = read_record(setup.trial_folder(study.cell, trial.number))["rows"]
    if trial.state == TrialState.FAIL:
        rows = [_empty_row(_settings_at(study, point), setup.row_fields(study.cell, "trial", trial.number, point))]
    if rows:
        append_rows(setup.folder / "results", [{**row, **known} for row in rows])


def _settings_at(study: CellStudy, point: Mapping[str, Any]) -> ExperimentConfig:
    """A trial's settings; the cell's own where a rule that couples settings forbids them, for which the trial has failed."""
    try:
        return study.cell.trial(point)
    except InputError:
        return study.cell.trial()


def _empty_row(config: ExperimentConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    size = find_benchmark(config.data.dataset).resolve_image_size(config.data.image_size)
    known = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": config.fingerprint,
        "benchmark": config.data.dataset,
        "images_per_class": config.distill.images_per_class,
        "method": "distilled",
        "network": config.evaluate.model.label_at(size),
        "labels": config.relabel.labels,
        "part": config.evaluate.part,
        "settings": json.dumps(config.model_dump(mode="json")),
    }
    return {**dict.fromkeys(SCHEMA.names), **known, **fields}


def stage_uses(studies: Studies, finals: list[Final], setup: TrialSetup) -> list[StageUse]:
    """What all trials and final runs that have ended asked of every stage."""
    records = [read_record(setup.trial_folder(study.cell, trial.number))["stages"] for study in studies for trial in study.counted()]
    records += [_stages_of(final, setup) for final in finals]
    total: dict[str, StageUse] = {}
    for stages in records:
        for title, record in stages.items():
            own = StageUse(title, record["n_computed"], record["n_reused"], record["compute_seconds"], record["reused_seconds"])
            total[title] = own if title not in total else total[title].plus(own)
    return list(total.values())


def _stages_of(final: Final, setup: TrialSetup) -> dict[str, Any]:
    path = final.folder(setup) / SUMMARY
    return dict(json.loads(path.read_text())["stages"]) if path.exists() else {}
