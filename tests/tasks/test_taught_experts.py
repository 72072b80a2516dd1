"""A teacher taught by the observer: trained after it, from its logits, under a key of its own.

Legend: N images, K classes.
"""

import pytest
import torch
from commands import ROOT

from ray_ltdd import pipeline
from ray_ltdd.compute import Backend
from ray_ltdd.config import load_config
from ray_ltdd.errors import InputError
from ray_ltdd.executor import SilentReporter
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert
from ray_ltdd.runs import open_run
from ray_ltdd.search.costs import read_costs
from ray_ltdd.search.work import stage_runs
from ray_ltdd.stages.experts import ExpertTraining, expert_loss
from ray_ltdd.stages.scoring import predict
from ray_ltdd.tasks.distil import expert_task

SMALL = (
    "cluster.executor=inline",
    "compute.compile=off",
    "experts={epochs: 10, batch_size: 32, learning_rate: 0.05, accuracy_floor: 0, ema_decay: null}",
    "observer.model={width: 16, depth: 2}",
    "teacher.model={width: 16, depth: 2, normalization: group}",
)
IMITATE = ("teacher.taught_by=observer", "teacher.training={robust_weight: 0, debias_weight: 0, epochs: 20}")


def settings(folder, *overrides):
    return load_config(ROOT / "configs" / "quickstart.yaml", [*SMALL, *overrides, f"output.root={folder}"]).config


def opened(config):
    return open_run(config, SilentReporter())


def test_the_imitation_is_the_squared_distance_of_logits():
    expert = build_expert(ModelConfig(width=4, depth=1), 8, 1, 3, [0.5], [0.2], 0).eval()
    config = ExpertTraining(robust_weight=0, debias_weight=0, imitation_weight=0.7)
    view_NCHW, guide_logit_NK = torch.rand(6, 1, 8, 8), torch.randn(6, 3)
    label_N = torch.tensor([0, 1, 2, 0, 1, 2])
    for debias in (True, False):
        config = config.model_copy(update={"debias": debias})
        loss = expert_loss(config, expert, torch.ones(3), torch.zeros(3), Backend(torch.device("cpu"), torch.float32, "off"))
        given = (view_NCHW, label_N, label_N, torch.ones(6), torch.tensor(0.5))
        logit_NK = expert(view_NCHW).detach()
        by_hand = 0.7 * sum((float(logit_NK[n, k]) - float(guide_logit_NK[n, k])) ** 2 for n in range(6) for k in range(3)) / 6
        assert (loss(*given, guide_logit_NK) - loss(*given)).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.slow
def test_a_taught_teacher_gives_the_observers_logits(tmp_path):
    with opened(settings(tmp_path, *IMITATE)) as run:
        observer, taught = pipeline.train_experts(run.config, run.bench, run.executor)
        bank = run.bench.bank("test")
        first_NK, second_NK = (predict(run.bench.expert(expert), bank, run.bench.backend) for expert in (observer, taught))
        assert taught.artifact.manifest["upstream"]["guide"] == observer.artifact.digest
        # far nearer than the spread of what is imitated, which no label has told it
        assert float((first_NK - second_NK).square().mean()) < 0.2 * float(first_NK.var())
    with opened(settings(tmp_path, "teacher.training={epochs: 20}")) as run:
        _, untaught = pipeline.train_experts(run.config, run.bench, run.executor)
        other_NK = predict(run.bench.expert(untaught), bank, run.bench.backend)
        assert "guide" not in untaught.artifact.manifest["upstream"]
        assert float((first_NK - second_NK).square().mean()) < 0.5 * float((first_NK - other_NK).square().mean())


@pytest.mark.slow
def test_every_teacher_keeps_its_place(tmp_path):
    more = "more_teachers=[{model: {width: 8, depth: 1}}, {model: {width: 32, depth: 1}, taught_by: observer}, {model: {width: 4, depth: 1}}]"
    config = settings(tmp_path, "teacher.taught_by=observer", "teacher_seeds=2", "experts.epochs=1", more)
    with opened(config) as run:
        trained = pipeline.train_experts(run.config, run.bench, run.executor)
        assert [expert.model.width for expert in trained] == [16, 16, 16, 8, 32, 4]
        assert ["guide" in expert.artifact.manifest["upstream"] for expert in trained] == [False, True, True, False, True, False]
        # digests differ anyway: the member stands in the key
        assert trained[1].artifact.manifest["checksum"] != trained[2].artifact.manifest["checksum"], "a seed of its own"
        assert all(expert.artifact.manifest["settings"]["model"] == expert.model.model_dump(mode="json") for expert in trained)


def test_what_is_imitated_is_in_the_key_of_taught_experts_alone(tmp_path):
    def digest(*overrides):
        config = settings(tmp_path, *overrides)
        with opened(config) as run:
            return expert_task(config, run.bench, config.teacher).key.digest

    assert digest() == digest("teacher.training.imitation_weight=3")
    taught = [digest("teacher.taught_by=observer", f"teacher.training.imitation_weight={weight}") for weight in (1, 3)]
    assert len({digest(), *taught}) == 3


def test_an_experts_key_names_the_settings_its_optimiser_knows(tmp_path):
    def digest(*overrides):
        config = settings(tmp_path, *(f"experts.{change}" for change in overrides))
        with opened(config) as run:
            task = expert_task(config, run.bench, config.observer)
            return task.key.digest, set(task.key.settings["training"])

    sgd, named = digest()
    # experts trained before there was a choice have no such entry
    assert "optimizer" not in named
    assert digest("momentum=0.8")[0] != sgd
    adamw, named = digest("optimizer=adamw")
    assert adamw != sgd and not named & {"momentum", "nesterov"}
    assert digest("optimizer=adamw", "momentum=0.8", "nesterov=false")[0] == adamw
    muon, named = digest("optimizer=muon")
    assert len({sgd, adamw, muon}) == 3 and {"optimizer", "momentum", "nesterov"} <= named
    assert digest("optimizer=muon", "momentum=0.8")[0] != muon
    assert "linear_step" not in named and digest("optimizer=muon", "linear_step=3")[0] != muon
    assert digest("optimizer=adamw", "linear_step=3")[0] == adamw


def test_a_taught_expert_is_planned_anew_with_every_observer(tmp_path):
    def identities(*overrides):
        runs = stage_runs(settings(tmp_path, *overrides), torch.tensor([40, 30, 20, 10]).numpy())
        return [(run.identity, run.signature, run.kind) for run in runs if run.kind.stage == "experts"]

    (_, plain), (_, other) = identities(), identities("observer.training.epochs=5")
    assert plain == other
    (_, first), (_, second) = (identities("teacher.taught_by=observer", *more) for more in ((), ("observer.training.epochs=5",)))
    assert first[0] != second[0] and first[1] != second[1] and first[2] == second[2] != plain[2]


def test_the_observer_cannot_be_taught(tmp_path):
    with pytest.raises(InputError, match=r"^[^\n]*observer\.taught_by[^\n]*teacher\.taught_by=observer[^\n]*$"):
        settings(tmp_path, "observer.taught_by=observer")


MATCH = ("teacher.taught_by=observer", "teacher.function_matching={epochs: 40, views: {batch_size: 32, min_scale: 0.5, flip: false}}")


@pytest.mark.slow
def test_a_matched_teacher_gives_the_observers_logits_and_costs_what_was_planned(tmp_path):
    config = settings(tmp_path, *MATCH)
    with opened(config) as run:
        observer, matched = pipeline.train_experts(config, run.bench, run.executor)
        bank = run.bench.bank("test")
        first_NK, second_NK = (predict(run.bench.expert(expert), bank, run.bench.backend) for expert in (observer, matched))
        assert float((first_NK - second_NK).square().mean()) < 0.2 * float(first_NK.var())
        planned = [stage.work for stage in stage_runs(config, run.bench.split.count_K) if stage.kind.stage == "experts"]
        spent = [cost.work for cost in read_costs(run.executor.store.root, config.data.root) if cost.kind.stage == "experts"]
        assert sorted(spent) == sorted(planned) and 40 * 448 in spent, "446 images in batches of 32, filled up"


def test_a_matched_teachers_key_leaves_out_the_training_it_does_not_have(tmp_path):
    def task(*overrides):
        config = settings(tmp_path, *MATCH, *overrides)
        with opened(config) as run:
            return expert_task(config, run.bench, config.teacher)

    plain = task()
    assert plain.key.digest == task("teacher.training.epochs=3").key.digest
    assert "training" not in plain.key.settings and plain.n_images == 40 * 448
    assert plain.key.digest != task("teacher.function_matching.sampler_exponent=0.5").key.digest
    together = task("cluster.expert_workers=2")
    assert (together.n_workers, together.key.digest) == (1, plain.key.digest), "one process matches"


def test_function_matching_needs_the_observer(tmp_path):
    with pytest.raises(InputError, match=r"^[^\n]*teacher: function_matching needs[^\n]*taught_by=observer[^\n]*$"):
        settings(tmp_path, "teacher.function_matching={epochs: 3}")
