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
TIMES = (2, 4, 8)  # the number of parts of the batch is multiplied by, or divided by where there is room
TENSOR_SIZES = (1, 2, 4, 8)
SEQUENCE_SIZES = (2, 4, 8)
LONG = 32_768


def search(
    config, devices: Sequence[jax.Device], name: str, *, cache_dir: pathlib.Path, tries: int
) -> Iterator[tuple[str, Plan]]:
    """Plans of variants of a config, as (what was changed, plan), one after another as they are compiled.

    On a mesh: the config as it is; then, of remat policies and of numbers of parts of the batch, each changed alone,
    the fastest that fits, and both together where both can be faster; where none fits, the fewest parts that do with
    "full". First all of this on the given mesh, then the config as it is on each other mesh, then the rest there. The
    batch and the model stay what they are.

    Args:
      tries: how many variants are compiled at most. If there was more to try, the log says so.
    """
    variants, fits = _variants(config, len(devices)), None
    while (changes := _next(variants, fits)) is not None:
        what = " ".join(f"{key}={value}" for key, value in changes.items()) or "as given"
        try:
            program, example = planned_program(_with(config, changes), devices, cache_dir)
        except ConfigError as error:
            if not changes:
                raise
            log.warning("left out, %s: %s", what, error)
            fits = None
            continue
        if tries == 0:
            log.warning("there is more to try, such as %s: --search=N compiles N variants", what)
            return
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


def _variants(config, num_devices: int) -> Generator[dict, bool | None, None]:
    """Changes to try; each is answered with whether it fits, None where the config refuses it."""
    given, *others = _meshes(config, num_devices)
    yield from _refine(config, *(yield from _begin(config, given)))
    begun = []
    for mesh in others:
        begun.append((yield from _begin(config, mesh)))
    for changes, fits in begun:
        yield from _refine(config, changes, fits)


def _begin(config, mesh: dict) -> Generator[dict, bool | None, tuple[dict, bool | None]]:
    """The config on a mesh, in fewer parts where a part's rows would not divide: (changes, whether it fits)."""
    changes, parts = mesh, config["train"]["accumulate_steps"]
    fits = yield changes
    while fits is None and parts % 2 == 0:
        parts //= 2
        changes = mesh | {"train.accumulate_steps": parts}
        fits = yield changes
    return changes, fits


def _refine(config, start: dict, fits: bool | None) -> Generator[dict, bool | None, None]:
    """What to try from `start` on: what is faster where it fits, what takes less memory where it does not."""
    if fits is None:
        return
    remat, rows = config["model"].get("remat"), config["train"]["batch_size"]
    parts = start.get("train.accumulate_steps", config["train"]["accumulate_steps"])
    place = POLICIES.index(remat) if remat in POLICIES else None
    if fits:
        policies = POLICIES[:place]
        counts = [parts // times for times in reversed(TIMES) if parts % times == 0]
    else:
        policies = POLICIES if place is None else POLICIES[place + 1 :]
        counts = [parts * times for times in TIMES if rows % (parts * times) == 0]
    numbers = [{"train.accumulate_steps": count} for count in counts]
    fewest = None
    if counts[:1] == [1]:  # which adds up no gradients, and may take less memory than two parts
        one = numbers.pop(0)
        fewest = one if (yield start | one) else None
    fewest = fewest or (yield from _first_to_fit(start, numbers))
    if remat is None:
        return
    ladder = [{"model.remat": policy} for policy in policies if policy != remat]
    policy = yield from _first_to_fit(start, ladder)
    if fits and fewest and policy:
        yield start | policy | fewest
    elif not (fits or fewest or policy) and remat != "full":
        yield from _first_to_fit(start | {"model.remat": "full"}, numbers)


def _first_to_fit(start: dict, ladder: list[dict]) -> Generator[dict, bool | None, dict | None]:
    """Halves a ladder of changes, each of which takes less memory than the one before, until the first that fits is
    known, and returns it, or None.

    One that is refused, as too many parts are, and those behind it are taken out of the ladder.
    """
    low, high, found = 0, len(ladder), None
    while low < high:
        middle = (low + high) // 2
        fits = yield start | ladder[middle]
        if fits is False:
            low = middle + 1
            continue
        high = middle
        if fits:
            found = ladder[middle]
        else:
            del ladder[middle:]
    return found


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
