"""Other ways to run a config on the same devices: remat policies, mesh axes, parts of the batch."""

import logging
import math
import pathlib
from collections.abc import Iterator, Sequence

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
TENSOR_SIZES = (1, 2, 4, 8)
SEQUENCE_SIZES = (2, 4, 8)
LONG = 32_768


def search(
    config, devices: Sequence[jax.Device], name: str, *, cache_dir: pathlib.Path, tries: int
) -> Iterator[tuple[str, Plan]]:
    """Plans of variants of a config, as (what was changed, plan), one after another as they are compiled.

    On each mesh, the given one first, policies are tried from the one that computes least again until one fits; where
    not even "full" fits, the batch is cut into 2, 4, 8 parts. The batch and the model stay what they are.

    Args:
      tries: how many variants are compiled at most.
    """
    for mesh in _meshes(config, len(devices)):
        for changes in _ladder(config):
            if tries == 0:
                return
            changed = mesh | changes
            what = " ".join(f"{key}={value}" for key, value in changed.items()) or "as given"
            try:
                program, example = planned_program(_with(config, changed), devices, cache_dir)
            except ConfigError as error:
                if not changed:
                    raise
                log.warning("left out, %s: %s", what, error)
                break
            tries -= 1
            found = plan_program(program, example, name)
            yield what, found
            if found.fits is not False:
                break


def best(rows: Sequence[tuple[str, Plan]]) -> tuple[str, Plan] | None:
    """What `search` found best, None where nothing fits.

    Of the plans that fit, or of which that is not known, the one with the lowest bound on a step's time, or, of equal
    bounds and where there are none, with the fewest hardware FLOPs. A plan with a bound is better than one without.
    """

    def cost(row):
        bound = row[1].step_seconds_bound
        return bound is None, bound or 0.0, row[1].hardware_flops_per_step

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


def _ladder(config) -> Iterator[dict]:
    yield {}
    given = config["model"].get("remat")
    if given is not None:
        for policy in POLICIES:
            if policy != given:
                yield {"model.remat": policy}
    parts = config["train"]["accumulate_steps"]
    for times in (2, 4, 8):
        if config["train"]["batch_size"] % (parts * times) == 0:
            yield ({"model.remat": "full"} if given is not None else {}) | {"train.accumulate_steps": parts * times}


def _with(config, changes: dict):
    plain = config.to_dict()
    for key, value in changes.items():
        section, _, field = key.partition(".")
        plain[section][field] = value
    return resolve(plain)
