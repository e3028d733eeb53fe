"""Other ways to run a config on the same devices: remat policies, mesh axes, parts of the batch."""

import pathlib
from collections.abc import Iterator, Sequence

import jax

from fmjax.config import resolve
from fmjax.errors import ConfigError
from fmjax.planning.plan import Plan, plan_program, planned_program

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
            try:
                program, example = planned_program(_with(config, changed), devices, cache_dir)
            except ConfigError:  # does not divide over this mesh
                break
            tries -= 1
            found = plan_program(program, example, name)
            yield " ".join(f"{key}={value}" for key, value in changed.items()) or "as given", found
            if found.fits:
                break


def best(rows: Sequence[tuple[str, Plan]]) -> tuple[str, Plan] | None:
    """Of those that fit, the one with the lowest bound on a step's time; where no rates are known, the fewest FLOPs."""
    fitting = [row for row in rows if row[1].fits]
    cost = lambda row: (row[1].step_seconds_bound or 0.0, row[1].hardware_flops_per_step)
    return min(fitting, key=cost, default=None)


def _meshes(config, num_devices: int) -> Iterator[dict]:
    """The mesh as given (no change), then all over `fsdp` with more and more of `tensor`."""
    yield {}
    given = config["mesh"]
    sequence = max(1, given["sequence"])
    for tensor in TENSOR_SIZES:
        rest = num_devices // (tensor * sequence)
        sizes = {"data": 1, "fsdp": rest, "tensor": tensor, "sequence": sequence}
        whole_heads = config["model"].get("num_heads", tensor) % tensor == 0
        if not whole_heads or rest * tensor * sequence != num_devices or _sizes(given, num_devices) == sizes:
            continue
        yield {f"mesh.{axis}": size for axis, size in sizes.items()}


def _sizes(mesh, num_devices: int) -> dict[str, int]:
    sizes = {axis: mesh[axis] for axis in ("data", "fsdp", "tensor", "sequence")}
    fixed = 1
    for size in sizes.values():
        fixed *= size if size != -1 else 1
    return {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}


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
