"""A teacher trained to be another network's function, against its steps written out; what it draws; its interruptions.

Legend: N images, K classes.
"""

import copy

import numpy as np
import pytest
import torch
from reference import training as reference
from sklearn.datasets import load_digits

from ray_ltdd.artifacts import CheckpointSlot
from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert
from ray_ltdd.seeding import derive_seed
from ray_ltdd.stages.function_matching import FunctionMatching, draw_positions, match_function
from ray_ltdd.stages.views import ViewsConfig, draw_epoch_views, make_batch

BACKEND = Backend(torch.device("cpu"), torch.float32, "off")
VIEWS = ViewsConfig(batch_size=8, min_scale=0.6, flip=False)
CONFIG = FunctionMatching(epochs=3, learning_rate=1e-3, weight_decay=0.1, ema_decay=0.8, views=VIEWS)
COUNT_K = torch.tensor([12, 6, 3])


def long_tailed_digits():
    source = load_digits()
    index_N = np.concatenate([np.flatnonzero(source.target == k)[:n] for k, n in enumerate(COUNT_K.tolist())])
    return ImageBank((source.images * 15.9).astype(np.uint8)[:, None], source.target, index_N, BACKEND.device)


BANK = long_tailed_digits()


def fresh(seed=0):
    return build_expert(ModelConfig(width=8, depth=2, normalization="batch"), 8, 1, 3, [0.3], [0.35], seed)


def guide(image_NCHW):
    with torch.no_grad():
        return GUIDE(image_NCHW.double()).to(image_NCHW.dtype)


GUIDE = fresh(9).double().eval()


def match(path, config=CONFIG, expert=None, advance=lambda _: None, **more):
    expert = expert or fresh()
    return match_function(config, expert, guide, BANK, COUNT_K, BACKEND, 5, CheckpointSlot(path, min_seconds=0), advance, **more)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_the_training_is_its_steps_written_out(tmp_path, exponent):
    config = CONFIG.model_copy(update={"sampler_exponent": exponent})
    # a bias before a batch norm has no gradient but rounding errors, which Adam blows up to whole steps in float32
    found = match(tmp_path / "c", config, fresh().double()).tensors
    twin = fresh().double().train()
    average = copy.deepcopy(twin)
    learning = [p for name, p in twin.named_parameters() if not name.startswith(("plain_head", "projector", "predictor"))]
    recipe = reference.Adam(learning, (0.9, 0.999), 0.1)
    for t in range(9):
        epoch, step = divmod(t, 3)
        views = draw_epoch_views(VIEWS, 21, 8, derive_seed(5, "matching-views"), epoch, BACKEND.device)
        if exponent:
            position_N = draw_positions(BANK.label_N, COUNT_K, exponent, 5, epoch)
            views.index_SB.copy_(position_N[views.index_SB])
        view_BCHW = make_batch(VIEWS, BANK, views, step)[0]
        (twin(view_BCHW) - guide(view_BCHW)).square().sum(1).mean().backward()
        recipe.step(1e-3 * reference.cosine(t, 9))
        for old, new in zip(average.state_dict().values(), twin.state_dict().values(), strict=True):
            old.copy_(0.8 * old + 0.2 * new if old.is_floating_point() else new)
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("exponent", "share_K"), [(0.5, COUNT_K.double().sqrt()), (1.0, torch.ones(3).double()), (2.0, 1 / COUNT_K.double())])
def test_classes_come_as_often_as_their_weights_say(exponent, share_K):
    drawn = torch.cat([BANK.label_N[draw_positions(BANK.label_N, COUNT_K, exponent, 0, epoch)] for epoch in range(300)])
    observed_K, expected_K = torch.bincount(drawn, minlength=3).double(), share_K / share_K.sum() * len(drawn)
    # 2 degrees of freedom: 20 is exceeded once in 22,000
    assert float(((observed_K - expected_K).square() / expected_K).sum()) < 20


def test_positions_are_a_function_of_seed_and_epoch_and_reach_every_image():
    drawn = [draw_positions(BANK.label_N, COUNT_K, 1.0, 0, epoch) for epoch in range(40)]
    assert torch.equal(drawn[3], draw_positions(BANK.label_N, COUNT_K, 1.0, 0, 3)) and not torch.equal(drawn[3], drawn[4])
    assert not torch.equal(drawn[3], draw_positions(BANK.label_N, COUNT_K, 1.0, 1, 3))
    assert sorted(torch.cat(drawn).unique().tolist()) == list(range(21))


class Interruption(Exception):
    pass


def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path):
    whole = match(tmp_path / "whole").tensors
    done = 0

    def interrupt(n):
        nonlocal done
        done += n
        if done >= 5 * 8:
            raise Interruption

    with pytest.raises(Interruption):
        match(tmp_path / "c", advance=interrupt)
    resumed = match(tmp_path / "c", expert=fresh(seed=7)).tensors
    assert whole.keys() == resumed.keys() and all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_errors_name_the_settings_of_function_matching(tmp_path):
    sentence = r"^a teacher's loss became NaN or infinite: lower teacher\.function_matching\.learning_rate \(now 1e\+30\)\.$"
    with pytest.raises(InputError, match=sentence):
        match(tmp_path / "c", CONFIG.model_copy(update={"learning_rate": 1e30, "epochs": 6}))
    with pytest.raises(InputError, match=r"Raise teacher\.function_matching\.epochs or mend teacher\.function_matching\.learning_rate"):
        match(tmp_path / "d", CONFIG.model_copy(update={"epochs": 1}), accuracy_floor=1000.0)
