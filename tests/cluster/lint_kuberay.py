"""What Kubernetes would refuse, or worse accept, in `configs/kuberay.yaml`: one function per rule, each giving the problems it sees.

The allowed keys are those of ray.io/v1 in KubeRay 1.7 (its API reference) and of pods that this file may use: kubectl refuses others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import yaml
from lint import STORAGE, Keys, texts, unknown_keys

GPU = "nvidia.com/gpu"
LONGEST_DAYS = 7
_RESOURCES: Keys = {kind: dict.fromkeys(("cpu", "memory", GPU)) for kind in ("requests", "limits")}
_CONTAINER: Keys = {
    **dict.fromkeys(("name", "image", "imagePullPolicy", "workingDir")),
    "env": {"name": None, "value": None},
    "resources": _RESOURCES,
    "volumeMounts": dict.fromkeys(("name", "mountPath", "readOnly", "subPath")),
}
_POD: Keys = {
    "spec": {
        **dict.fromkeys(("restartPolicy", "nodeSelector", "serviceAccountName", "imagePullSecrets")),
        "securityContext": dict.fromkeys(("fsGroup", "runAsUser", "runAsNonRoot")),
        "tolerations": dict.fromkeys(("key", "operator", "value", "effect")),
        "containers": _CONTAINER,
        "volumes": {"name": None, "persistentVolumeClaim": {"claimName": None}},
    }
}
_HEAD: Keys = {**dict.fromkeys(("serviceType", "labels", "resources", "rayStartParams")), "template": _POD}
_GROUP: Keys = {
    **dict.fromkeys(("groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "priority", "labels", "rayStartParams")),
    "template": _POD,
}
_CLUSTER: Keys = {
    "rayVersion": None,
    "enableInTreeAutoscaling": None,
    "authOptions": dict.fromkeys(("mode", "secretName")),
    "autoscalerOptions": {**dict.fromkeys(("version", "upscalingMode", "idleTimeoutSeconds")), "resources": _RESOURCES},
    "headGroupSpec": _HEAD,
    "workerGroupSpecs": _GROUP,
}
_JOB = ("entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit", "suspend")
RAY_JOB: Keys = {
    "apiVersion": None,
    "kind": None,
    "metadata": dict.fromkeys(("name", "namespace", "labels")),
    "spec": {**dict.fromkeys(_JOB), "rayClusterSpec": _CLUSTER},
}


@dataclass(frozen=True)
class JobFile:
    """A RayJob."""

    job: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.job["spec"])

    @property
    def cluster(self) -> dict[str, Any]:
        return dict(self.spec["rayClusterSpec"])

    @property
    def head(self) -> dict[str, Any]:
        return dict(self.cluster["headGroupSpec"])

    @property
    def workers(self) -> list[dict[str, Any]]:
        return list(self.cluster["workerGroupSpecs"])

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each group's name and Ray container, the head's first."""
        for group in (self.head, *self.workers):
            yield group.get("groupName", "head"), group["template"]["spec"]["containers"][0]


def keys(file: JobFile) -> Iterator[str]:
    """No key that ray.io/v1 does not have; no runtime_env, because the image holds everything."""
    yield from unknown_keys(file.job, RAY_JOB, file.job.get("kind", "the file"))
    if (file.job.get("apiVersion"), file.job.get("kind")) != ("ray.io/v1", "RayJob"):
        yield "it must be a RayJob of ray.io/v1"


def versions(file: JobFile) -> Iterator[str]:
    """The installed Ray everywhere, in one image."""
    images = {container["image"] for _, container in file.containers()}
    if file.cluster.get("rayVersion") != ray.__version__ or any(f":{ray.__version__}" not in image for image in images):
        yield f"rayVersion and images must be of Ray {ray.__version__}"
    if len(images) != 1:
        yield "all pods must have one image"


def token(file: JobFile) -> Iterator[str]:
    """Token authentication is on, and the service is reached from inside only."""
    if file.cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token"
    if file.head.get("serviceType") != "ClusterIP" or any("0.0.0.0" in text for text in texts(file.job)):
        yield "the head's service must be a ClusterIP, and no address open to everybody"


def ending(file: JobFile) -> Iterator[str]:
    """The cluster ends with the run, and a run that hangs ends too."""
    if file.spec.get("shutdownAfterJobFinishes") is not True or not 0 < file.spec.get("ttlSecondsAfterFinished", 0) <= 3600:
        yield "shutdownAfterJobFinishes must be true and ttlSecondsAfterFinished between 1 and 3600"
    if not 0 < file.spec.get("activeDeadlineSeconds", 0) <= LONGEST_DAYS * 86400:
        yield f"activeDeadlineSeconds must be given, at most {LONGEST_DAYS} days"
    if file.spec.get("backoffLimit") != 0:
        yield "backoffLimit must be 0: a failed run is looked at, not started again on a new cluster"


def head(file: JobFile) -> Iterator[str]:
    """The head computes nothing."""
    limits = dict(file.containers())["head"].get("resources", {}).get("limits", {})
    if file.head.get("rayStartParams", {}).get("num-cpus") != "0" or GPU in limits:
        yield 'the head must have num-cpus: "0" and no GPU'


def limits(file: JobFile) -> Iterator[str]:
    """What a pod asks for is what it may use, workers have a GPU, and groups have limits that can hold."""
    for name, container in file.containers():
        resources = container.get("resources", {})
        if resources.get("requests") != resources.get("limits") or not {"cpu", "memory"} <= set(resources.get("limits", {})):
            yield f"{name} needs equal requests and limits of cpu and memory"
        if name != "head" and resources.get("limits", {}).get(GPU) != 1:
            yield f"{name} must have one GPU"
    for group in file.workers:
        low, now, high = (group.get(key, -1) for key in ("minReplicas", "replicas", "maxReplicas"))
        if not 0 <= low <= now <= high:
            yield f"{group['groupName']}: minReplicas, replicas and maxReplicas do not ascend"


def scaling(file: JobFile) -> Iterator[str]:
    """Ray's autoscaler of version 2, which knows labels, starts pods and ends idle ones; those are not started again."""
    options = file.cluster.get("autoscalerOptions", {})
    if file.cluster.get("enableInTreeAutoscaling") is not True or options.get("version") != "v2" or not options.get("idleTimeoutSeconds"):
        yield "enableInTreeAutoscaling, version v2 and idleTimeoutSeconds must be given"
    if any(group["template"]["spec"].get("restartPolicy") != "Never" for group in file.workers):
        yield "worker pods need restartPolicy: Never"


def tiers(file: JobFile) -> Iterator[str]:
    """One group on demand and one of spot nodes, labelled as where their pods go."""
    if sorted(group.get("labels", {}).get("tier", "") for group in file.workers) != ["on-demand", "spot"]:
        yield "there must be two groups, with the labels tier: on-demand and tier: spot"
    for group in file.workers:
        goes_to = " ".join(texts(group["template"]["spec"].get("nodeSelector", {}))).lower()
        if ("spot" in goes_to) != (group.get("labels", {}).get("tier") == "spot"):
            yield f"{group['groupName']} is labelled otherwise than its pods are placed"


def storage(file: JobFile) -> Iterator[str]:
    """Every pod mounts one claim at one path."""
    claims = set()
    for group, (name, container) in zip((file.head, *file.workers), file.containers(), strict=True):
        mounted = [mount["name"] for mount in container.get("volumeMounts", []) if mount["mountPath"] == STORAGE]
        volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in group["template"]["spec"].get("volumes", [])}
        claims |= {volumes.get(volume) for volume in mounted}
        if len(mounted) != 1:
            yield f"{name} must mount {STORAGE}"
    if len(claims) != 1 or None in claims:
        yield "all pods must mount the same claim"


RULES = (keys, versions, token, ending, head, limits, scaling, tiers, storage)


def lint_job(text: str) -> dict[str, list[str]]:
    """Return the problems of a RayJob, by the name of the rule that sees them; empty when there are none."""
    file = JobFile(yaml.safe_load(text))
    found = {rule.__name__: list(rule(file)) for rule in RULES}
    return {name: problems for name, problems in found.items() if problems}
