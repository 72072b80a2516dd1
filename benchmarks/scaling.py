"""How the Ray executor scales, on this machine.

    python benchmarks/scaling.py [--parts recovery,overhead,memory,start,imagenet]

- recovery: seconds of stage 4 (digits, 5 work units) with 1 and 2 workers of one thread each, hosts warm, in one run; the efficiency is
  t1 / (2 t2). Beside it, what two processes without Ray lose by sharing the machine's caches and memory.
- overhead: 1000 work units that compute nothing, one a class, with the inputs of recovery, on a simulated cluster of 16 nodes with one logical GPU
  each (all of them processes of this machine); and the same units in one process, whose cost is the store's own.
- memory: the driver's peak memory with 10, 100 and 1000 such units.
- start: seconds from `ray-ltdd run configs/quickstart.yaml` to the end of the first epoch of the first expert (0.4 s of work).
- imagenet: floating-point operations of every stage of configs/imagenet_lt.yaml, and the hours 8 and 64 GPUs would need at an assumed rate: an
  extrapolation, nothing of it was measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from ray_ltdd import pipeline
from ray_ltdd.artifacts import Artifact, ArtifactStore, CheckpointSlot, Key, Payload, peak_memory_mb
from ray_ltdd.cluster.executor import RayExecutor, make_executor
from ray_ltdd.compute import forward_flops
from ray_ltdd.config import ExperimentConfig, load_config
from ray_ltdd.executor import Advance, InlineExecutor, SilentReporter, Task
from ray_ltdd.models.build import build_encoder
from ray_ltdd.runs import open_run
from ray_ltdd.sharding import work_units
from ray_ltdd.stages.recover import RecoverConfig
from ray_ltdd.tasks import distil as distilling
from ray_ltdd.tasks.recovery import RecoveryInputs, UnitInputs
from ray_ltdd.workbench import TrainedExpert, Workbench

ROOT = Path(__file__).parents[1]
# hosts do not find this file by its name
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
PARTS = ("recovery", "overhead", "memory", "start", "imagenet")
ASSUMED_FLOPS_PER_GPU = 100e12
"""Sustained bf16 operations a second of one GPU in training; about a tenth of an H100's peak and a third of an A100's."""
N_IMAGENET = 115_846


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parts = parser.parse_args().parts.split(",")
    if "recovery" in parts:
        show_recovery()
    if "overhead" in parts:
        show_overhead()
    if "memory" in parts:
        show_memory()
    if "start" in parts:
        show_start()
    if "imagenet" in parts:
        show_imagenet()


def recovery_config(folder: str) -> ExperimentConfig:
    """Digits in units of two classes: four parts of 100 steps."""
    sizes = ["distill.images_per_class=20", "distill.classes_per_unit=2", "recover.exchange_every=100", "recover.steps=400", "experts.epochs=8"]
    return load_config(ROOT / "configs" / "quickstart.yaml", [*sizes, "compute.threads=1", f"output.root={folder}"]).config


def show_recovery() -> None:
    """One and two workers, the better of two rounds each; and what the machine itself loses when two processes work side by side."""
    with tempfile.TemporaryDirectory() as folder:
        config = recovery_config(folder)
        seconds = {n: min(recovery_seconds(config, n, seed) for seed in (1, 2)) for n in (1, 2)}
        alone, beside = (seconds_side_by_side(n) for n in (1, 2))
    efficiency = seconds[1] / (2 * seconds[2])
    print(f"recovery: {seconds[1]:.1f} s with 1 worker, {seconds[2]:.1f} s with 2, efficiency {efficiency:.2f}")
    print(
        f"          the same work in one process without Ray {alone:.1f} s, in each of two side by side {beside:.1f} s: "
        f"the machine's own ceiling is {alone / beside:.2f}, of which Ray reaches {efficiency * beside / alone:.0%}"
    )


def seconds_side_by_side(n: int) -> float:
    """The slowest of `n` independent processes that each do all of the recovery by themselves."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import scaling; scaling.recover_alone()"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(n)]
    return max(json.loads(process.communicate()[0].splitlines()[-1]) for process in running)


def recover_alone() -> None:
    """Print the seconds of stage 4 in this process."""
    with tempfile.TemporaryDirectory() as folder:
        config = recovery_config(folder)
        inline = config.cluster.model_copy(update={"executor": "inline"})
        print(min(recovery_seconds(config.model_copy(update={"cluster": inline}), 1, seed) for seed in (1, 2)))


def recovery_seconds(config: ExperimentConfig, n_workers: int, seed: int) -> float:
    """Seconds of stage 4 alone, everything before it computed and the hosts warm."""
    cluster = config.cluster.model_copy(update={"workers": n_workers})
    config = config.model_copy(update={"cluster": cluster, "output": config.output.model_copy(update={"store": f"{config.output.root}/{n_workers}"})})
    with open_run(config, SilentReporter(), make_executor=make_executor) as run:
        units = work_units(run.bench.n_classes, config.distill.classes_per_unit)
        observer, *teachers = pipeline.train_experts(config, run.bench, run.executor)
        moments = run.executor.compute("Calibrate", [distilling.moments_task(config, run.bench, observer, unit) for unit in units])
        initial = run.executor.compute("Select crops", [distilling.crops_task(config, run.bench, teachers, unit) for unit in units])
        for steps, update in ((8, 99 + seed), (config.recover.steps, seed)):
            # another seed each time, so that nothing comes from the store
            timed = config.model_copy(update={"seed": update, "recover": config.recover.model_copy(update={"steps": steps})})
            started = time.monotonic()
            pipeline.recover_waves(timed, run.executor, observer, units, moments, initial)
    return time.monotonic() - started


def nothing(context: Workbench, slot: CheckpointSlot, advance: Advance, shared: RecoveryInputs, unit: UnitInputs) -> Payload:
    """A work unit that computes nothing."""
    return Payload({"x": torch.zeros(1)})


def empty_units(n: int, store: ArtifactStore, run_number: int) -> list[Task]:
    """Tasks with the inputs of recovery."""
    artifact = Artifact(store.root / "split" / ("0" * 24))
    shared = RecoveryInputs(
        RecoverConfig(), ExperimentConfig().calibrate, TrainedExpert(artifact, ExperimentConfig().observer.model), artifact, n, 10, 0
    )
    settings = shared.settings.model_dump(mode="json")
    return [
        Task(
            Key("empty", 1, {**settings, "class": k, "run": run_number}, {}, 0),
            nothing,
            {"shared": shared, "unit": UnitInputs(artifact, artifact)},
            1,
            f"class {k}",
        )
        for k in range(n)
    ]


@contextmanager
def executor_for(folder: str, *overrides: str) -> Iterator[RayExecutor]:
    """A Ray executor over the digits."""
    config = load_config(ROOT / "configs" / "quickstart.yaml", [f"output.root={folder}", *overrides]).config
    with open_run(config, SilentReporter(), make_executor=make_executor) as run:
        assert isinstance(run.executor, RayExecutor)
        yield run.executor


def show_overhead() -> None:
    """1000 units on 16 logical GPUs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20})
    for _ in range(16):
        cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 * 2**20)
    ray.init(address=cluster.address, namespace="ray_ltdd", log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder, executor_for(folder, "cluster.memory_gb=0.1", "cluster.gpu_share=1") as executor:
            seconds = [timed(executor, empty_units(1000, executor.store, number)) for number in range(3)]
            n_hosts = executor.records()[0].n_workers
    finally:
        ray.shutdown()
        cluster.shutdown()
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(folder)
        alone = timed(InlineExecutor(store, None), empty_units(1000, store, 0))
    print(
        f"overhead: {1000 * min(seconds[1:]) / 1000:.1f} ms a unit through Ray on {n_hosts} hosts (the first 1000, with the hosts' start: "
        f"{seconds[0]:.1f} s); {1000 * alone / 1000:.1f} ms a unit in one process, the store's own cost"
    )


def timed(executor: InlineExecutor | RayExecutor, tasks: Sequence[Task]) -> float:
    """Seconds to compute tasks."""
    started = time.monotonic()
    executor.compute("Empty", tasks)
    return time.monotonic() - started


def show_memory() -> None:
    """Peak memory of drivers in processes of their own."""
    peaks = {}
    for n in (10, 100, 1000):
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import scaling; scaling.drive({n})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks[n] = json.loads(done.stdout.splitlines()[-1])
    print("memory: driver's peak " + ", ".join(f"{mb:.0f} MB with {n} units" for n, mb in peaks.items()))


def drive(n: int) -> None:
    """Compute `n` empty units and print this process's peak memory."""
    with tempfile.TemporaryDirectory() as folder, executor_for(folder, "cluster.workers=2") as executor:
        for number in range(3):
            executor.compute("Empty", empty_units(n, executor.store, number))
        print(peak_memory_mb())


def show_start() -> None:
    """From the command to the first saved epoch of the first expert; torch's files are in the page cache after the first time."""
    seconds = []
    for _ in range(4):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "ray_ltdd.cli", "run", str(ROOT / "configs" / "quickstart.yaml")]
            started = time.monotonic()
            run = subprocess.Popen([*command, f"output.root={folder}", "output.checkpoint_seconds=0", "--quiet"], stdout=subprocess.DEVNULL)
            while not list(Path(folder).glob("store/checkpoints/experts-*")) and run.poll() is None:
                time.sleep(0.01)
            seconds.append(time.monotonic() - started)
            run.kill()
            run.wait()
            # what Ray had started goes with it
            time.sleep(3)
    print(f"start: {min(seconds[1:]):.1f} s from the command to the end of the first expert's first epoch ({', '.join(f'{s:.1f}' for s in seconds)})")


def show_imagenet() -> None:
    """Operations of every stage, from the settings."""
    config = load_config(ROOT / "configs" / "imagenet_lt.yaml").config
    n_distilled = 1000 * config.distill.images_per_class
    expert, student = (forward_flops(build_encoder(model, 224, 3), 3, 224) for model in (config.observer.model, config.evaluate.model))
    batch = config.relabel.views.batch_size
    stages = {
        "experts (one network, two streams)": 3 * expert * 2 * N_IMAGENET * config.experts.epochs,
        "statistics": expert * N_IMAGENET,
        "crops": expert * N_IMAGENET * config.select_crops.crops_per_image,
        "recovery": 3 * expert * n_distilled * config.recover.steps,
        "one student, teacher in the loop": (3 * student + expert) * config.evaluate.epochs * -(-n_distilled // batch) * batch,
    }
    table = Table(
        title=f"ImageNet-LT, extrapolated at {ASSUMED_FLOPS_PER_GPU / 1e12:.0f} TFLOP/s a GPU (assumed, not measured)", title_justify="left"
    )
    for heading in ("stage", "operations", "GPU hours", "8 GPUs", "64 GPUs"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, flops in stages.items():
        hours = flops / ASSUMED_FLOPS_PER_GPU / 3600
        # a student is one task; an expert is trained by at most 8 processes, whose 16 images each are as few as batch norm can bear; the rest is cut
        # into at least 64 pieces
        shares = (hours, hours) if "student" in name else (hours / 8, hours / 8) if "experts" in name else (hours / 8, hours / 64)
        table.add_row(name, f"{flops:.1e}", f"{hours:.2f}", *(f"{60 * share:.0f} min" for share in shares))
    Console().print(table)


if __name__ == "__main__":
    main()
