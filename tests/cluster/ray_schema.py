"""What Ray itself says of a cluster file. The one place in this repository that touches Ray's private modules: no public call validates offline."""

from typing import Any

from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config


def as_ray_reads(config: dict[str, Any]) -> dict[str, Any]:
    """Return a file for `ray up` with Ray's defaults filled in, as it is validated before anything is launched; the argument stays as it is.

    Raises:
        Exception: Ray refuses it; jsonschema's ValidationError for most mistakes, ValueError for the rest.
    """
    prepared: dict[str, Any] = prepare_config({**config})
    validate_config(prepared)
    return prepared


def as_autoscaler_reads(ray_job: dict[str, Any]) -> dict[str, Any]:
    """Return what Ray's autoscaler makes of the cluster inside a RayJob of KubeRay: node types with resources, labels and limits.

    Raises:
        Exception: it cannot make anything of it, such as a group without CPU.
    """
    cluster = {"metadata": {"name": "cluster", "namespace": "default"}, "spec": ray_job["spec"]["rayClusterSpec"]}
    derived: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)
    return derived
