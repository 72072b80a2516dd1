"""Compile the C source once per machine, and load it.

The library lies in the user's cache folder under a name made of the source, the compiler and the processor, so that a changed one of them compiles
again and machines that share a home folder do not load each other's instructions.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC")


def c_compiler() -> str | None:
    """Path of the C compiler: the one the environment variable CC names, else gcc, clang or cc; or None."""
    named = shlex.split(os.environ.get("CC", ""))[:1]
    return next((path for name in named or ("gcc", "clang", "cc") if (path := shutil.which(name))), None)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had: no compiler, or one that refuses. Takes about 3 seconds the first time on a machine."""
    compiler = c_compiler()
    if compiler is None:
        return None
    path = _cache_folder() / f"kernels-{_fingerprint(compiler)}.so"
    # a file that cannot be loaded, cut off by a full disk of old, is compiled again
    return (_load(path) if path.exists() else None) or (_load(path) if _compile(compiler, path) else None)


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _compile(compiler: str, path: Path) -> bool:
    """Compile to `path`, whole or not at all: several processes may do so at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / "library.so"
            # Apple's clang comes without OpenMP: there one thread does it all
            for threads in (("-fopenmp",), ()):
                command = [compiler, *FLAGS, *threads, str(SOURCE), "-o", str(built), "-lm"]
                if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                    built.replace(path)
                    return True
    except OSError:
        return False
    return False


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_ltdd"


def _fingerprint(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    flags = b""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        flags = next((line for line in lines if line.lower().startswith((b"flags", b"features"))), b"")
    parts = (SOURCE.read_bytes(), version, platform.machine().encode(), flags, " ".join(FLAGS).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
