"""The datasets a run can name, with the sizes and profiles that papers report on them."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from ray_ltdd.errors import InputError

# `{place}` is where the files are looked for when `data.path` is not given.
_CIFAR = (
    "download https://www.cs.toronto.edu/~kriz/{archive}.tar.gz and unpack it in {{place}}, "
    "or set data.path to a folder with train.parquet and test.parquet in the schema of "
    "https://huggingface.co/datasets/{hub} or with the unpacked {folder}"
)
_TINY = (
    "download http://cs231n.stanford.edu/tiny-imagenet-200.zip to {place} (no need to unpack it), "
    "or set data.path to the zip or to the unpacked tiny-imagenet-200"
)
_IMAGENET = (
    "download ILSVRC2012 from https://image-net.org and unpack it as {place}/train/<wnid>/*.JPEG and "
    "{place}/val/<wnid>/*.JPEG (or set data.path to that folder); for the standard ImageNet-LT put "
    "ImageNet_LT_train.txt and ImageNet_LT_test.txt from "
    "https://github.com/zhmiao/OpenLongTailRecognition-OLTR beside train and val"
)
_FOLDER = "set data.path to a folder with train/<class>/*.png (or .jpg) and test/<class>/*.png"
_PARQUET = "set data.path to a folder with train*.parquet and test*.parquet (or to one file): columns image{{bytes, path}} and label"
_DIGITS = "the images come with scikit-learn: nothing to download"


@dataclass(frozen=True)
class Benchmark:
    """A dataset and how papers use it.

    Attributes:
        name: what `data.dataset` says.
        class_count: number of classes; None for the user's own data.
        head_count: training images of the largest class of the exponential profile (n_0); None for the user's own data.
        image_sizes: sides in pixels offered, the default first; empty where any from 8 to 512 is (default 64).
        channels: 3 (RGB) or 1 (grey).
        imbalance_factors: those with published accuracies.
        images_per_class: sizes of the distilled set with published accuracies.
        students: the published student network for each image size.
        test_per_class: images per class held out for testing where the source has no test part; None: the user says.
        instructions: what to download from where and where to put it, with `{place}` for the default folder.
    """

    name: str
    class_count: int | None
    head_count: int | None
    image_sizes: tuple[int, ...]
    channels: int
    imbalance_factors: tuple[int, ...]
    images_per_class: tuple[int, ...]
    students: tuple[tuple[int, str], ...]
    instructions: str
    test_per_class: int | None = None

    def how_to_get(self, place: Path) -> str:
        """Return what to download from where and where to put it (the default folder `place`), as a sentence's end."""
        return self.instructions.format(place=place)

    def resolve_image_size(self, image_size: int | None) -> int:
        """Return the side in pixels to decode to: `image_size`, or the benchmark's own when it is None.

        Raises:
            InputError: the benchmark does not offer `image_size`.
        """
        if image_size is None:
            return self.image_sizes[0] if self.image_sizes else 64
        if self.image_sizes and image_size not in self.image_sizes:
            offered = " or ".join(map(str, self.image_sizes))
            raise InputError(f"data.image_size={image_size} is not offered for {self.name}: use {offered}")
        return image_size


_ALL = (
    Benchmark(
        name="cifar10_lt",
        class_count=10,
        head_count=5000,
        image_sizes=(32,),
        channels=3,
        imbalance_factors=(10, 50, 100),
        images_per_class=(1, 10, 20, 50),
        students=((32, "convnet3"),),
        instructions=_CIFAR.format(archive="cifar-10-python", hub="uoft-cs/cifar10", folder="cifar-10-batches-py"),
    ),
    Benchmark(
        name="cifar100_lt",
        class_count=100,
        head_count=500,
        image_sizes=(32,),
        channels=3,
        imbalance_factors=(10, 20, 50),
        images_per_class=(1, 10, 20, 50),
        students=((32, "convnet3"),),
        instructions=_CIFAR.format(archive="cifar-100-python", hub="uoft-cs/cifar100", folder="cifar-100-python"),
    ),
    Benchmark(
        name="tiny_imagenet_lt",
        class_count=200,
        head_count=500,
        image_sizes=(64,),
        channels=3,
        imbalance_factors=(10, 20, 100),
        images_per_class=(1, 10, 20),
        students=((64, "convnet4"),),
        instructions=_TINY,
    ),
    Benchmark(
        name="imagenet_lt",
        class_count=1000,
        head_count=1280,
        image_sizes=(64, 224),
        channels=3,
        imbalance_factors=(5, 10, 256),
        images_per_class=(10, 20),
        students=((64, "convnet4"), (224, "resnet50")),
        instructions=_IMAGENET,
    ),
    Benchmark(
        name="digits_lt",
        class_count=10,
        head_count=110,
        image_sizes=(16, 8, 32),
        channels=1,
        imbalance_factors=(10,),
        images_per_class=(5, 10),
        students=((16, "convnet3"),),
        instructions=_DIGITS,
        test_per_class=50,
    ),
    Benchmark("image_folder", None, None, (), 3, (), (), (), _FOLDER),
    Benchmark("parquet", None, None, (), 3, (), (), (), _PARQUET),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark called `name`.

    Raises:
        InputError: there is none; the message gives the nearest name and all names.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"data.dataset={name!r} is unknown: {hint}(known: {', '.join(BENCHMARKS)})")
