"""Other ways to run a config on the same devices: remat policies, mesh axes, parts of the batch."""

import logging
import math
import pathlib
from collections.abc import Generator, Iterator, Sequence

import jax

from fmjax.config import resolve
from fmjax.errors import ConfigError
from fmjax.parallel.mesh import MeshConfig
from fmjax.planning.plan import Plan, plan_program, planned_program

log = logging.getLogger(__name__)

# From what keeps most to what computes most again.
POLICIES = (
    "none",
    "save_named:q,k,v,attention_residuals,attention_heads,attention_out,mlp_gate,mlp_up",
    "save_named:q,k,v,attention_residuals,attention_heads,attention_out,mlp_up",
    "save_named:q,k,v,attention_residuals,attention_heads,attention_out",
    "save_named:attention_residuals,attention_heads",
    "full",
)
TIMES = (2, 4, 8)  # how many times the parts of the batch, or one of how many
TENSOR_SIZES = (1, 2, 4, 8)
SEQUENCE_SIZES = (2, 4, 8)
LONG = 32_768


def search(
    config, devices: Sequence[jax.Device], name: str, *, cache_dir: pathlib.Path, tries: int
) -> Iterator[tuple[str, Plan]]:
    """Plans of variants of a config, as (what was changed, plan), one after another as they are compiled.

    On each mesh, the given one first: the config as it is; then, of remat policies and of numbers of parts of the batch,
    the fastest that fits; where none does, the fewest parts that do with "full". The batch and the model stay what they
    are.

    Args:
      tries: how many variants are compiled at most. If there was more to try, the log says so.
    """
    for mesh in _meshes(config, len(devices)):
        variants, fits = _variants(config), None
        while (changes := _next(variants, fits)) is not None:
            changed = mesh | changes
            what = " ".join(f"{key}={value}" for key, value in changed.items()) or "as given"
            if tries == 0:
                log.warning("there is more to try, %s and what follows: --search=N compiles N variants", what)
                return
            try:
                program, example = planned_program(_with(config, changed), devices, cache_dir)
            except ConfigError as error:
                if not changed:
                    raise
                log.warning("left out, %s: %s", what, error)
                fits = None
                continue
            tries -= 1
            found = plan_program(program, example, name)
            fits = found.fits is not False
            yield what, found


def best(rows: Sequence[tuple[str, Plan]]) -> tuple[str, Plan] | None:
    """What `search` found best, None where nothing fits.

    Of the plans that fit, or of which that is not known, the one with the lowest bound on a step's time, or, of equal
    bounds and where there are none, with the fewest hardware FLOPs, and then the least traffic to main memory. A plan
    with a bound is better than one without.
    """

    def cost(row):
        bound = row[1].step_seconds_bound
        return bound is None, bound or 0.0, row[1].hardware_flops_per_step, row[1].memory_traffic_bytes

    return min((row for row in rows if row[1].fits is not False), key=cost, default=None)


def _meshes(config, num_devices: int) -> Iterator[dict]:
    """The mesh as given (no change), then all over `fsdp` with more and more of `tensor`, and of `sequence` where rows
    are long or fewer than the devices."""
    yield {}
    mesh = MeshConfig(**config["mesh"])
    given, extra = mesh.filled(num_devices), math.prod(mesh.extra.values())
    rows = config["train"]["batch_size"] // config["train"]["accumulate_steps"]
    is_long = rows < num_devices or config["data"].get("sequence_length", 0) >= LONG
    lengths = dict.fromkeys((max(1, mesh.sequence), *(SEQUENCE_SIZES if is_long else ())))
    for sequence in lengths:
        for tensor in TENSOR_SIZES:
            rest = num_devices // (tensor * sequence * extra)
            sizes = {"data": 1, "fsdp": rest, "tensor": tensor, "sequence": sequence}
            whole_heads = config["model"].get("num_heads", tensor) % tensor == 0
            divides = rest * tensor * sequence * extra == num_devices
            if whole_heads and divides and sizes != {axis: given[axis] for axis in sizes}:
                yield {f"mesh.{axis}": size for axis, size in sizes.items()}


def _variants(config) -> Generator[dict, bool | None, None]:
    """Changes to try on one mesh; each is answered with whether it fits, None where the config refuses it."""
    fits = yield {}
    if fits is None:
        return
    remat, parts, rows = config["model"].get("remat"), config["train"]["accumulate_steps"], config["train"]["batch_size"]
    place = POLICIES.index(remat) if remat in POLICIES else None
    if fits:
        policies = POLICIES[:place]
        counts = [parts // times for times in reversed(TIMES) if parts % times == 0]
    else:
        policies = POLICIES if place is None else POLICIES[place + 1 :]
        counts = [parts * times for times in TIMES if rows % (parts * times) == 0]
    numbers = [{"train.accumulate_steps": count} for count in counts]
    fits |= yield from _first_to_fit(numbers)
    if remat is not None:
        fits |= yield from _first_to_fit([{"model.remat": policy} for policy in policies if policy != remat])
        if not fits and remat != "full":
            yield from _first_to_fit([{"model.remat": "full"} | number for number in numbers])


def _first_to_fit(ladder: Sequence[dict]) -> Generator[dict, bool | None, bool]:
    """Halves a ladder, each step of which takes less memory than the one before, until the first that fits is known.

    A step that is refused, as one with too many parts is, counts as too far down. Returns whether any fits.
    """
    low, high, any_fits = 0, len(ladder), False
    while low < high:
        middle = (low + high) // 2
        fits = yield ladder[middle]
        low, high = (middle + 1, high) if fits is False else (low, middle)
        any_fits |= bool(fits)
    return any_fits


def _next(variants: Generator, answer: bool | None) -> dict | None:
    """The next of `variants` after this answer to the one before; None at the end."""
    try:
        return variants.send(answer)
    except StopIteration:
        return None


def _with(config, changes: dict):
    plain = config.to_dict()
    for key, value in changes.items():
        section, _, field = key.partition(".")
        plain[section][field] = value
    return resolve(plain)
