"""The Transformer stacks inside a module, whatever it is: what enters them, and their blocks one at a time."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from fmjax.layers.attention.reference import Ordered
from fmjax.layers.observe import added
from fmjax.layers.transformer import Transformer, one_block
from fmjax.layers.transformer_config import TransformerConfig


@struct.dataclass
class Entry:
    """What enters a stack: the arguments of `fmjax.layers.transformer.Transformer`."""

    x: jax.Array
    segment_ids: Any = None
    positions: jax.Array | None = None
    memory: Any = None
    condition: jax.Array | None = None

    @property
    def counted(self) -> jax.Array | None:
        """bool [B, T]: where x is no padding; None everywhere."""
        ids = self.segment_ids.segment_ids if isinstance(self.segment_ids, Ordered) else self.segment_ids
        return None if ids is None else ids > 0

    @property
    def memory_counted(self) -> jax.Array | None:
        """bool [B, S]: where the memory is no padding; None everywhere, or without a memory."""
        return None if self.memory is None or self.memory[1] is None else self.memory[1] > 0


def find_stacks(module: nn.Module, variables, inputs: Mapping[str, Any]) -> dict[str, TransformerConfig]:
    """The stacks that a module calls, by path ("vision/stack"), in the order of their calls; nothing is computed."""
    found = {}

    def note(path, config, entry):
        found[path] = config

    jax.eval_shape(functools.partial(watched, module, note), variables, dict(inputs))
    return found


@functools.partial(jax.jit, static_argnames=("module", "path"))
def entries(module: nn.Module, variables, inputs: Mapping[str, Any], path: str) -> list[Entry]:
    """What enters the stack at `path`, a call each; what comes after it is not computed.

    Args:
      variables, inputs: of `module.apply`, by name.
    """
    found = []

    def note(at, config, entry):
        if at == path:
            found.append(entry.replace(x=entry.x.astype(config.dtype)))

    watched(module, note, variables, dict(inputs))
    return found


def watched(module, note, variables, inputs) -> None:
    """Applies the module; `note(path, config, entry)` is told of each call of a stack."""

    def watch(call, args, kwargs, context):
        if isinstance(context.module, Transformer) and context.method_name == "__call__":
            known = {name: value for name, value in kwargs.items() if name not in ("cache", "train")}
            note("/".join(context.module.path), context.module.config, Entry(*args, **known))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        module.apply(variables, **inputs)


plus = jax.jit(added, donate_argnums=0)


def block_sums(config: TransformerConfig, layer: int, params, entries, wanted: tuple[str, ...]) -> dict[str, dict]:
    """What the products of one block are given, over all entries: {kernel's path inside the block: {collection: sums}},
    as in `fmjax.layers.observe`; padding does not count.

    Args:
      layer: its number, of which its kind follows.
      params: its parameters.
      entries: an iterable of `Entry`.
      wanted: collections.
    """
    total = None
    for entry in entries:
        made = _block(config, layer % len(config.pattern), tuple(nn.get_logical_axis_rules()), params, entry, wanted)[1]
        total = made if total is None else plus(total, made)
    return by_kernel(total)


def next_entry(config: TransformerConfig, layer: int, params, entry: Entry) -> Entry:
    """The entry with what block number `layer` makes of x."""
    kind = layer % len(config.pattern)
    return entry.replace(x=_block(config, kind, tuple(nn.get_logical_axis_rules()), params, entry, ())[0])


# One program a kind of layer, however many there are. The rules are those of the context, which JAX does not know of.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 5))
def _block(config, kind, rules, params, entry, wanted):
    with nn.logical_axis_rules(rules):
        counted = {"counted": counted_rows(params, entry)} if wanted else {}
        return one_block(
            config, kind, {"params": params, **counted}, entry.x, segment_ids=entry.segment_ids,
            positions=entry.positions, memory=entry.memory, condition=entry.condition, mutable=wanted,
        )  # fmt: skip


def counted_rows(params, entry: Entry, layers: int | None = None) -> dict:
    """The collection `counted` of a block's parameters, or of `layers` stacked ones, for what enters its stack."""
    found = {}
    for path in kernels(params):
        names = path.split("/")
        from_memory = "cross_attention" in names and names[-1] in ("key", "value")
        rows = entry.memory_counted if from_memory else entry.counted
        if rows is None or "modulation" in names:  # which has one row a text or image
            continue
        found[(*names, "rows")] = rows if layers is None else jnp.broadcast_to(rows, (layers, *rows.shape))
    return traverse_util.unflatten_dict(found)


def kernels(params) -> list[str]:
    """Paths of the dense layers in a tree of parameters: those of its kernels, without the last name."""
    found = []

    def look(tree, path):
        for name, part in tree.items():
            if name == "kernel":
                found.append("/".join(path))
            elif isinstance(part, Mapping):
                look(part, (*path, name))

    look(params, ())
    return found


def by_kernel(state: Mapping[str, Any]) -> dict[str, dict]:
    """Collections that a pass made, by the path of the dense layer: {path: {collection: sums}}."""
    found = {}

    def look(collection, tree, path):
        for name, part in tree.items():
            if name == "inputs":
                found.setdefault("/".join(path), {})[collection] = part
            else:
                look(collection, part, (*path, name))

    for collection, tree in state.items():
        look(collection, tree, ())
    return found
