"""Shared test settings: CPU only, eight simulated devices, one persistent compilation cache."""

import gc
import logging
import os
import pathlib
import resource
import sys
import tempfile
from importlib.metadata import version

import pytest

# Set before JAX starts; libtpu, where installed, would otherwise look for a chip.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
CACHE = pathlib.Path(os.environ.get("FMJAX_TEST_CACHE", pathlib.Path(tempfile.gettempdir()) / "fmjax_test_cache"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla"))
# Programs of single operations too, which most files have in common: to read one takes a quarter of the time.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Most of the suite's time is XLA compiling programs that run for milliseconds. Without most optimisations, by the older
# emitters, where jaxlib has them, and in one piece it takes a third of the time. To test the code that users run:
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= python -m pytest
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10."):  # XLA ends the process at a flag that it does not know
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    # By default simulated devices may come to collectives that do not depend on each other in unlike orders, and then
    # hold all threads waiting for one another until XLA aborts.
    flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    os.environ.setdefault("XLA_FLAGS", flags)
os.environ.setdefault("FMJAX_CACHE", str(CACHE / "fmjax"))

gc.set_threshold(100_000, 20, 20)  # tracing makes millions of objects, most of which outlive a collection
GROWTH = 1e9
"""Bytes of memory by which a test process grows before it lets go of everything that it compiled."""
KEEPERS = {f"fmjax.inference.{name}" for name in ("beam", "engine_parts", "engine_programs")}
"""Modules that keep their programs by functools.cache."""


def peak() -> float:
    """The most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


kept = 0.0  # the peak at the last time


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file():
    """What of fmjax one file compiled is of no use to the next, and may be of what that file put in a function's place.

    Programs of single operations stay, which most files have in common, until the process has grown.
    """
    import jax

    global kept

    jax.devices()  # all eight are there before a test asks for fewer, such as a plan for two
    yield
    if peak() > kept + GROWTH:
        jax.clear_caches()
        kept = peak()
        return
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "fmjax":
            for value in list(vars(module).values()):
                if hasattr(value, "clear_cache"):  # made by jax.jit
                    value.clear_cache()
                elif name in KEEPERS and hasattr(value, "cache_clear"):
                    value.cache_clear()


@pytest.fixture(autouse=True)
def log_as_imported():
    """What a command in this process sets of fmjax's log, for its own terminal, ends with the test."""
    log = logging.getLogger("fmjax")
    before = log.level, log.propagate, list(log.handlers)
    yield
    level, log.propagate, log.handlers[:] = before
    log.setLevel(level)


@pytest.fixture
def programs_by_their_scopes():
    """Programs that differ in nothing but the names of their scopes are one to the compilation cache, but not here."""
    import jax

    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    yield
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)


@pytest.fixture(scope="module")
def one_device():
    """JAX has one device for a whole module of tests; what names all of them, for a test that needs them."""
    import jax

    with pytest.MonkeyPatch.context() as patch:
        everything = jax.devices
        patch.setattr(jax, "devices", lambda *a: everything(*a)[:1])
        yield everything
