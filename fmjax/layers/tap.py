"""Named activations: read them, replace them, or save them by name in a remat policy.

    y, state = module.apply({"params": p}, tokens, mutable=["reads"])
    state["reads"]["stack"]["blocks"]["attention"]["attention_heads"]       # [layers, B, T, heads * head_dim]

    edits = {"stack": {"blocks": {"residual_mlp": {"value": v, "mask": m}}}}   # every leaf [layers, ...]
    module.apply({"params": p, "edits": edits}, tokens)

Reads and edits mirror the module tree, as parameters do; inside the scanned blocks each leaf has a leading layer axis.
An edit is a dict with any of
    value, mask   where mask (bool, broadcast against x) is true, x becomes value; they come together
    add           is added to x, after that
so that patching, ablation and steering under `jit`, `vmap` and `grad` are all data, not code. When neither collection
is in use a tap leaves no trace in the compiled program.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.ad_checkpoint import checkpoint_name

from fmjax.errors import ConfigError
from fmjax.layers.observe import COLLECTIONS
from fmjax.registry import nearest

EDIT_KEYS = ("value", "mask", "add")
MADE = ("reads", *COLLECTIONS)
"""Collections that a pass of a module makes where they are asked for."""
GIVEN = ("params", "edits", "counted")
"""Collections that a pass is given."""
LAYERED = dict.fromkeys((*GIVEN, *MADE), 0)
"""Along which axis the leaves of each collection are stacked under a scan over layers."""


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Names the activation `x` of `module`; returns it, edited where the collection `edits` says so.

    Args:
      module: the Linen module whose activation it is.
      name: the activation's name, unique in the module, where no submodule has it either.
      x: any array.

    Returns: x or its edited version, with x's shape and dtype. What `reads` receives is this returned value.
    Raises ConfigError when an edit has keys other than value and mask together, and add.
    """
    if not module.is_initializing():  # init makes every collection mutable; reads are not parameters
        if module.has_variable("edits", name):
            x = _edit(x, module.get_variable("edits", name), name)
        module.sow("reads", name, x, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    return checkpoint_name(x, name)


def _edit(x: jax.Array, edit: dict, name: str) -> jax.Array:
    unknown = sorted(set(edit) - set(EDIT_KEYS))
    if unknown or not edit or ("value" in edit) != ("mask" in edit):
        raise ConfigError(
            f"edit of {name!r} has the keys {sorted(edit)}; expected 'value' and 'mask' together, 'add', or all three."
        )
    edited = x
    if "mask" in edit:
        edited = jnp.where(edit["mask"], edit["value"].astype(x.dtype), edited)
    if "add" in edit:
        edited = edited + edit["add"].astype(x.dtype)
    if edited.shape != x.shape:
        raise ConfigError(f"edit of {name!r} has shape {edited.shape} where the activation has {x.shape}.")
    return edited


def check_edits(module: nn.Module, *args, **kwargs) -> None:
    """Raises ConfigError when `module` is applied with an edit that no tap takes up.

    A model calls it at the start of its forward pass with the arguments of that pass. What may be edited is what may
    be read, so the names come from an abstract evaluation (nothing is computed) of the same pass with reads on.
    """
    edits = module.variables.get("edits")
    if not edits:
        return
    variables = {name: tree for name, tree in module.variables.items() if name not in ("edits", "reads")}
    plain = module.clone(parent=None)
    _, state = jax.eval_shape(lambda: plain.apply(variables, *args, mutable=["reads"], **kwargs))
    known = {"/".join(path) for path in traverse_util.flatten_dict(state["reads"])}
    for path in traverse_util.flatten_dict(edits):
        name = "/".join(path[:-1])
        if name not in known:
            listed = ", ".join(sorted(known))
            raise ConfigError(f"edit {name!r} names no activation{nearest(name, known)} Known: {listed}.")
