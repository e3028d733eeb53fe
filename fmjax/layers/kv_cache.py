"""Key-value cache of a stack: a pure pytree, every leaf with the batch's rows first.

    {"lengths": int32 [B], "layers": ({"key": [B, K, D, S], "value": [B, K, S, D]}, ...)}

Keys and values may be held in few bits (`in_few_bits`, `fmjax.layers.held`).

A query's product with keys, and its weights' with values, then read rows of S and of D: what a CPU multiplies fastest.

Each row advances by itself: `lengths` says how many positions it holds. The entry of position p lies in slot p mod S. A
layer with an attention window keeps S = window slots, and its older entries are overwritten; so what a slot holds
follows from the row's length alone. A row is given to a new sequence by writing that sequence's prompt into it, and
shortened (`rewound`) by its length alone, as far as entries that it then attends were not overwritten: `spare` slots.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError, InputError
from fmjax.layers.attention import attention
from fmjax.layers.attention.decode import decode_attention
from fmjax.layers.attention.prefixed import attend_beside, in_front, prefixed_attention
from fmjax.layers.attention.reference import attention_mask
from fmjax.layers.held import Held, empty, value_of, whole_parts
from fmjax.parallel.logical import constrain

AXES = ("batch", "act_heads", None, None)
"""Logical axes of keys and values."""

SLOTS = {"key": 3, "value": 2}
"""Axis of the slots."""

FEW = 64
"""New tokens of a row up to which a pass attends the cache as it lies, new entries among the old."""


def init_cache(
    batch_size: int, max_length: int, num_kv_heads: int, head_dim: int, windows, dtype, spare: int = 0
) -> dict:
    """An empty cache for positions below max_length.

    Args:
      windows: the attention window of each layer, None for none.
      spare: positions that a row may be shortened by after a pass over that many tokens and one.
    """

    def layer(window):
        slots = max_length if window is None else min(window + spare, max_length)
        shapes = {"key": (head_dim, slots), "value": (slots, head_dim)}
        rows = batch_size, num_kv_heads
        return {name: constrain(jnp.zeros((*rows, *shape), dtype), AXES) for name, shape in shapes.items()}

    return {"lengths": jnp.zeros(batch_size, jnp.int32), "layers": tuple(layer(window) for window in windows)}


def in_few_bits(cache: dict, format: str) -> dict:
    """An empty cache whose keys and values are held as "int8" or "int4" from now on; those of an encoder's memory as
    they are."""

    def held(entry):
        made = {name: empty(entry[name], format, 2 if name == "key" else 3) for name in SLOTS}
        return entry | jax.tree.map(lambda x: constrain(x, AXES), made)

    return cache | {"layers": tuple(map(held, cache["layers"]))}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheStep:
    """What all layers of one forward pass over N x T new tokens do with the cache.

    Attributes:
      rows: int32 [N, T], the cache row each token belongs to.
      positions: int32 [N, T], its position there; -1 for padding, which is never attended.
      before, after: int32 [B], the rows' lengths before and after this pass.
      segment_ids: int32 [N, T] for packed prompts, which see nothing but themselves; None where the tokens continue
        what the cache holds (then N = B and row i of the tokens belongs to row i of the cache).
    """

    rows: jax.Array
    positions: jax.Array
    before: jax.Array
    after: jax.Array
    segment_ids: jax.Array | None

    @property
    def input_positions(self) -> jax.Array:
        """Positions for embeddings, 0 for padding."""
        return jnp.maximum(self.positions, 0)

    def attend(self, entry: dict, q, k, v, *, window, scale, backend, mask=None, prefix=None):
        """Writes the new keys and values of a layer and attends.

        Args:
          entry: the layer's {"key", "value"}.
          q [N, T, H, D], k, v [N, T, K, D]: of the new tokens.
          window, scale, backend, mask: as for `attention`.
          prefix: None, or keys and values in front of all (`fmjax.layers.attention.prefixed`).

        Returns: ([N, T, H, D], the updated entry). Raises ConfigError for packed prompts with a mask, which goes by the
        index in the row.
        """
        length, slots = q.shape[1], entry["value"].shape[SLOTS["value"]]
        write = self.write_next if self.segment_ids is None and length == 1 else self.write
        updated = {name: write(name, entry[name], new) for name, new in (("key", k), ("value", v))}
        if self.segment_ids is not None:
            if mask is not None:
                raise ConfigError(f"packed prompts cannot be attended with {mask}, which goes by the index in the row")
            options = dict(segment_ids=self.segment_ids, causal=True, window=window, scale=scale)
            if prefix is None:
                out = attention(q, k, v, backend=backend, **options)
            else:
                out = prefixed_attention(q, k, v, prefix, mask=None, **options)
        elif length == 1 or (length <= FEW and _overwrites_nothing(length, slots, window)):
            held, positions = held_positions(self.after, slots)[:, None], self.positions[:, :, None]
            allowed = (held >= 0) & (held <= positions)
            if window is not None and slots > window:
                allowed &= positions - held < window
            if mask is not None:
                allowed &= mask.allowed(positions, held)
            seen = updated
            if prefix is not None:
                seen = {name: value_of(held) for name, held in updated.items()}
                seen, allowed = in_front(seen, allowed, prefix)
            out = decode_attention(q, seen["key"], seen["value"], allowed, scale=scale)
        else:
            # A later token of this pass may take the slot of an entry that an earlier one still attends, so attend
            # what was there before beside what is new.
            old = (value_of(entry["key"]).transpose(0, 3, 1, 2), value_of(entry["value"]).swapaxes(1, 2))
            keys, values = (jnp.concatenate([x.astype(k.dtype), new], axis=1) for x, new in zip(old, (k, v)))
            held = jnp.concatenate([held_positions(self.before, slots), self.positions], axis=1)
            ids = (jnp.ones_like(self.positions), (held >= 0).astype(jnp.int32))
            positions = (self.positions, held)
            if prefix is not None:
                allowed = attention_mask(
                    length, keys.shape[1], segment_ids=ids, positions=positions, causal=True, window=window, mask=mask
                )
                return attend_beside(q, keys, values, prefix, allowed, scale), updated
            # Positions rule out every backend but the reference.
            out = attention(
                q, keys, values, segment_ids=ids, positions=positions, causal=True, window=window, mask=mask,
                scale=scale, backend="reference",
            )  # fmt: skip
        return out, updated

    def write(self, name: str, held, new: jax.Array):
        """The "key" or "value" of an entry with the new tokens' [N, T, K, D] in their slots."""
        slots = held.shape[SLOTS[name]]
        # Of entries that share a slot only the newest stays: those within S of the row's end.
        kept = (self.positions >= 0) & (self.positions >= self.after[self.rows] - slots)
        at = jnp.where(kept, self.positions % slots, slots)  # slot S is out of bounds: dropped
        place = (self.rows, slice(None), at) if name == "value" else (self.rows, slice(None), slice(None), at)
        return _put(held, place, new, mode="drop")

    def write_next(self, name: str, held, new: jax.Array):
        """As `write`, with one new token a row, [B, 1, K, D].

        Padding is written too, where the row's next token will be: nothing attends it before that token overwrites it,
        and a write that is never left out happens in place.
        """
        batch, kv_heads = held.shape[:2]
        at = (self.before % held.shape[SLOTS[name]])[:, None]
        # With the heads as an index XLA's CPU backend updates the cache in place for a single row too.
        place = (jnp.arange(batch)[:, None], jnp.arange(kv_heads)[None])
        place += (at,) if name == "value" else (slice(None), at)
        return _put(held, place, new[:, 0], mode="promise_in_bounds", unique_indices=True)


def _put(held, place: tuple, new: jax.Array, **options):
    """What is held with new keys or values [..., D] at their places."""
    if not isinstance(held, Held):
        return held.at[place].set(new.astype(held.dtype), **options)
    codes, scales = whole_parts(new, held.format)
    return held.replace(
        codes=held.codes.at[place].set(codes, **options), scales=held.scales.at[place].set(scales, **options)
    )


def held_positions(lengths: jax.Array, slots: int) -> jax.Array:
    """Which position each slot of rows of `lengths` [B] holds: int32 [B, slots], negative for none."""
    last = lengths[:, None] - 1
    return last - (last - jnp.arange(slots)[None]) % slots


def _overwrites_nothing(length: int, slots: int, window: int | None) -> bool:
    """Whether `length` new tokens of a row take no slot whose entry one of them attends.

    A layer has less slots than its window where the cache ends before it does.
    """
    return window is None or slots < window or slots >= window + length - 1


def rewound(cache: dict, lengths: jax.Array) -> dict:
    """The cache with rows of `lengths` int32 [B], at most those it has: entries beyond them are as if never written.

    The entries of a layer with a window are right where the cache has `spare` slots (`init_cache`) for what is taken
    back.
    """
    return {**cache, "lengths": lengths}


def begin(cache: dict, tokens: jax.Array, segment_ids, positions, slots) -> CacheStep:
    """Prepares a pass over `tokens` [N, T]: see `fmjax.models.decoder.Decoder.__call__`.

    Raises InputError where the shapes do not fit.
    """
    before = cache["lengths"]
    if slots is None:
        if tokens.shape[0] != before.shape[0]:
            raise InputError(
                f"{tokens.shape[0]} rows of tokens for a cache of {before.shape[0]} rows; say with `slots` which row "
                "of the cache each packed prompt goes to"
            )
        real = jnp.ones(tokens.shape, bool) if segment_ids is None else segment_ids > 0
        positions = jnp.where(real, before[:, None] + jnp.arange(tokens.shape[1])[None], -1)
        after = before + jnp.sum(real, axis=1, dtype=jnp.int32)
        rows = jnp.broadcast_to(jnp.arange(tokens.shape[0])[:, None], tokens.shape)
        return CacheStep(rows, positions, before, after, None)
    if segment_ids is None or positions is None:
        raise InputError("packed prompts (`slots`) need segment_ids and positions")
    positions = jnp.where(segment_ids > 0, positions, -1)
    row = jnp.where(positions >= 0, slots, before.shape[0])
    after = before.at[row].set(0, mode="drop").at[row].max(positions + 1, mode="drop")
    return CacheStep(slots, positions, before, after, segment_ids)
