"""A model's kernels changed one by one, each by what its product is given in calibration: what GPTQ, SparseGPT and
Wanda have in common."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.compress.calibrate import by_block, gather, part_at, with_part
from fmjax.compress.kept import KeptBlocks, identity
from fmjax.compress.stacks import find_stacks
from fmjax.errors import InputError, RunError
from fmjax.inference.checks import check_inputs
from fmjax.inference.model import Model
from fmjax.layers.weights import is_weight
from fmjax.parallel.sharding import path_name

log = logging.getLogger("fmjax.compress")

Change = Callable[[str, jax.Array, Mapping[str, Any]], tuple[Any, Any]]
"""(a kernel's name, the kernel [in, out], the sums of what its product is given) -> (what it becomes, the share of the
product that is lost, [], or None)."""


def batches_of(model: Model, calibration: Mapping[str, np.ndarray] | None, rows: int) -> list[dict[str, np.ndarray]]:
    """Calibration data, inputs [N, ...] of a model's module by name, in parts of `rows` rows.

    Raises InputError where there are none, of unlike numbers of rows, and for tokens that the model does not know.
    """
    if not calibration:
        raise InputError(
            "this method goes by what the model is given; read it with fmjax.compress.calibration.read_calibration "
            "(--calibration=FILE)"
        )
    sizes = {name: len(array) for name, array in calibration.items()}
    number = max(sizes.values())
    if len(set(sizes.values())) > 1 or number == 0:
        raise InputError(f"calibration has rows of unlike numbers, or none: {sizes}; give as many of each")
    if "tokens" in calibration:
        others = {name: array for name, array in calibration.items() if name != "tokens"}
        check_inputs(model.module, model.params, calibration["tokens"], others)
    return [{name: x[i : i + rows] for name, x in calibration.items()} for i in range(0, number, rows)]


def changed_kernels(
    model: Model, names: Sequence[str], batches: Sequence[Mapping[str, Any]], change: Change, wanted: Sequence[str],
    kept: KeptBlocks | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What the kernels of these names become, by name, stacked as they are.

    Those in Transformer stacks are changed block by block (`fmjax.compress.calibrate.by_block`), the others after that,
    by what the model then gives them.

    Args:
      names: of kernels, such as "stack/blocks/mlp/up/kernel".
      batches: of the module's inputs by name.
      change: what a kernel becomes, of the same structure for all layers of a stack.
      wanted: collections of `fmjax.layers.observe` that `change` is told.
      kept: where blocks that are done lie.
    """
    chosen, told = set(names), {}
    stacks = find_stacks(model.module, model.variables, dict(batches[0]))
    inside = {path for path in stacks if any(name.startswith(f"{path}/blocks") for name in chosen)}

    def of_block(path, layer, block, sums):
        told.clear()
        for inner in sums:
            if chosen & {f"{path}/blocks/{inner}/kernel", f"{path}/blocks_{layer}/{inner}/kernel"}:
                name = f"{path}/{layer}/{inner}/kernel"
                new, lost = change(name, part_at(block, inner)["kernel"], sums[inner])
                block = with_part(block, inner, {**part_at(block, inner), "kernel": new})
                told.update({} if lost is None else {inner: float(lost)})
        return block

    params = model.params
    if inside:
        params = by_block(
            model.module, model.variables, batches, of_block, wanted, only=[p for p in stacks if p in inside],
            kept=kept, done=progress_log(told), placement=model.placement,
        )  # fmt: skip
    rest = sorted(name for name in chosen if not any(name.startswith(f"{path}/blocks") for path in inside))
    if rest:
        params = _outside(model, params, rest, batches, change, wanted)
    return {name: part_at(params, name) for name in names}


def check_sound(name: str, lost: jax.Array, damping: float) -> None:
    """Raises RunError where what was computed for a kernel is no number (`fmjax.compress.sweep.factor`)."""
    if not np.isfinite(lost):
        raise RunError(
            f"{name}: what it is given in calibration leaves some directions out, and damping = {damping} does not "
            "make up for that; set it larger, such as 0.1, or give more calibration rows"
        )


def _outside(model, params, names, batches, change, wanted):
    """The parameters with kernels changed that lie in no Transformer stack, stacked ones a layer at a time."""
    layers = [name.removesuffix("/kernel") for name in names]
    sums = gather(model.module, {**model.variables, "params": params}, batches, wanted, layers)
    for name, layer in zip(names, layers):
        kernel, told = part_at(params, name), sums[layer]
        if kernel.ndim == 2:
            new = change(name, kernel, told)[0]
        else:
            row = lambda i: jax.tree.map(lambda x: x[i], told)
            made = [change(f"{name}[{i}]", kernel[i], row(i))[0] for i in range(len(kernel))]
            new = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
        params = with_part(params, name, new)
    return params


def progress_log(lost: Mapping[str, float] | None = None) -> Callable[[str, int, int], None]:
    """What tells the log how far `by_block` is.

    lost: by the path of a dense layer, the share of its product that is lost, of the block that is done.
    """
    began = time.monotonic()

    def done(path, blocks, of):
        about = f"; {_worst(lost)}" if lost else ""
        log.info("%s: %d of %d blocks, %.0f s%s", path, blocks, of, time.monotonic() - began, about)

    return done


def _worst(lost: Mapping[str, float]) -> str:
    name = max(lost, key=lost.get)
    mean = sum(lost.values()) / len(lost)
    return f"lost of the products {_decibel(mean)} on average, {_decibel(lost[name])} of {name}"


def _decibel(share: float) -> str:
    return f"{10 * np.log10(max(share, 1e-20)):.1f} dB"


def kept_blocks(
    model: Model, folder, method: str, options: Mapping[str, Any], calibration: Mapping[str, np.ndarray],
    become: Callable[[str], Callable | None],
) -> KeptBlocks | None:  # fmt: skip
    """Where the blocks of a run in `folder` lie; None without a folder.

    become: the stacked name of a kernel -> what gives the structure of what it becomes, a function of the kernel; None
      for one that stays.
    """
    if folder is None:
        return None

    def shapes(stack, block):
        def one(path, leaf):
            made = become(f"{stack}/blocks/{path_name(path)}")
            return jax.eval_shape(lambda x: x if made is None else made(x), leaf)

        return jax.tree_util.tree_map_with_path(one, block, is_leaf=is_weight)

    return KeptBlocks(folder, identity(model, method, options, calibration), shapes, model.placement)
