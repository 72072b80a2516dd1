"""Device, precision and compilation follow from settings and hardware alone."""

import platform
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from ray_ltdd import compute
from ray_ltdd.compute import COMPILE_WORTH_FLOPS as WORTH_FLOPS
from ray_ltdd.compute import Backend, ComputeConfig, cpp_compiler, forward_flops, has_bfloat16, resolve_backend
from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert, build_student

COMPILE_WORTH_FLOPS = WORTH_FLOPS["cpu"]
CPU = torch.device("cpu")


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    ("compiles", "flops", "compiled"),
    [
        ("off", 1e30, False),
        pytest.param("on", 0.0, True, marks=pytest.mark.slow),
        ("auto", 0.0, False),
        ("auto", COMPILE_WORTH_FLOPS * 0.999, False),
        pytest.param(
            "auto", COMPILE_WORTH_FLOPS, True, marks=[pytest.mark.slow, pytest.mark.skipif(cpp_compiler() is None, reason="needs a C++ compiler")]
        ),
    ],
)
def test_compilation_follows_settings_and_work_alone(compiles, flops, compiled):
    # in float32 the kernels would leave nothing to compile
    backend = Backend(CPU, torch.bfloat16, compiles)
    for _ in range(3):
        assert backend.worth_compiling(flops) == compiled
    if not compiled:
        assert backend.compile(double, flops) is double
    else:
        assert backend.compile(double, flops) is not double


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A PATH with nothing on it; gives a function that puts an executable there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)

    def add(name):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        return str(tmp_path / name)

    return add


@pytest.mark.parametrize(("cxx", "looked_for"), [(None, r"\(g\+\+, clang\+\+ or c\+\+\)"), ("icpx -O1", r"\(CXX=icpx -O1\)")])
def test_without_a_compiler_compiling_for_the_cpu_is_refused_in_one_sentence(bare, monkeypatch, cxx, looked_for):
    if cxx:
        # another compiler is there, but torch would not look for it
        bare("g++")
        monkeypatch.setenv("CXX", cxx)
    with pytest.raises(InputError, match=rf"^compute\.compile=on .*{looked_for}.*: set compute\.compile=off, or install one \(the package g\+\+ .*$"):
        Backend(CPU, torch.float32, "on").compile(double, 0.0)
    with pytest.raises(InputError, match=r"^compute\.compile=auto [^\n]+$"):
        Backend(CPU, torch.bfloat16, "auto").compile(double, COMPILE_WORTH_FLOPS)
    for untouched in (Backend(CPU, torch.float32, "off"), Backend(CPU, torch.float32, "auto")):
        assert untouched.compile(double, COMPILE_WORTH_FLOPS * (untouched.compiles == "off")) is double


def test_without_a_c_compiler_compiling_for_a_gpu_is_refused_in_one_sentence(bare):
    """Triton builds its launchers with it, and would say so hours later in words of its own."""
    bare("g++")
    with pytest.raises(InputError, match=r"^compute\.compile=auto compiles this stage for the GPU, but there is no C compiler \(gcc, [^\n]+$"):
        Backend(torch.device("cuda"), torch.bfloat16, "auto").compile(double, WORTH_FLOPS["cuda"])
    bare("clang")
    assert Backend(torch.device("cuda"), torch.bfloat16, "auto").compile(double, WORTH_FLOPS["cuda"]) is not double


def test_the_compiler_is_the_named_one_else_the_first_there_is(bare, monkeypatch):
    assert cpp_compiler() is None
    paths = [bare(name) for name in ("c++", "clang++", "icpx")]
    assert cpp_compiler() == paths[1]
    monkeypatch.setenv("CXX", "icpx -O1")
    assert cpp_compiler() == paths[2]


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_that_of_the_forward_pass_and_float32_is_left_alone(precision, dtype):
    backend = resolve_backend(ComputeConfig(device="cpu", precision=precision))
    assert backend.dtype == dtype and backend.device == CPU
    with backend.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni\n", False),
        ("processor\t: 0\nmodel name\t: avx512_bf16 lookalike\nflags\t\t: fpu avx2\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd svebf16x\n", False),
        ("processor\t: 0\n", False),
    ],
)
@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/cpuinfo")
def test_bfloat16_only_where_the_processors_flags_say_so(cpuinfo, has, tmp_path, monkeypatch):
    """The file is a real one; only where it lies is another place."""
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(compute, "Path", lambda _: tmp_path / "cpuinfo")
    assert has_bfloat16(CPU) == has
    monkeypatch.setattr(compute, "library", lambda: None)
    assert resolve_backend(ComputeConfig(device="cpu")).dtype == (torch.bfloat16 if has else torch.float32)
    assert resolve_backend(ComputeConfig(device="cpu", precision="float32")).dtype == torch.float32


@pytest.mark.skipif(compute.library() is None, reason="needs a C compiler")
def test_a_cpu_with_our_kernels_computes_in_float32_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(compute, "has_bfloat16", lambda _: True)
    backend = resolve_backend(ComputeConfig(device="cpu"))
    assert backend.dtype == torch.float32
    assert backend.bfloat16_products == compute.multiply_bfloat16()
    assert resolve_backend(ComputeConfig(device="cpu", precision="bfloat16")).dtype == torch.bfloat16
    with_batch_norm = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    assert backend.suited_to(torch.nn.Linear(2, 2)) == backend
    assert backend.suited_to(with_batch_norm) == Backend(CPU, torch.bfloat16, "auto")
    for architecture, wide in (("resnet32", False), ("resnet9", True)):
        expert = build_expert(ModelConfig(architecture=architecture), 32, 3, 10, [0.5] * 3, [0.2] * 3, 0)
        assert (backend.suited_to(expert) == backend) == wide
    named = resolve_backend(ComputeConfig(device="cpu", precision="float32"))
    assert named.suited_to(with_batch_norm) == named and not named.bfloat16_products


@pytest.mark.skipif(not compute.multiply_bfloat16(), reason="needs a processor with AVX512-BF16")
def test_with_the_precision_left_open_convolutions_multiply_bfloat16_values_where_the_processor_does():
    expert = build_expert(ModelConfig(width=16), 32, 3, 10, [0.5] * 3, [0.2] * 3, 0)
    image_NCHW = torch.rand(4, 3, 32, 32)
    logits = {}
    for precision in ("auto", "float32"):
        with resolve_backend(ComputeConfig(device="cpu", precision=precision)).autocast(), torch.no_grad():
            logits[precision] = expert(image_NCHW)
    assert torch.equal(logits["float32"], expert(image_NCHW))
    difference = (logits["auto"] - logits["float32"]).norm() / logits["float32"].norm()
    assert logits["auto"].dtype is torch.float32 and 1e-4 < difference < 0.1


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads /proc/cpuinfo")
def test_this_machine_is_judged_by_its_flags():
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert has_bfloat16(CPU) == bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def test_the_choice_is_the_same_every_time():
    first, again = (resolve_backend(ComputeConfig(device="cpu", precision="float32", compile="off")) for _ in range(2))
    assert first == again == Backend(CPU, torch.float32, "off")


def test_threads_are_set_when_given_and_left_alone_otherwise():
    before = torch.get_num_threads()
    try:
        resolve_backend(ComputeConfig(device="cpu", threads=2))
        assert torch.get_num_threads() == 2
        resolve_backend(ComputeConfig(device="cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_an_error_only_when_asked_for():
    with pytest.raises(InputError, match=r"compute\.device=cuda, .*use compute\.device=auto or cpu"):
        resolve_backend(ComputeConfig(device="cuda"))
    assert resolve_backend(ComputeConfig(device="auto")).device == CPU


@pytest.mark.parametrize("change", [{"device": "tpu"}, {"precision": "float16"}, {"threads": 0}, {"compile": True}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValidationError):
        ComputeConfig(**change)


@pytest.mark.parametrize("training", [True, False])
def test_the_work_of_a_forward_pass_counted_by_hand_without_a_trace(training):
    student = build_student(ModelConfig(width=4, depth=1, normalization="batch"), 8, 3, 5, [0.5] * 3, [0.25] * 3, 0).train(training)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    convolution, linear = 2 * (3 * 9) * 4 * 8 * 8, 2 * (4 * 4 * 4) * 5
    assert forward_flops(student, 3, 8) == convolution + linear
    assert all(module.training == training for module in student.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
