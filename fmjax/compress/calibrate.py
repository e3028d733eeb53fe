"""What the products of a model are given when it reads calibration data, and changing its blocks by that.

Either of the model as it is, all of it at once (`gather`), or block by block (`by_block`): all kernels of a block are
calibrated before any of them is changed, and the next block is calibrated on what the changed one makes.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.compress.placing import as_the_model, on_host
from fmjax.compress.stacks import block_sums, by_kernel, counted_rows, entries, find_stacks, next_entry, plus, watched
from fmjax.errors import InputError
from fmjax.parallel.placement import Placement
from fmjax.registry import nearest

Change = Callable[[str, int, Any, Mapping[str, Mapping[str, Any]]], Any]
"""(path of the stack, number of the block, its parameters, what its products are given by their paths inside the block)
-> the parameters it gets instead."""


class Kept(Protocol):
    """Where blocks that are done lie, so that what was interrupted goes on."""

    def get(self, stack: str, layer: int, block: Any) -> Any | None:
        """The parameters that block `layer` got; None where it is not done. `block`: those that it had."""

    def put(self, stack: str, layer: int, params: Any) -> None:
        """Keeps what a block got."""


def gather(
    module: nn.Module, variables: Mapping[str, Any], batches: Iterable[Mapping[str, Any]], wanted: Sequence[str],
    only: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """What every dense layer of a module is given, over all batches, as it is: {path: {collection: sums}}, see
    `fmjax.layers.observe`; what is stacked below `blocks` has a leading layer axis. Padding does not count.

    Args:
      variables: of `module.apply`.
      batches: of the module's inputs by name.
      wanted: collections, "gram", "channels" or both.
      only: paths of the dense layers of which alone sums are kept; None: of all.
    """
    total, only = None, None if only is None else frozenset(only)
    for batch in batches:
        made = _pass(module, tuple(nn.get_logical_axis_rules()), variables, dict(batch), tuple(wanted), only)
        total = made if total is None else plus(total, made)
    return total


@functools.partial(jax.jit, static_argnums=(0, 1, 4, 5))
def _pass(module, rules, variables, batch, wanted, only):
    with nn.logical_axis_rules(rules):
        counted = {}

        def note(path, config, entry):
            stack, place = part_at(variables["params"], path), counted
            for name in path.split("/"):
                place = place.setdefault(name, {})
            for name in stack:
                if name.startswith("blocks"):
                    layers = config.num_layers if name == "blocks" else None
                    place[name] = counted_rows(stack[name], entry, layers)

        watched(module, note, variables, batch)
        _, made = module.apply({**variables, "counted": counted}, **batch, mutable=list(wanted))
        found = by_kernel(made)
        if unused := sorted({*(only or ())} - {*found}):
            raise InputError(
                f"{unused[0]}/kernel takes part in nothing that the module computes from {', '.join(sorted(batch))}: "
                "calibrate with its other inputs too, or leave it out with keep"
            )
        return found if only is None else {path: found[path] for path in sorted(only)}


def by_block(
    module: nn.Module, variables: Mapping[str, Any], batches: Sequence[Mapping[str, Any]], change: Change,
    wanted: Sequence[str], *, only: Sequence[str] | None = None, kept: Kept | None = None,
    done: Callable[[str, int, int], None] | None = None, placement: Placement | None = None,
) -> Any:  # fmt: skip
    """The parameters of a module whose Transformer stacks have been changed block by block.

    A stack at a time, in the order in which the module calls them, what enters it is computed with all that is changed
    by then; of what the calibration data are on the way through it, that before one block is held alone.

    Args:
      variables: of `module.apply`.
      batches: of the module's inputs by name; those of different shapes are programs of their own.
      change: what each block becomes. New parameters may have other leaves, alike for all blocks of a stack.
      wanted: collections of what `change` is told.
      only: paths of the stacks to change; None: all.
      kept: where blocks are taken from that are done, and put when they are.
      done: is called with (path of the stack, blocks that are done, blocks that it has).
      placement: the mesh on which the parameters lie, and on which what comes of them is split as they are.

    Raises InputError where the module has no stack, or none of a name in `only`.
    """
    params = variables["params"]
    stacks = find_stacks(module, variables, batches[0])
    if not stacks:
        raise InputError(
            f"{type(module).__name__} has no Transformer stack to go through block by block; take a method that "
            "goes kernel by kernel (gptq, wanda, sparsegpt), or without calibration (int8, magnitude)"
        )
    for path in only or ():
        if path not in stacks:
            raise InputError(f"there is no stack {path!r}{nearest(path, stacks)} Known: {', '.join(stacks)}")
    for path, config in stacks.items():
        if only is not None and path not in only:
            continue
        current = {**variables, "params": params}
        entered = [entry for batch in batches for entry in entries(module, current, dict(batch), path)]
        stack, blocks = part_at(params, path), []
        for layer in range(config.num_layers):
            block = _block_at(stack, layer)
            new = None if kept is None else kept.get(path, layer, block)
            if new is None:
                new = change(path, layer, block, block_sums(config, layer, block, entered, tuple(wanted)))
                if kept is not None:
                    kept.put(path, layer, new)
                    new = kept.get(path, layer, block)  # lying as it will where this goes on from here
            if layer + 1 < config.num_layers:
                entered = [next_entry(config, layer, new, entry) for entry in entered]
            blocks.append(on_host(new, placement))
            if done is not None:
                done(path, layer + 1, config.num_layers)
        params = as_the_model(module, with_part(params, path, restacked(stack, blocks)), placement)
    return params


def part_at(params: Any, path: str) -> Any:
    """The part of a tree at "vision/stack"; all of it at ""."""
    for name in filter(None, path.split("/")):
        params = params[name]
    return params


def with_part(params: Any, path: str, part: Any) -> Any:
    """The tree with another part there."""
    if not path:
        return part
    name, _, rest = path.partition("/")
    return {**params, name: with_part(params[name], rest, part)}


def unstacked(stack: Mapping[str, Any], layers: int) -> list[Any]:
    """The parameters of each block of a stack, whose blocks are stacked or not."""
    return [_block_at(stack, layer) for layer in range(layers)]


def _block_at(stack, layer):
    return _layer(stack["blocks"], layer) if "blocks" in stack else stack[f"blocks_{layer}"]


@jax.jit
def _layer(blocks, layer):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), blocks)


def restacked(stack: Mapping[str, Any], blocks: Sequence[Any]) -> dict[str, Any]:
    """The stack with these blocks, stacked if they were."""
    rest = {name: part for name, part in stack.items() if not name.startswith("blocks")}
    if "blocks" not in stack:
        return rest | {f"blocks_{layer}": block for layer, block in enumerate(blocks)}
    join = lambda *leaves: (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)
    return rest | {"blocks": jax.tree.map(join, *blocks)}
