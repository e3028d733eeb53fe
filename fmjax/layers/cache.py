"""Key-value cache of a stack: a pure pytree that a scan over layers carries and updates in place.

    {"key", "value": [layers, B, S, K, D], "positions": int32 [layers, B, S]}

Each row of the batch advances by itself. The entry of position p lies in slot p mod S; `positions` says which position
a slot holds, -1 for none. A model with an attention window keeps S = window slots, and older entries are overwritten.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fmjax.errors import InputError


def init_cache(
    num_layers: int, batch_size: int, max_length: int, num_kv_heads: int, head_dim: int, window: int | None, dtype
) -> dict:
    """An empty cache for positions below max_length."""
    slots = max_length if window is None else min(window, max_length)
    shape = (num_layers, batch_size, slots)
    return {
        "key": jnp.zeros((*shape, num_kv_heads, head_dim), dtype),
        "value": jnp.zeros((*shape, num_kv_heads, head_dim), dtype),
        "positions": jnp.full(shape, -1, jnp.int32),
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheState:
    """The whole cache on its way through the layers, with what is common to them."""

    key: jax.Array
    value: jax.Array
    positions: jax.Array
    new_positions: jax.Array  # [B, T], -1 for padding
    slots: jax.Array  # [B, T] where new entries go; S (out of bounds, dropped) for those that are not kept

    def layer(self, index) -> "LayerView":
        return LayerView(self, index)

    def tree(self) -> dict:
        return {"key": self.key, "value": self.value, "positions": self.positions}


@dataclasses.dataclass(frozen=True)
class LayerView:
    """One layer of a CacheState; lives only while that layer is traced."""

    state: CacheState
    index: jax.Array

    def whole(self) -> CacheState:
        return self.state

    def extend(self, k: jax.Array, v: jax.Array):
        """Writes the new keys and values [B, T, K, D], padding (where new_positions is -1) left out.

        Returns: (keys, values, segment ids, positions, view) for `attention`: everything its queries may attend, the
        ids and positions as (query side, key side) pairs.
        """
        state = self.state
        rows = jnp.arange(k.shape[0])[:, None]
        at = (self.index, rows, state.slots)
        dtype = state.key.dtype
        old = [x[self.index] for x in (state.key, state.value, state.positions)]
        state = dataclasses.replace(
            state,
            key=state.key.at[at].set(k.astype(dtype), mode="drop"),
            value=state.value.at[at].set(v.astype(dtype), mode="drop"),
            positions=state.positions.at[at].set(state.new_positions, mode="drop"),
        )
        if k.shape[1] == 1:
            keys, values, held = (x[self.index] for x in (state.key, state.value, state.positions))
        else:
            # A later entry of this call may take the slot of one that an earlier query still attends, so attend what
            # was there before beside what is new.
            keys = jnp.concatenate([old[0], k.astype(dtype)], axis=1)
            values = jnp.concatenate([old[1], v.astype(dtype)], axis=1)
            held = jnp.concatenate([old[2], state.new_positions], axis=1)
        ids = (jnp.ones_like(state.new_positions), (held >= 0).astype(jnp.int32))
        view = LayerView(state, self.index)
        return keys.astype(k.dtype), values.astype(v.dtype), ids, (state.new_positions, held), view


def begin(cache: dict, positions, segment_ids, window: int | None) -> CacheState:
    """Prepares a forward pass over T new entries per row. Raises InputError without positions."""
    if positions is None:
        raise InputError("cached decoding needs positions [B, T]: every row advances by itself.")
    slots = cache["positions"].shape[-1]
    if segment_ids is not None:
        positions = jnp.where(segment_ids > 0, positions, -1)
    kept = positions >= 0
    if window is not None:
        # Of entries that share a slot only the newest stays: those within S of the row's last position.
        kept &= positions > jnp.max(positions, axis=1, keepdims=True) - slots
    else:
        kept &= positions < slots
    return CacheState(
        cache["key"], cache["value"], cache["positions"], positions, jnp.where(kept, positions % slots, slots)
    )
