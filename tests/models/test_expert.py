import pytest
import torch

from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert, build_student

TINY = ModelConfig(width=4, depth=2)
MEAN = [0.2, 0.5, 0.7]
STD = [0.1, 0.25, 0.5]


def tiny_expert(seed=0, **kwargs):
    return build_expert(TINY, 8, 3, 5, MEAN, STD, seed, **kwargs)


def tiny_student(seed=0):
    return build_student(TINY, 8, 3, 5, MEAN, STD, seed)


def test_shapes_and_which_head_is_used():
    expert = tiny_expert(projection_dim=7).eval()
    image_NCHW = torch.rand(6, 3, 8, 8)
    out = expert.heads(image_NCHW)
    assert out.plain_logit_NK.shape == out.debiased_logit_NK.shape == (6, 5)
    assert out.projection_NP.shape == out.prediction_NP.shape == (6, 7)
    assert torch.equal(expert(image_NCHW), out.debiased_logit_NK)
    assert not torch.allclose(out.plain_logit_NK, out.debiased_logit_NK)
    assert expert.features(image_NCHW).shape == (6, expert.encoder.feature_dim)
    assert tiny_student()(image_NCHW).shape == (6, 5)


def test_heads_are_linear_maps_of_one_feature():
    expert = tiny_expert().eval()
    image_NCHW = torch.rand(2, 3, 8, 8)
    out = expert.heads(image_NCHW)
    feature_NF = expert.features(image_NCHW)
    projection_NP = feature_NF @ expert.projector.weight.T + expert.projector.bias
    torch.testing.assert_close(out.projection_NP, projection_NP)
    torch.testing.assert_close(out.prediction_NP, projection_NP @ expert.predictor.weight.T + expert.predictor.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [tiny_expert, tiny_student])
def test_pixels_are_normalised_exactly_once(build):
    model = build().eval()
    image_NCHW = torch.rand(2, 3, 8, 8)
    expected_NCHW = torch.empty_like(image_NCHW)
    for c in range(3):
        expected_NCHW[:, c] = (image_NCHW[:, c] - MEAN[c]) / STD[c]
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logit_NK = model(image_NCHW)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected_NCHW)
    head = model.head if hasattr(model, "head") else model.debiased_head
    torch.testing.assert_close(logit_NK, head(model.encoder(expected_NCHW)), rtol=1e-4, atol=1e-4)


def test_constants_travel_with_the_weights():
    expert = tiny_expert()
    other = build_expert(TINY, 8, 3, 5, [0.0] * 3, [1.0] * 3, 9)
    other.load_state_dict(expert.state_dict())
    image_NCHW = torch.rand(2, 3, 8, 8)
    assert torch.equal(other(image_NCHW), expert(image_NCHW))
    assert {"mean_C", "std_C"} <= set(expert.state_dict())


@pytest.mark.parametrize("build", [tiny_expert, tiny_student])
def test_logits_are_float32_under_autocast(build):
    model = build()
    image_NCHW = torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logit_NK = model(image_NCHW)
        feature_NF = model.features(image_NCHW)
    assert logit_NK.dtype == torch.float32
    head = model.head if hasattr(model, "head") else model.debiased_head
    assert torch.equal(logit_NK, head(feature_NF.float()))  # the head itself was not rounded to bfloat16


@pytest.mark.parametrize("build", [tiny_expert, tiny_student])
def test_initialisation_depends_on_the_seed_only(build):
    torch.manual_seed(1)
    first = build(seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    third = build(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


def test_random_state_is_left_alone_when_building_fails():
    state = torch.get_rng_state()
    with pytest.raises(InputError):
        build_student(ModelConfig(depth=5), 8, 3, 5, MEAN, STD, 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "image_NCHW",
    [
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8),  # would broadcast against three means
        torch.zeros(2, 3, 16, 16),
        torch.zeros(3, 8, 8),
    ],
)
def test_images_of_another_kind_are_refused(image_NCHW):
    with pytest.raises(InputError, match=r"ConvNet-2 \(width 4\) was built for float images \[N, 3, 8, 8\]"):
        tiny_expert()(image_NCHW)


def test_constants_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="3 channels but there are 1 channel means"):
        build_student(TINY, 8, 3, 5, [0.5], [0.5], 0)
    with pytest.raises(InputError, match="3 channel means but 1 standard deviations"):
        build_student(TINY, 8, 3, 5, MEAN, [0.5], 0)
    with pytest.raises(InputError, match="above 0"):
        build_student(TINY, 8, 3, 5, MEAN, [0.5, 0.0, 0.5], 0)


def test_given_constants_are_copied():
    mean_C = torch.tensor(MEAN)
    expert = build_expert(TINY, 8, 3, 5, mean_C, STD, 0)
    mean_C.zero_()
    assert expert.mean_C.tolist() == pytest.approx(MEAN)
