"""`configs/kuberay.yaml` as Ray's autoscaler reads it, and as our lint does; every rule of the lint is shown to see its mistake."""

import re
from pathlib import Path

import pytest
import yaml
from lint import STORAGE
from lint_kuberay import RULES, lint_job
from ray_schema import as_autoscaler_reads

from ray_ltdd.config import load_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "configs" / "kuberay.yaml").read_text()
JOB = yaml.safe_load(TEXT)


def test_our_lint_accepts_it():
    assert lint_job(TEXT) == {}


def test_rays_autoscaler_reads_two_groups_of_gpu_nodes_and_a_head_without_work():
    config = as_autoscaler_reads(JOB)
    nodes = config["available_node_types"]
    assert (config["max_workers"], config["idle_timeout_minutes"]) == (20, 10)
    assert (nodes["headgroup"]["resources"]["CPU"], nodes["headgroup"]["max_workers"]) == (0, 0)
    for name, tier in (("gpu-on-demand", "on-demand"), ("gpu-spot", "spot")):
        assert nodes[name]["resources"] == {"CPU": 7, "GPU": 1, "memory": 28 * 2**30}
        assert nodes[name]["labels"] == {"tier": tier}
    assert nodes["gpu-spot"]["priority"] > nodes["gpu-on-demand"]["priority"]


def test_the_run_is_possible():
    command, action, path, *overrides = JOB["spec"]["entrypoint"].split()
    config = load_config(ROOT / path, overrides).config
    assert (command, action, config.cluster.address, config.cluster.gpu_share) == ("ray-ltdd", "run", "auto", 1)
    assert config.cluster.wait_seconds >= 900, "an autoscaler takes minutes to start a node"
    assert config.cluster.workers == sum(group["maxReplicas"] for group in JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"])
    assert config.output.root.startswith(STORAGE) and config.data.root.startswith(STORAGE)


MISTAKES = [
    ("keys", "submissionMode", "submitMode"),
    ("keys", "  backoffLimit: 0", "  backoffLimit: 0\n  runtimeEnvYAML: 'pip: [torch]'"),
    ("keys", "idleTimeoutSeconds: 300", "idleTimeoutS: 300"),
    ("keys", "mountPath: /mnt/ray_ltdd}", "mountPath: /mnt/ray_ltdd, mode: rw}"),
    ("keys", "kind: RayJob", "kind: RayCluster"),
    ("versions", "rayVersion: 2.60.0", "rayVersion: 2.59.0"),
    ("versions", r"ray-ltdd:2\.60\.0-py311", "ray-ltdd:latest"),
    ("versions", r"image: \*image", "image: other:2.60.0"),
    ("token", "mode: token", "mode: disabled"),
    ("token", " *authOptions.*\n", ""),
    ("token", "ClusterIP", "LoadBalancer"),
    ("ending", "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false"),
    ("ending", " *ttlSeconds.*\n", ""),
    ("ending", " *activeDeadline.*\n", ""),
    ("ending", "backoffLimit: 0", "backoffLimit: 6"),
    ("head", 'num-cpus: "0", ', ""),
    ("limits", 'limits: {cpu: "2", memory: 8Gi}', 'limits: {cpu: "2"}'),
    ("limits", ", nvidia.com/gpu: 1", ""),
    ("limits", "minReplicas: 0\n        maxReplicas: 4", "minReplicas: 5\n        maxReplicas: 4"),
    ("scaling", "enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false"),
    ("scaling", "version: v2", "version: v1"),
    ("scaling", "restartPolicy: Never", "restartPolicy: Always"),
    ("tiers", "tier: on-demand", "tier: ondemand"),
    ("tiers", "capacityType: SPOT", "capacityType: ON_DEMAND"),
    ("storage", "mountPath: /mnt/ray_ltdd", "mountPath: /mnt/other"),
    ("storage", "name: storage, persistent", "name: disk, persistent"),
]


@pytest.mark.parametrize(("rule", "old", "new"), MISTAKES)
def test_a_mistake_is_seen_by_its_rule(rule, old, new):
    assert re.search(old, TEXT), f"{old} is not in the file any more"
    assert set(lint_job(re.sub(old, new, TEXT))) == {rule}


def test_every_rule_is_shown_to_work():
    assert {rule.__name__ for rule in RULES} == {rule for rule, *_ in MISTAKES}
