"""Compiling the kernels: once, whole or not at all, and torch's own operators where that fails."""

import ctypes
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from ray_ltdd import allocator
from ray_ltdd.kernels import build, serving
from ray_ltdd.models.convolution import Conv3x3


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """No library loaded, and an empty cache folder, which it returns."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    build.library.cache_clear()
    yield tmp_path / "cache" / "ray_ltdd"
    build.library.cache_clear()


def convolves_like_torch():
    conv, map_NIHW = Conv3x3(16, 16), torch.rand(2, 16, 8, 8)
    return torch.allclose(conv(map_NIHW), F.conv2d(map_NIHW, conv.weight, conv.bias, padding=1), atol=1e-5)


def test_without_a_compiler_torch_convolves(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.c_compiler() is None and build.library() is None
    assert not serving.suit(torch.rand(2, 16, 8, 8)) and convolves_like_torch()


def test_a_compiler_that_refuses_leaves_nothing_behind(fresh, tmp_path, monkeypatch):
    broken = tmp_path / "broken-cc"
    broken.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho half > "$2"\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert build.library() is None and convolves_like_torch()
    assert list(fresh.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_no_failure(fresh, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build.library() is None and convolves_like_torch()


@pytest.mark.slow
@pytest.mark.skipif(build.c_compiler() is None, reason="needs a C compiler")
def test_it_is_compiled_once(fresh):
    assert isinstance(build.library(), ctypes.CDLL)
    (path,) = fresh.iterdir()
    made = path.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library() is not None
    assert path.stat().st_mtime_ns == made and list(fresh.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.skipif(build.c_compiler() is None, reason="needs a C compiler")
def test_a_library_that_was_cut_off_is_made_again(fresh):
    build.library()
    (path,) = fresh.iterdir()
    path.unlink()
    path.write_bytes(b"\x7fELF")
    build.library.cache_clear()
    assert build.library() is not None


def test_freed_memory_is_kept_where_the_c_library_is_glibc(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False


def test_a_start_does_not_import_torchs_compiler():
    code = "import sys, ray_ltdd.artifacts, ray_ltdd.compute, ray_ltdd.kernels.ops; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
