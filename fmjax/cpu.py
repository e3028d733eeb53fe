"""What a training process on CPUs alone sets before JAX starts.

XLA's CPU client takes the temporaries of every step from malloc and gives them back after it. glibc serves such sizes
with mmap and munmap, so that every step faults its pages in again: about a tenth to a fifth of the time of a small
model's step (experiments/quickstart). Kept in the heap, the same pages are used again.

A program takes its temporaries when it is called. Called while the one before it still runs, as JAX calls a step, it
takes them beside that one's, and the heap ends with two or three times what a step needs.

Simulated devices of one process share its threads. XLA 0.10 may let them come to collectives that do not depend on each
other in unlike orders; then all threads wait for one another until XLA aborts the process. It also shares each product
of each device out among all threads, which costs more than it brings where every core has a device of its own.
"""

import ctypes
import importlib.util
import os
import pathlib
import platform
import re
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
    keep_products_whole()


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
    return _devices() > 1 and _turn_off("--xla_cpu_enable_concurrency_optimized_scheduler")


def keep_products_whole() -> bool:
    """Lets a simulated device compute each of its products on one thread, where there is a device for every core; to be
    called before JAX starts its devices.

    A step over all of them then takes less time than on one device of all threads (experiments/throughput). Does
    nothing, and returns False, with fewer devices than cores, and where `order_collectives` does nothing.
    """
    return _devices() > 1 and _devices() >= cores() and _turn_off("--xla_cpu_multi_thread_eigen")


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _turn_off(flag: str) -> bool:
    """Whether XLA_FLAGS now say no to a flag of XLA 0.10 for CPUs, of which they said nothing."""
    flags = os.environ.get("XLA_FLAGS", "")
    if not only_cpu() or flag in flags or not version("jaxlib").startswith("0.10."):
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {flag}=false".strip()
    return True


def _devices() -> int:
    """How many devices the CPUs of this process are, as JAX will read it: 1 where nothing was said."""
    told = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if told:
        return int(told[1])
    if "jax" in sys.modules:
        return max(1, sys.modules["jax"].config.jax_num_cpu_devices)
    given = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    return max(1, int(given)) if re.fullmatch(r"-?\d+", given) else 1


def run_in_turn() -> bool:
    """Makes a call of a program return when it has run, not before; to be called before JAX starts its devices.

    Does nothing, and returns False, where an accelerator is to be used, or where this process has several simulated
    devices, which have to be called side by side to meet in a collective.
    """
    import jax

    if not only_cpu() or _devices() > 1:
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True
