"""Which of a host's GPUs are a process's own, where the launcher runs several processes on it.

`jax.distributed`, by itself, gives each process of Slurm and Open MPI one GPU, the one with the process's number on its
host, however many there are: some stay idle, or a process that was dealt several uses one.
"""

import importlib.util
from collections.abc import Mapping

from fmjax import cpu
from fmjax.errors import InputError

GIVEN = "JAX_LOCAL_DEVICE_IDS"
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
GPUS = ("cuda", "rocm", "gpu")


def own_devices(
    environment: Mapping[str, str],
    launcher: str,
    processes: int,
    local_id: int,
    per_task: int | None = None,
    on_host: int | None = None,
) -> tuple[int, ...] | None:
    """Numbers of this process's devices among those that it sees; None is all that it sees.

    What JAX_LOCAL_DEVICE_IDS says is so. Else a process alone on its host has all; several have what the launcher dealt
    out to each, or the same number each of GPUs that all of them see, where no GPU is left over.

    Args:
      launcher: its name, for messages.
      processes: how many the launcher runs on this host.
      local_id: which of them this is, from 0.
      per_task: GPUs that the launcher was asked to give to each; None where it was not.
      on_host: GPUs of this host that the launcher gave to all of them together; None where it does not tell.

    Raises InputError where the GPUs that this process sees can be shared in more than one way, or in none.
    """
    if given := environment.get(GIVEN):
        return _numbers(given)
    platforms = environment.get("JAX_PLATFORMS")
    if processes == 1 or (platforms and not set(platforms.split(",")).intersection(GPUS)):
        return None
    seen, where = _seen(environment)
    if seen == 0:
        return None
    each = per_task or 1
    # One that sees a single device, by a variable, does so because somebody gave it that one.
    if where in VISIBLE and seen == each:
        return None
    if seen is None or (seen == processes * each and (per_task or on_host in (None, seen))):
        return tuple(range(local_id * each, local_id * each + each))
    asked = f", where each asked for {per_task} (--gpus-per-task)" if per_task else ""
    asked += f", of {on_host} that all have together" if on_host not in (None, seen) else ""
    raise InputError(
        f"{launcher} runs {processes} processes on this host, and this one sees {seen} GPU{'s' * (seen > 1)} "
        f"({where}){asked}: which are its own is not clear. Start one process a GPU or one a host, let srun deal them "
        f"out (--gpus-per-task=N), or set {GIVEN} in each process to the numbers of its own among those that it sees, "
        "such as 0,1; for processes that use no GPU, JAX_PLATFORMS=cpu"
    )


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise InputError(f"{GIVEN}={text!r} in the environment: expected numbers of devices, such as 0 or 0,1")
    return tuple(map(int, parts))


def _seen(environment: Mapping[str, str]) -> tuple[int | None, str]:
    """How many GPUs this process sees, None where that is not known, and what tells it."""
    variables = [name for name in VISIBLE if name in environment]
    if variables:
        name = next((name for name in variables if environment[name]), variables[0])
        return _listed(environment[name]), name
    if importlib.util.find_spec("jax_plugins") is None:  # JAX without GPUs
        return None, ""
    files = len(list(cpu.DEVICES.glob("nvidia[0-9]*")))
    return files or None, f"{cpu.DEVICES}/nvidia*"


def _listed(text: str) -> int:
    """Devices of a list such as `0,1` or `GPU-8932f937,MIG-1`; as CUDA reads it, it ends before one that is none."""
    names = [name.strip() for name in text.split(",")]
    ends = (i for i, name in enumerate(names) if name in ("", "NoDevFiles") or name.startswith("-"))
    return next(ends, len(names))
