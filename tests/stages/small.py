"""A small world for the stages: scikit-learn's digits at 16 pixels, small networks."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert, build_student

BACKEND = Backend(torch.device("cpu"), torch.float32, "off")
COUNTS = (40, 30, 24, 18, 14, 11, 8, 6, 5, 4)


def digits_bank(counts=COUNTS, skip=0):
    digits = load_digits()
    image = (digits.images * 255 / 16).round().astype(np.uint8)[:, None].repeat(2, axis=2).repeat(2, axis=3)
    index = np.concatenate([np.flatnonzero(digits.target == k)[skip : skip + n] for k, n in enumerate(counts)])
    return ImageBank(image, digits.target, index, BACKEND.device)


def expert(normalization="batch", seed=0):
    config = ModelConfig(architecture="convnet", width=8, depth=2, normalization=normalization)
    return build_expert(config, 16, 1, 10, [0.3], [0.35], seed)


def student(seed=0):
    return build_student(ModelConfig(architecture="convnet", width=8, depth=2, normalization="batch"), 16, 1, 10, [0.3], [0.35], seed)
