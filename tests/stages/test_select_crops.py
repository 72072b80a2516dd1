"""The choice of initial images against the rounds played with plain lists, and on real pixels.

Legend: N images of a class, M crops of each, K classes, C H W.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import rounds as reference

from ray_ltdd.compute import Backend
from ray_ltdd.data.augment import crop, draw_crop_boxes, draw_flips
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert
from ray_ltdd.seeding import generator
from ray_ltdd.stages.select_crops import SelectCropsConfig, choose_in_rounds, select_crops

BACKEND = Backend(torch.device("cpu"), torch.float32, "off")
COUNT_K = [40, 7, 2]


def log_of(probability_NM):
    return torch.tensor(probability_NM, dtype=torch.float32).log()


def pairs(choice):
    return list(zip(choice.image.tolist(), choice.crop.tolist(), strict=True))


@st.composite
def problems(draw):
    """Scores from a coarse grid, so that ties are common; a threshold between grid points; no more slots than crops."""
    n, m = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    grid = st.integers(1, 8).map(lambda i: math.log(i / 10))
    score_NM = draw(st.lists(st.lists(grid, min_size=m, max_size=m), min_size=n, max_size=n))
    threshold = draw(st.sampled_from([0.0, 0.25, 0.55, 0.75, 0.95]))
    return score_NM, draw(st.integers(1, n * m)), threshold, draw(st.none() | st.integers(1, 4))


@settings(deadline=None, max_examples=250)
@given(problem=problems())
def test_rounds_against_plain_lists(problem):
    score_NM, n_slots, threshold, max_rounds = problem
    choice = choose_in_rounds(torch.tensor(score_NM), n_slots, threshold, max_rounds)
    assert (pairs(choice), choice.n_rounds, choice.n_below_threshold, choice.n_after_rounds) == reference.choose(*problem)
    assert len(set(pairs(choice))) == n_slots


@settings(deadline=None, max_examples=80)
@given(problem=problems())
def test_no_image_comes_twice_before_every_image_came_once(problem):
    score_NM, n_slots, _, _ = problem
    counts = np.bincount(choose_in_rounds(torch.tensor(score_NM), n_slots).image.numpy(), minlength=len(score_NM))
    assert counts.max() - counts.min() <= 1


def test_the_ranking_is_redone_for_the_crop_on_offer():
    """Pitfall 19: ranked by each image's best crop, image 0 would come first in the second round too."""
    choice = choose_in_rounds(log_of([[0.9, 0.1], [0.8, 0.7]]), 3)
    assert pairs(choice) == [(0, 0), (1, 0), (1, 1)] and choice.n_rounds == 2


def test_more_offers_than_slots_leave_the_best_ones():
    choice = choose_in_rounds(log_of([[0.2, 0.3], [0.9, 0.1], [0.1, 0.5]]), 2)
    assert pairs(choice) == [(1, 0), (2, 1)] and choice.n_rounds == 1


def test_crops_below_the_threshold_wait_until_nothing_else_is_left_and_are_counted():
    score_NM = log_of([[0.9, 0.8, 0.7], [0.4, 0.3, 0.2]])
    assert pairs(choose_in_rounds(score_NM, 3, threshold=0.5)) == [(0, 0), (0, 1), (0, 2)]
    choice = choose_in_rounds(score_NM, 5, threshold=0.5)
    assert pairs(choice)[3:] == [(1, 0), (1, 1)]
    assert choice.n_below_threshold == 2 and choice.n_rounds == 5 and choice.n_after_rounds == 0


def test_after_the_last_round_the_best_unused_crops_fill_the_slots_whatever_their_image():
    choice = choose_in_rounds(log_of([[0.9, 0.8, 0.7], [0.6, 0.2, 0.1]]), 4, max_rounds=1)
    assert pairs(choice) == [(0, 0), (1, 0), (0, 1), (0, 2)]
    assert choice.n_rounds == 1 and choice.n_after_rounds == 2


def test_equal_scores_go_to_the_earlier_image_and_crop():
    assert pairs(choose_in_rounds(torch.zeros(3, 2), 4)) == [(0, 0), (1, 0), (2, 0), (0, 1)]


def test_impossible_scores_are_never_offered_twice():
    """A probability of 0 is a score of minus infinity, and still one crop of one image."""
    score_NM = log_of([[0.9, 0.8], [0.0, 0.0]])
    assert pairs(choose_in_rounds(score_NM, 3, threshold=0.5)) == [(0, 0), (0, 1), (1, 0)]
    assert sorted(pairs(choose_in_rounds(score_NM, 4, max_rounds=1))) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(("n", "m", "n_slots"), [(1, 1, 2), (3, 2, 7), (2, 5, 100)])
def test_too_few_crops_are_refused_at_once(n, m, n_slots):
    """Pitfall 18: an endless loop."""
    with pytest.raises(ValueError, match=f"{n} images x {m} crops cannot fill {n_slots} slots"):
        choose_in_rounds(torch.zeros(n, m), n_slots)


def build_bank(size=8, counts=COUNT_K, seed=0):
    label_N = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(seed).permutation(len(label_N))
    image_NCHW = np.random.default_rng(seed).integers(0, 256, (len(label_N), 3, size, size), dtype=np.uint8)
    return ImageBank(image_NCHW, label_N[order], np.arange(len(label_N)), BACKEND.device)


def build_teacher():
    expert = build_expert(ModelConfig(width=4, depth=2), 8, 3, 3, [0.5] * 3, [0.25] * 3, 0)
    return expert.requires_grad_(False).eval()


def brightness(image_NCHW):
    """A teacher of two classes that is the surer of class 0, the brighter the image."""
    bright_N = image_NCHW.mean((1, 2, 3))
    return torch.stack([10 * bright_N, torch.zeros_like(bright_N)], dim=1)


@pytest.mark.parametrize("method", ["confidence", "random", "noise"])
def test_images_and_labels_come_class_by_class(method):
    payload = select_crops(SelectCropsConfig(method=method), 4, build_teacher(), build_bank(), [2, 0], BACKEND, 0)
    image_NCHW, label_N = payload.tensors["image"], payload.tensors["label"]
    assert image_NCHW.shape == (8, 3, 8, 8) and image_NCHW.dtype == torch.float32
    assert image_NCHW.min() >= 0 and image_NCHW.max() <= 1
    assert label_N.dtype == torch.int64 and label_N.tolist() == [2] * 4 + [0] * 4
    assert payload.record["classes"] == [2, 0]


@pytest.mark.parametrize("method", ["confidence", "random"])
def test_a_class_with_fewer_crops_than_slots_gets_further_crops(method):
    """Pitfall 18: 2 images of one crop each and 7 slots looped for ever."""
    config = SelectCropsConfig(method=method, crops_per_image=1)
    payload = select_crops(config, 7, build_teacher(), build_bank(), [0, 1, 2], BACKEND, 0)
    assert len(payload.tensors["image"].flatten(1).unique(dim=0)) == 21
    # 40 images of one crop, 7 of one, 2 of four: the last class goes through all four rounds
    assert payload.record["n_rounds"] == [1, 1, 4] and payload.record["n_after_rounds"] == [0, 0, 0]


def test_only_real_crops_are_scored():
    """Pitfall 20: no placeholder is ever looked at, only a last pass filled up with rows that do not count."""
    shapes, done = [], []

    def teacher(image_NCHW):
        shapes.append(tuple(image_NCHW.shape))
        return torch.zeros(len(image_NCHW), 3)

    bank = build_bank(counts=[60, 7, 2])
    select_crops(SelectCropsConfig(crops_per_image=5), 20, teacher, bank, [0, 1, 2], BACKEND, 0, done.append)
    n_crops = 60 * 5 + 7 * 5 + 2 * 10
    assert sum(done) == n_crops
    assert len(set(shapes)) == 1 and len(shapes) == -(-n_crops // shapes[0][0])


def linear_teacher(image_NCHW):
    """A random teacher that looks at where things are: the mirror image, or another crop of the same image, has quite other logits."""
    weight = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5)) / 4
    return torch.einsum("nchw,kchw->nk", image_NCHW - 0.5, weight)


def score_alone(image_CHW, label):
    """The log-probability of the class for one image, class by class."""
    logit_K = linear_teacher(image_CHW[None])[0].tolist()
    return logit_K[label] - math.log(sum(math.exp(logit) for logit in logit_K))


def offered(config, bank, label, m, seed):
    """Every crop [N][M] that a class offers, drawn as a class draws and cut singly: the plain crop, mirrored afterwards."""
    position_N = (bank.label_N == label).nonzero()[:, 0].tolist()
    rng = generator("cpu", seed, "select_crops", label)
    n = len(position_N)
    box_R4, flip_R = draw_crop_boxes(n * m, (config.min_scale, config.max_scale), rng), draw_flips(n * m, rng)

    def cut(i, j):
        image_1CHW, row = bank.take(torch.tensor([position_N[i]])), i * m + j
        plain_CHW = crop(image_1CHW, box_R4[row][None], torch.tensor([False]), bank.image_size)[0]
        return plain_CHW.flip(2) if bool(flip_R[row]) else plain_CHW

    return [[cut(i, j) for j in range(m)] for i in range(n)]


def test_every_crop_is_scored_by_its_own_class_as_it_will_be_cut():
    """Three classes of textured images, half of the crops mirrored, more than one pass: against crops cut and scored one at a time."""
    ipc, bank = 12, build_bank(counts=[30, 9, 2])
    config = SelectCropsConfig(crops_per_image=7, min_scale=0.2, confidence_threshold=0.5, max_rounds=4)
    payload = select_crops(config, ipc, linear_teacher, bank, [2, 0, 1], BACKEND, 11)
    expected, records = [], []
    for label in (2, 0, 1):
        image_NM = offered(config, bank, label, 7, 11)
        score_NM = [[score_alone(image_CHW, label) for image_CHW in image_M] for image_M in image_NM]
        chosen, *record = reference.choose(score_NM, ipc, 0.5, 4)
        expected += [(image_NM[i][j], score_NM[i][j], label) for i, j in chosen]
        records.append(record)
    found = zip(payload.tensors["image"], payload.tensors["label"].tolist(), strict=True)
    for (image_CHW, label), (expected_CHW, score, expected_label) in zip(found, expected, strict=True):
        assert label == expected_label and torch.allclose(image_CHW, expected_CHW, atol=1e-6)
        assert score_alone(image_CHW, label) == pytest.approx(score, abs=1e-5), "the image that is kept is the one that was scored"
    names = ("n_rounds", "n_below_threshold", "n_after_rounds")
    assert [payload.record[name] for name in names] == [list(column) for column in zip(*records, strict=True)]
    # the rounds, the threshold and what comes after them all have a say
    assert all(max(payload.record[name]) > min(payload.record[name]) for name in names)


@pytest.mark.parametrize("method", ["confidence", "random", "noise"])
def test_a_class_does_not_depend_on_the_other_classes_of_its_unit(method):
    bank, teacher, config = build_bank(), build_teacher(), SelectCropsConfig(method=method)
    together = select_crops(config, 5, teacher, bank, [0, 1, 2], BACKEND, 3).tensors
    for label in range(3):
        alone = select_crops(config, 5, teacher, bank, [label], BACKEND, 3).tensors["image"]
        assert torch.equal(alone, together["image"][together["label"] == label])


@pytest.mark.parametrize("method", ["confidence", "random", "noise"])
def test_the_outcome_is_a_function_of_the_seed(method):
    bank, teacher, config = build_bank(), build_teacher(), SelectCropsConfig(method=method)
    first, again, other = (select_crops(config, 3, teacher, bank, [0], BACKEND, seed).tensors["image"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("method", ["random", "noise"])
def test_classes_do_not_share_their_draws(method):
    """Two classes of the same images get different crops."""
    image_NCHW = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8).repeat(20, axis=0)
    bank = ImageBank(image_NCHW, np.arange(20) % 2, np.arange(20), BACKEND.device)
    first, second = select_crops(SelectCropsConfig(method=method), 3, brightness, bank, [0, 1], BACKEND, 0).tensors["image"].split(3)
    assert not torch.equal(first, second)


def flat_bank(grey_N):
    image_NCHW = np.broadcast_to(np.array(grey_N, dtype=np.uint8)[:, None, None, None], (len(grey_N), 3, 8, 8)).copy()
    return ImageBank(image_NCHW, np.zeros(len(grey_N), dtype=np.int64), np.arange(len(grey_N)), BACKEND.device)


def greys(payload):
    return (payload.tensors["image"].mean((1, 2, 3)) * 255).round().int().tolist()


def test_the_teachers_confidence_decides():
    bank = flat_bank([10, 200, 90, 255, 40])
    config = SelectCropsConfig(crops_per_image=2)
    assert greys(select_crops(config, 3, brightness, bank, [0], BACKEND, 0)) == [255, 200, 90]
    assert greys(select_crops(config, 7, brightness, bank, [0], BACKEND, 0)) == [255, 200, 90, 40, 10, 255, 200]


def test_the_threshold_is_read_by_confidence_alone_and_reported():
    bank = flat_bank([10, 250, 255])
    config = SelectCropsConfig(crops_per_image=2, confidence_threshold=0.9)
    payload = select_crops(config, 5, brightness, bank, [0], BACKEND, 0)
    assert greys(payload) == [255, 250, 255, 250, 10] and payload.record["n_below_threshold"] == [1]
    limited = select_crops(config.model_copy(update={"max_rounds": 1}), 5, brightness, bank, [0], BACKEND, 0)
    assert limited.record["n_rounds"] == [1] and limited.record["n_after_rounds"] == [3]
    by_chance = select_crops(config.model_copy(update={"method": "random"}), 5, brightness, bank, [0], BACKEND, 0)
    assert by_chance.record["n_below_threshold"] == [0] and greys(by_chance) != greys(payload)


def test_random_crops_ask_no_teacher_and_take_different_images():
    def teacher(image_NCHW):
        raise AssertionError("a random choice needs no scores")

    config = SelectCropsConfig(method="random", crops_per_image=3)
    payload = select_crops(config, 5, teacher, flat_bank([10, 60, 120, 180, 240, 30, 90]), [0], BACKEND, 0)
    assert len(set(greys(payload))) == 5


def test_mirrored_crops_appear_only_where_allowed():
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8) * 30, (20, 3, 8, 8)).copy()
    bank = ImageBank(ramp, np.zeros(20, dtype=np.int64), np.arange(20), BACKEND.device)

    def rising(flip):
        image = select_crops(SelectCropsConfig(method="random", flip=flip), 20, brightness, bank, [0], BACKEND, 0).tensors["image"]
        return (image[:, 0, 0, -1] > image[:, 0, 0, 0]).float().mean().item()

    assert rising(flip=False) == 1.0 and 0.1 < rising(flip=True) < 0.9


def test_crop_areas_follow_the_settings():
    """On a ramp the range of values in a crop tells its width, and so, over both directions, its area."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8) * 4, (40, 1, 64, 64))
    image_NCHW = np.concatenate([ramp, ramp.transpose(0, 1, 3, 2)], axis=1)
    bank = ImageBank(np.ascontiguousarray(image_NCHW), np.zeros(40, dtype=np.int64), np.arange(40), BACKEND.device)
    for low, high in ((0.1, 0.2), (0.5, 0.6)):
        config = SelectCropsConfig(method="random", min_scale=low, max_scale=high, flip=False)
        image = select_crops(config, 40, brightness, bank, [0], BACKEND, 0).tensors["image"] * 255 / 4
        width, height = image[:, 0, 32, -1] - image[:, 0, 32, 0], image[:, 1, -1, 32] - image[:, 1, 0, 32]
        area = width * height / 63**2
        assert low - 0.03 < area.min() and area.max() < high + 0.03
