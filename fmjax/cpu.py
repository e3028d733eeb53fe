"""What a training process on CPUs alone sets before JAX starts.

XLA's CPU client takes the temporaries of every step from malloc and gives them back after it. glibc serves such sizes
with mmap and munmap, so that every step faults its pages in again: about a tenth to a fifth of the time of a small
model's step (experiments/quickstart). Kept in the heap, the same pages are used again.

A program takes its temporaries when it is called. Called while the one before it still runs, as JAX calls a step, it
takes them beside that one's, and the heap ends with two or three times what a step needs.

Simulated devices of one process share its threads. XLA 0.10 may let them come to collectives that do not depend on each
other in unlike orders; then all threads wait for one another until XLA aborts the process.
"""

import ctypes
import importlib.util
import os
import pathlib
import platform
import sys
from importlib.metadata import version

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
DEVICES, TPU_DEVICES = pathlib.Path("/dev"), ("accel[0-9]*", "vfio/0")


def only_cpu() -> bool:
    """Whether JAX will run on CPUs: it was told to, or there is no TPU and no plugin for another accelerator."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not has_tpu() and importlib.util.find_spec("jax_plugins") is None


def has_tpu() -> bool:
    """Whether this machine has TPU chips and the package that drives them, which without chips only compiles."""
    return any(any(DEVICES.glob(name)) for name in TPU_DEVICES) and importlib.util.find_spec("libtpu") is not None


def set_up_training() -> None:
    """What is below, for a process that trains; to be called before JAX is imported."""
    keep_freed_memory()
    run_in_turn()


def keep_freed_memory() -> bool:
    """Makes malloc keep what is freed, for reuse by the next step; to be called before JAX is imported.

    The process holds on to its peak memory until it ends. Does nothing, and returns False, where an accelerator is to
    be used or the C library is not glibc.
    """
    if not only_cpu() or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # One heap for all threads, or the threads XLA runs on would each keep their own peak.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
    return all([libc.mallopt(name, value) for name, value in settings])


def order_collectives() -> bool:
    """Makes simulated devices come to collectives in one order; to be called before JAX starts its devices.

    Does nothing, and returns False, without several simulated devices, where XLA_FLAGS say something of it, and for
    versions of XLA of which it is not known that they have the flag: XLA ends the process at one that it does not know.
    """
    flag, flags = "--xla_cpu_enable_concurrency_optimized_scheduler", os.environ.get("XLA_FLAGS", "")
    if not only_cpu() or not _simulated() or flag in flags or not version("jaxlib").startswith("0.10."):
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {flag}=false".strip()
    return True


def _simulated() -> bool:
    """Whether this process has several simulated devices."""
    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return True
    if "jax" in sys.modules:
        return sys.modules["jax"].config.jax_num_cpu_devices > 1
    return os.environ.get("JAX_NUM_CPU_DEVICES", "") not in ("", "-1", "0", "1")  # as JAX will read it


def run_in_turn() -> bool:
    """Makes a call of a program return when it has run, not before; to be called before JAX starts its devices.

    Does nothing, and returns False, where an accelerator is to be used, or where this process has several simulated
    devices, which have to be called side by side to meet in a collective.
    """
    import jax

    if not only_cpu() or _simulated():
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True
