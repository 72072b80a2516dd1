"""What was done, in sentences."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ray_ltdd.data.catalogue import BENCHMARKS
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.results.report.contents import RunContents, value
from ray_ltdd.results.report.facts import imbalance
from ray_ltdd.results.tables import BENCHMARK_NAMES

_WEIGHTS = {
    "uniform": "all classes weigh the same",
    "sample": "classes weigh by their images",
    "effective_number": "classes weigh by their effective number",
}
_VARIANCES = {"mixture": "that of the mixture of all classes", "mean_of_classes": "the mean of the classes'"}
_LABELS = {"one": "one logit vector per image", "stored": "stored logits of {n} epochs of views", "online": "the teacher labels every view"}


def benchmark_name(settings: Mapping[str, Any]) -> str:
    """The dataset's usual name."""
    dataset = str(value(settings, "data.dataset", "a dataset"))
    return BENCHMARK_NAMES.get(dataset, dataset)


def lead(contents: RunContents) -> str:
    """What was distilled into what, in a sentence."""
    settings = contents.settings
    ipc = value(settings, "distill.images_per_class")
    size = f"{ipc} image{'' if ipc == 1 else 's'} per class"
    if contents.rows is None:
        return f"{benchmark_name(settings)}, imbalance factor {value(settings, 'split.imbalance_factor'):g}, to be distilled into {size}."
    row = contents.rows.iloc[0]
    counts = [int(n) for n in row["count_per_class"]]
    source = f"{sum(counts):,} training images of {len(counts)} classes, {max(counts):,} in the largest and {min(counts):,} in the smallest"
    dataset = f"{benchmark_name(settings)} with an imbalance factor of {imbalance(row['imbalance_factor'])}"
    return f"{dataset} ({source}), distilled into {ipc * len(counts):,} images, {size}."


def steps(contents: RunContents) -> list[tuple[str, str]]:
    """The five stages as they were set: name and sentence."""
    settings = contents.settings
    return [
        ("Experts", _experts(settings)),
        ("Statistics", _statistics(settings)),
        ("Initial images", _crops(settings)),
        ("Recovery", _recovery(settings)),
        ("Labels and students", _students(settings)),
    ]


def _experts(settings: Mapping[str, Any]) -> str:
    observer, teacher = (value(settings, role, {}) for role in ("observer", "teacher"))
    n = value(settings, "teacher_seeds", 1)
    if observer == teacher:
        parts = [f"One {_network(settings, observer)} is observer and teacher, {_training(observer)}"]
        parts += [f"with {n - 1} more teacher{'' if n == 2 else 's'} of its settings"] if n > 1 else []
    else:
        are = "the teacher is a" if n == 1 else f"{n} teachers are each a"
        parts = [f"The observer is a {_network(settings, observer)}, {_training(observer)}"]
        parts += [f"{are} {_network(settings, teacher)}, {_training(teacher)}"]
    parts += [f"a further teacher is a {_network(settings, expert)}, {_training(expert)}" for expert in value(settings, "more_teachers") or ()]
    return "; ".join(parts) + "."


def _network(settings: Mapping[str, Any], expert: Mapping[str, Any]) -> str:
    """Its usual name."""
    try:
        model = ModelConfig.model_validate(value(expert, "model", {}))
    except ValidationError:
        # of another version
        return str(value(expert, "model.architecture", "network"))
    benchmark = BENCHMARKS.get(str(value(settings, "data.dataset")))
    size = value(settings, "data.image_size") or (benchmark.resolve_image_size(None) if benchmark else None)
    return model.label_at(size) if size else model.label


def _training(expert: Mapping[str, Any]) -> str:
    matching = value(expert, "function_matching")
    if matching:
        size = value(matching, "views.batch_size")
        return f"trained for {matching.get('epochs')} epochs in batches of {size} on the observer's logits (function matching)"
    training = value(expert, "training", {})
    debias = "with" if training.get("debias") else "without"
    taught = ", taught by the observer besides" if value(expert, "taught_by") else ""
    return f"trained for {training.get('epochs')} epochs in batches of {training.get('batch_size')}, {debias} debiasing{taught}"


def _statistics(settings: Mapping[str, Any]) -> str:
    layers, schedule, weights, variance = (
        str(value(settings, f"calibrate.{name}")) for name in ("layers", "momentum.schedule", "class_weights", "variance")
    )
    return (
        f"Class moments of the observer's layers ({layers}) under the {schedule} schedule. In the global target "
        f"{_WEIGHTS.get(weights, weights)}; its variance is {_VARIANCES.get(variance, variance)}."
    )


def _crops(settings: Mapping[str, Any]) -> str:
    method, crops = value(settings, "select_crops.method"), value(settings, "select_crops.crops_per_image")
    threshold = value(settings, "select_crops.confidence_threshold")
    if method != "confidence":
        return f"Chosen by the rule {method} from {crops} crops of each training image."
    above = f", those above a confidence of {threshold:g} first" if threshold else ""
    return f"Of {crops} crops of each training image the ones the teacher is surest of{above}."


def _recovery(settings: Mapping[str, Any]) -> str:
    n_steps = value(settings, "recover.steps")
    if not n_steps:
        return "Left out: the initial images are the distilled ones."
    weight, rate = value(settings, "recover.alignment_weight"), value(settings, "recover.learning_rate")
    return f"{n_steps:,} steps at a learning rate of {rate:g}, alignment weight {weight:g}."


def _students(settings: Mapping[str, Any]) -> str:
    kept = _LABELS.get(str(value(settings, "relabel.labels")), "").format(n=value(settings, "relabel.stored_epochs"))
    if value(settings, "relabel.mirror_average"):
        kept += ", logits averaged over an image and its mirror image"
    seeds, epochs, part = (value(settings, f"evaluate.{name}") for name in ("seeds", "epochs", "part"))
    return f"Labels: {kept}. {seeds} student{'' if seeds == 1 else 's'} of {epochs:,} epochs, tested after the last one on the {part} part."
