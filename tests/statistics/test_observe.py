"""The observation of a network against hooks of the test's own."""

import weakref

import numpy as np
import torch
from torch._dynamo.testing import CompileCounter

from ray_ltdd.compute import Backend
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert
from ray_ltdd.statistics.observe import observing

BACKEND = Backend(torch.device("cpu"), torch.float32, "off")


def build_observer():
    model = ModelConfig(width=4, depth=2, normalization="batch")
    return build_expert(model, 8, 3, 5, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25], 0).requires_grad_(False).eval()


def test_moments_of_every_layer_input_in_forward_order_with_gradients():
    observer = build_observer()
    image_NCHW = torch.rand(3, 3, 8, 8, requires_grad=True)
    seen = []
    norms = {name: m for name, m in observer.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    handles = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double().numpy())) for m in norms.values()]
    expected_logit_NK = observer(image_NCHW)
    for handle in handles:
        handle.remove()
    with observing(observer, "batch_norm", BACKEND, 0) as observe:
        logit_NK, layers = observe(image_NCHW)
        assert observe.layers == list(norms) and len(layers) == len(seen) == 2
    torch.testing.assert_close(logit_NK, expected_logit_NK)
    for (mean_NF, var_NF), x_NFHW in zip(layers, seen, strict=True):
        assert mean_NF.dtype == var_NF.dtype == torch.float32
        np.testing.assert_allclose(mean_NF.detach().numpy(), x_NFHW.mean((2, 3)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(var_NF.detach().numpy(), x_NFHW.var((2, 3)), rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(sum(var_NF.sum() for _, var_NF in layers), image_NCHW)
    assert bool(gradient.isfinite().all()) and gradient.abs().sum() > 0


def test_the_hooks_are_gone_afterwards_and_the_batch_statistics_were_not_touched():
    observer = build_observer()
    before = {name: tensor.clone() for name, tensor in observer.state_dict().items()}
    with observing(observer, "batch_norm", BACKEND, 0) as observe:
        observe(torch.rand(2, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in observer.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in observer.state_dict().items())


def test_no_map_is_held_between_calls_and_one_graph_serves_them_all():
    """At 224 pixels the maps of one batch are gigabytes, which would lie there while students are trained."""
    observer, maps = build_observer(), []
    for module in observer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _, args, __: maps.append(weakref.ref(args[0])))
    with observing(observer, "batch_norm", BACKEND, 0) as observe, torch.no_grad():
        observe(torch.rand(2, 3, 8, 8))
        assert len(maps) == 2 and not any(map() for map in maps)

    counter = CompileCounter()
    with observing(build_observer(), "batch_norm", BACKEND, 0) as observe, torch.no_grad():
        compiled = torch.compile(observe.function, backend=counter, dynamic=False)
        for _ in range(3):
            compiled(torch.rand(2, 3, 8, 8))
    assert counter.frame_count == 1
