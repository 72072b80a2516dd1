"""One step's views of an expert's training, drawn as the training draws them."""

import torch

from ray_ltdd.stages.experts import draw_epoch_shapes, make_views
from ray_ltdd.stages.ranks import SOLO


def draw_views(config, bank, draws, step, rng, ranks=SOLO):
    """The views of step `step` of `draws`, their shapes drawn from `rng`."""
    shapes = draw_epoch_shapes(config, 1, draws.lambda_SB.shape[1], bank.image_size, rng)
    return make_views(config, bank, draws.row(torch.tensor([step])), shapes, ranks)
