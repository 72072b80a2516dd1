"""Recovery: its loss and its steps against plain twins, continuing to the same bytes, waves that cover every image once.

Legend: N images, K classes of the unit, A all classes, F channels, L layers, C H W.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import alignment as reference_alignment
from reference import training as reference
from reference.moments import exact_class_moments

from ray_ltdd.artifacts import CheckpointSlot
from ray_ltdd.compute import Backend
from ray_ltdd.data.augment import crop, draw_crop_boxes, draw_flips
from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert
from ray_ltdd.seeding import generator
from ray_ltdd.sharding import work_units
from ray_ltdd.stages.recover import (
    RecoverConfig,
    UnitProblem,
    WaveState,
    load_wave,
    recover_wave,
    recovery_loss,
    round_pixels,
    start_wave,
    synthetic_moments,
)
from ray_ltdd.statistics.alignment import ClassSums, LayerTarget, SmoothedMoments
from ray_ltdd.statistics.observe import Observation, observing
from ray_ltdd.tasks.recovery import WavePlace

BACKEND = Backend(torch.device("cpu"), torch.float32, "off")
N_ALL = 4
CLASSES = (1, 3)
LABEL_N = torch.tensor([1, 1, 1, 3, 3, 3])
PIXEL_SCALE = 0.25
CONFIG = RecoverConfig(steps=12, learning_rate=0.1, alignment_weight=0.1, min_scale=0.5, layer_weights={"encoder.blocks.1.1": 3.0})
LAYER_WEIGHTS = [10.0, 3.0]


def smooth_images(n, seed):
    """Random images with structure, as digits have: blurred noise in [0, 1]."""
    noise = torch.rand(n, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 3, 1, 1, count_include_pad=False)


def build_observer():
    observer = build_expert(ModelConfig(width=4, depth=2, normalization="batch"), 8, 2, N_ALL, [0.5] * 2, [PIXEL_SCALE] * 2, 3)
    with torch.no_grad():
        observer.train()(smooth_images(64, 5))
    return observer.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def observe():
    with observing(build_observer(), "batch_norm", BACKEND) as observation:
        yield observation


def random_moments(n_classes, layers, seed):
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(n_classes, f, generator=rng) * 0.3, torch.rand(n_classes, f, generator=rng) + 0.2) for f in layers]


def problem(observe, variance="mixture", seed=11, label_N=LABEL_N):
    widths = [mean_NF.shape[1] for mean_NF, _ in observe(smooth_images(1, 0))[1]]
    own, whole = random_moments(2, widths, 1), random_moments(1, widths, 2)
    weight_L = [CONFIG.layer_weight(name, position) for position, name in enumerate(observe.layers)]
    targets = [LayerTarget(c, (g[0][0], g[1][0]), w) for c, g, w in zip(own, whole, weight_L, strict=True)]
    others = [
        ClassSums.of(mean_AF[[0, 2]], var_AF[[0, 2]], target.global_moments[0])
        for (mean_AF, var_AF), target in zip(random_moments(N_ALL, widths, 3), targets, strict=True)
    ]
    return UnitProblem(observe, torch.tensor(CLASSES), label_N, targets, others, variance, PIXEL_SCALE, seed, "classes 1, 3")


def start():
    return start_wave(smooth_images(6, 8))


def assert_same_state(first: WaveState, second: WaveState):
    tensors, others = first.tensors(), second.tensors()
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        # the loss before the first step is NaN, which equals nothing
        assert tensor.dtype == others[name].dtype and torch.equal(tensor.nan_to_num(-1.0), others[name].nan_to_num(-1.0)), name


def observed_by_hand(image_NCHW):
    """Logits and class moments of an observer of the same weights, from the inputs of its batch norms, pixel by pixel."""
    observer, seen = build_observer(), []
    for module in observer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double().numpy()))
    logit_NK = observer(image_NCHW).tolist()
    return logit_NK, [tuple(m[list(CLASSES)] for m in exact_class_moments(x_NFHW, LABEL_N.tolist(), N_ALL)) for x_NFHW in seen]


@pytest.mark.parametrize("variance", ["mixture", "mean_of_classes"])
@pytest.mark.parametrize("weights", [(0.1, 1.0, 1.0, 1.0), (1.0, 0.0, 2.0, 0.0), (1.0, 3.0, 0.0, 0.5)])
def test_the_loss_over_several_steps_is_its_formula(observe, variance, weights):
    """Pitfalls 21 to 23: each class matched to its own target, the global one to the mixture of all classes, smoothing from the first batch."""
    names = ("alignment_weight", "global_weight", "class_weight", "cross_entropy_weight")
    config = CONFIG.model_copy(update=dict(zip(names, weights, strict=True)))
    unit, smoothing, batches = problem(observe, variance), SmoothedMoments(0.8), []
    for step in range(3):
        image_NCHW = smooth_images(6, 20 + step)
        loss = recovery_loss(config, unit, image_NCHW, smoothing)
        logit_NK, moments = observed_by_hand(image_NCHW)
        batches.append(moments)
        synthetic = [tuple(reference_alignment.smoothed([batch[layer][i] for batch in batches], 0.8) for i in (0, 1)) for layer in range(2)]
        by_hand = reference.recovery_loss(
            config,
            logit_NK,
            LABEL_N,
            synthetic,
            [(m.numpy(), v.numpy()) for m, v in random_moments(N_ALL, [t.class_moments[0].shape[1] for t in unit.targets], 3)],
            CLASSES,
            [(t.class_moments[0].numpy(), t.class_moments[1].numpy()) for t in unit.targets],
            [(t.global_moments[0].numpy(), t.global_moments[1].numpy()) for t in unit.targets],
            LAYER_WEIGHTS,
            variance,
        )
        assert loss.item() == pytest.approx(by_hand, rel=2e-4)


@pytest.mark.parametrize(
    ("name", "position", "weight"), [("first", 0, 10.0), ("named", 0, 3.0), ("named", 2, 3.0), ("zero", 1, 0.0), ("other", 2, 1.0)]
)
def test_a_layer_weighs_what_its_name_says_and_else_what_its_place_does(name, position, weight):
    assert RecoverConfig(layer_weights={"named": 3.0, "zero": 0.0}).layer_weight(name, position) == weight
    assert RecoverConfig(first_layer_weight=4).layer_weight(name, position) == (4 if position == 0 else 1)


def test_cutting_the_classes_into_units_changes_no_direction(observe):
    """With the other unit's moments as they are at this step, an image's gradient in a unit of half the classes is twice that in one unit of all."""
    config = CONFIG.model_copy(update={"alignment_weight": 1.0, "global_weight": 3.0})
    widths = [mean_NF.shape[1] for mean_NF, _ in observe(smooth_images(1, 0))[1]]
    own, goal = random_moments(N_ALL, widths, 1), [(mean_AF[0], var_AF[0]) for mean_AF, var_AF in random_moments(1, widths, 2)]
    label_N, image_NCHW = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), smooth_images(8, 4)

    def gradient(classes):
        held = (label_N[:, None] == torch.tensor(classes)).any(1)
        pixel, rest = image_NCHW[held].requires_grad_(True), image_NCHW[~held]
        others = [c for c in range(N_ALL) if c not in classes]
        sums = [ClassSums(*(torch.zeros(f),) * 3, 0) for f in widths]
        if others:
            moments = synthetic_moments(observe, rest, label_N[~held], torch.tensor(others))[1]
            sums = [ClassSums.of(*pair, origin) for pair, (origin, _) in zip(moments, goal, strict=True)]
        targets = [LayerTarget((m[classes], v[classes]), whole, 1.0) for (m, v), whole in zip(own, goal, strict=True)]
        unit = UnitProblem(observe, torch.tensor(classes), label_N[held], targets, sums, "mixture", PIXEL_SCALE, 0, "unit")
        (found,) = torch.autograd.grad(recovery_loss(config, unit, pixel, SmoothedMoments(0.0)), [pixel])
        return held, found

    (_, whole), (held, half) = gradient([0, 1, 2, 3]), gradient([1, 2])
    torch.testing.assert_close(half, 2 * whole[held], rtol=1e-3, atol=1e-6)


def test_recovery_is_its_steps_written_out(observe):
    """A crop of every image from (seed, step), a step of Adam at the cosine rate in units of the pixels' deviation, then clipping."""
    state = recover_wave(CONFIG, problem(observe), start(), 5)
    pixel, smoothing = start().image.clone().requires_grad_(True), SmoothedMoments(0.8)
    adam = reference.Adam([pixel], CONFIG.betas)
    for step in range(5):
        rng = generator("cpu", 11, "recover-crops", step)
        box_N4, flip_N = draw_crop_boxes(6, (0.5, 1.0), rng), draw_flips(6, rng)
        loss = recovery_loss(CONFIG, problem(observe), crop(pixel, box_N4, flip_N, 8), smoothing)
        loss.backward()
        adam.step(0.1 * PIXEL_SCALE * reference.cosine(step, 12))
        with torch.no_grad():
            pixel.clamp_(0, 1)
    torch.testing.assert_close(state.image, pixel.detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(state.first, adam.first[0], atol=1e-5, rtol=1e-3)
    assert state.step == 5 and state.loss == pytest.approx(loss.item(), rel=1e-4)


def test_the_loss_falls_and_pixels_stay_in_range(observe):
    config = CONFIG.model_copy(update={"steps": 60, "learning_rate": 0.5})
    unit, first = problem(observe), start()
    losses = {}
    for steps in (0, 60):
        image_NCHW = recover_wave(config, unit, first, steps).image
        assert image_NCHW.min() >= 0 and image_NCHW.max() <= 1
        losses[steps] = recovery_loss(config, unit, image_NCHW, SmoothedMoments(0.0)).item()
    assert losses[60] < 0.85 * losses[0]
    assert torch.equal(first.image, smooth_images(6, 8)), "the initial images are somebody else's"


def test_no_steps_keep_the_images(observe):
    first = start()
    state = recover_wave(CONFIG.model_copy(update={"steps": 0}), problem(observe), first, 0)
    assert torch.equal(state.image, smooth_images(6, 8)) and state.step == 0
    assert_same_state(load_wave(state.tensors(), BACKEND.device), state)


@pytest.mark.parametrize("stops", [(1,), (4,), (11,), (3, 7), (5, 6)])
@pytest.mark.parametrize("patience", [None, 3])
def test_exchanges_in_between_do_not_change_the_bytes(observe, stops, patience):
    """With the same moments of the others: in one go, or part by part through the stored tensors."""
    config = CONFIG.model_copy(update={"stop_patience": patience, "learning_rate": 1.0})
    unit, state = problem(observe), start()
    for stop in (*stops, 12):
        state = load_wave(recover_wave(config, unit, state, stop).tensors(), BACKEND.device)
    assert_same_state(state, recover_wave(config, unit, start(), 12))


class Interruption(Exception):
    pass


def test_interrupted_recovery_ends_with_the_same_bytes(observe, tmp_path):
    slot, unit = CheckpointSlot(tmp_path / "wave.safetensors", min_seconds=0), problem(observe)
    for n_before_interruption in (3, 5):
        done = []

        def advance(n, done=done, limit=n_before_interruption):
            done.append(n)
            if len(done) == limit:
                raise Interruption

        saved = slot.load()
        with pytest.raises(Interruption):
            recover_wave(CONFIG, unit, load_wave(saved, BACKEND.device) if saved else start(), 12, slot, advance)
    saved = load_wave(slot.load(), BACKEND.device)
    assert saved.step == 8
    assert_same_state(recover_wave(CONFIG, unit, saved, 12, slot), recover_wave(CONFIG, unit, start(), 12))


def test_patience_stops_when_the_loss_no_longer_falls(observe):
    config = CONFIG.model_copy(update={"steps": 400, "learning_rate": 1e-6, "stop_patience": 2})
    state = recover_wave(config, problem(observe), start(), 400)
    assert 3 <= state.step < 400 and state.waited == 2
    assert_same_state(recover_wave(config, problem(observe), state, 400), state)


def views_shown(observe, config, image_CHW):
    """What the observer is shown in four steps of recovery that start from six times the same image and hardly move it."""
    seen = []

    def look(image_NCHW):
        seen.append(image_NCHW.detach().clone())
        return observe(image_NCHW)

    unit = replace(problem(observe), observe=Observation(observe.layers, look))
    recover_wave(config.model_copy(update={"learning_rate": 1e-9}), unit, start_wave(image_CHW.repeat(6, 1, 1, 1)), 4)
    return torch.stack(seen).flatten(0, 1)


def test_crops_differ_from_image_to_image_and_step_to_step(observe):
    """Pitfall 24: one crop and one flip for the whole batch."""
    views = views_shown(observe, CONFIG, smooth_images(1, 4)[0])
    assert len(views) == 24 and len({view.numpy().round(5).tobytes() for view in views}) == 24


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_only_where_allowed(observe, flip):
    views = views_shown(observe, CONFIG.model_copy(update={"flip": flip}), torch.linspace(0.1, 0.9, 8).expand(2, 8, 8).clone())
    is_mirrored = views[..., 0].mean((1, 2)) > views[..., -1].mean((1, 2))
    assert 4 < is_mirrored.sum() < 20 if flip else not is_mirrored.any()


def test_an_explosion_is_one_sentence_that_names_the_unit(observe, tmp_path):
    config, slot = CONFIG.model_copy(update={"alignment_weight": 1e38, "first_layer_weight": 1e30}), CheckpointSlot(tmp_path / "w", min_seconds=0)
    with pytest.raises(InputError, match=r"^recovery of classes 1, 3 ended in NaN or infinity: lower [^\n]*$"):
        recover_wave(config, problem(observe), start(), 4, slot)
    # the next attempt finds the last step done
    saved = load_wave(slot.load(), BACKEND.device)
    assert saved.step == 4
    with pytest.raises(InputError, match="ended in NaN or infinity"):
        recover_wave(config, problem(observe), saved, 4, slot)


def test_pixels_are_rounded_to_the_nearest():
    """Pitfall 26: floored. Values on either side of every boundary between two bytes, and beyond the range."""
    byte = torch.arange(256)
    for shift, expected in ((-0.49, byte), (0.0, byte), (0.49, byte)):
        assert torch.equal(round_pixels(((byte + shift) / 255)[None]), expected[None].to(torch.uint8))
    assert round_pixels(torch.tensor([-1.0, 2.0, 0.51 / 255, 254.51 / 255])).tolist() == [0, 255, 1, 255]
    everything = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(round_pixels(everything.float() / 255), everything)


sizes = {"n_classes": st.integers(1, 25), "per_unit": st.integers(1, 12), "ipc": st.integers(1, 40), "batch_size": st.integers(1, 130)}


@settings(deadline=None, max_examples=150)
@given(**sizes)
def test_waves_cover_every_image_once_and_never_outgrow_their_size(n_classes, per_unit, ipc, batch_size):
    """Pitfall 25. Memory depends on the largest wave: at most batch_size images, or one of each class."""
    units = work_units(n_classes, per_unit)
    n_waves = RecoverConfig(batch_size=batch_size).n_waves(len(units[0]), ipc)
    for unit in units:
        waves = [WavePlace(unit, wave, n_waves, 1).rows(ipc) for wave in range(n_waves)]
        assert sorted(row for rows in waves for row in rows) == list(range(len(unit) * ipc))
        assert max(map(len, waves)) <= max(batch_size, len(unit))
        for rows in waves:
            classes_of_rows = np.array(rows) // ipc
            assert len(set(np.bincount(classes_of_rows, minlength=len(unit)))) == 1 and rows == sorted(rows)


def saved_bytes(observe, ipc):
    """Bytes kept for the backward pass of one step of a unit's largest wave."""
    config = RecoverConfig(batch_size=6)
    n_waves = config.n_waves(2, ipc)
    rows = max((WavePlace(CLASSES, wave, n_waves, 1).rows(ipc) for wave in range(n_waves)), key=len)
    label_N = torch.tensor(CLASSES).repeat_interleave(ipc)[rows]
    total = [0]

    def pack(tensor):
        total[0] += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        image_NCHW = smooth_images(2 * ipc, 0)[rows].requires_grad_(True)
        recovery_loss(config, problem(observe, label_N=label_N), image_NCHW, SmoothedMoments(0.8))
    return total[0]


def test_memory_does_not_grow_with_images_per_class(observe):
    assert 0 < saved_bytes(observe, 3) == saved_bytes(observe, 30) == saved_bytes(observe, 300)
