"""Products that XLA's CPU backend has no fast code for, in C++: `few_bits.cc`, called through `jax.ffi`.

They are compiled once, by the machine's own compiler for its own processor, and kept. Without a compiler XLA computes
the same.
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version

import jax

log = logging.getLogger("fmjax")

SOURCE = pathlib.Path(__file__).with_name("few_bits.cc")
TARGET = "fmjax_few_bits"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-DNDEBUG", "-w")
_installed: set[str] = set()  # JAX's registry is of the process, and cannot be asked


def is_installed() -> bool:
    """Whether programs for CPUs can call `TARGET`."""
    return TARGET in _installed


@functools.cache
def install(folder: pathlib.Path) -> bool:
    """Makes `TARGET` known to JAX, for what is traced from now on.

    folder: where what was compiled is kept between runs.

    Returns False, and says why, where there is no compiler, or it fails.
    """
    if is_installed():
        return True
    compiler = find_compiler()
    if compiler is None:
        return _without("there is no C++ compiler: $CXX, c++, g++ or clang++")
    library = folder / f"few_bits-{_fingerprint(compiler)}.so"
    if not library.exists():
        log.info("weights of few bits: compiling %s once, into %s", SOURCE.name, folder)
        if said := _compile(compiler, library):
            return _without(f"{compiler} failed: {said}")
    try:
        function = ctypes.CDLL(str(library)).FewBitsProduct
    except (OSError, AttributeError) as error:
        return _without(f"{library} cannot be used; delete it to have it compiled again: {error}")
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(function), platform="cpu")
    _installed.add(TARGET)
    return True


def find_compiler() -> str | None:
    """$CXX, or the first of the usual ones that there is."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else ["c++", "g++", "clang++"])), None)


def _without(reason: str) -> bool:
    log.warning("weights of few bits: XLA multiplies single rows, slowly: %s", reason)
    return False


def _fingerprint(compiler: str) -> str:
    """Of the source, what compiles it, and what it is compiled for."""
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    cpus = pathlib.Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else [platform.processor()]
    processor = [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    parts = (SOURCE.read_text(), told, *FLAGS, platform.machine(), *processor, version("jaxlib"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, library: pathlib.Path) -> str:
    """What the compiler says where it fails, or ""."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = pathlib.Path(folder) / library.name
        command = [compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", str(SOURCE), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return done.stderr[-2000:]
        made.replace(library)
    return ""
