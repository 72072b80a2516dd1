"""Who computes, and where: settings for people who launch runs. None of them changes an outcome, but `expert_workers`."""

from typing import Literal

from pydantic import Field, field_validator

from ray_ltdd.settings import Settings


class ClusterConfig(Settings):
    """Executor, cluster, workers."""

    executor: Literal["ray", "inline"] = Field("ray", description="ray: worker processes, here or on a cluster; inline: this process, for debugging")
    address: str = Field(
        "local", description="local: a Ray of this run's own on this machine; auto: the cluster this machine belongs to; or HOST:PORT of a head"
    )
    workers: int | None = Field(None, ge=1, description="most expert hosts at work; empty: as many as fit the GPUs, or the CPUs where there are none")
    cpus_per_worker: float = Field(1.0, ge=0.1, description="CPUs Ray sets aside for an expert host")
    gpu_share: float | None = Field(
        None, ge=0, le=8, description="GPU share of an expert host (0.25: four share one and its memory); empty: 1 where there are GPUs"
    )
    memory_gb: float = Field(1.5, gt=0, description="memory Ray sets aside for an expert host, GB")
    wait_seconds: float = Field(
        8.0, ge=0, description="how long to wait for a node that can take an expert host; minutes where an autoscaler has to start it"
    )
    keep_hosts: bool = Field(
        False, description="leave the expert hosts on the cluster for the next run with the same experts; `ray-ltdd hosts stop` ends them"
    )
    attempts: int = Field(3, ge=1, description="how often a task that fails for its own reasons is tried before the run ends")
    expert_workers: int = Field(
        1, ge=1, description="processes that train one expert together, each on its share of every batch; for large sets on several GPUs"
    )

    @field_validator("cpus_per_worker", "gpu_share")
    @classmethod
    def _ray_can_count_it(cls, amount: float | None) -> float | None:
        if amount is not None and amount != round(amount, 4):
            raise ValueError("give at most four decimals: Ray counts in steps of 0.0001")
        return amount

    @field_validator("gpu_share")
    @classmethod
    def _gpus_are_shared_or_whole(cls, share: float | None) -> float | None:
        if share is not None and share > 1 and share != round(share):
            raise ValueError("give a share up to 1 or a whole number: Ray gives out parts of one GPU, or whole ones")
        return share
