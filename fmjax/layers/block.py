"""One block of a Transformer: attention, cross attention and MLP, with the norms where the placement has them."""

import flax.linen as nn
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.attention import attention
from fmjax.layers.attention.decode import decode_attention
from fmjax.layers.attention.prefixed import prefixed_attention
from fmjax.layers.attention.reference import Ordered
from fmjax.layers.dense import Linear
from fmjax.layers.mlp import MLP
from fmjax.layers.modulation import Modulation, modulated_norm
from fmjax.layers.norm import Norm
from fmjax.layers.position import apply_rope
from fmjax.layers.tap import tap
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.parallel.logical import constrain


def project(c: TransformerConfig, x, source, of: str = ""):
    """(queries [B, T, H, D] of x, keys and values [B, S, K, D] of source, None where it is None) in a module that
    attends: its products, whose names begin with `of`, and the norms of queries and keys where the stack has them."""

    def heads(name, source, number, axis, init):
        kernel = Linear(number * c.head_dim, ("embed", axis), c.qkv_bias, init, c.dtype, name=f"{of}{name}")
        return kernel(source).reshape(*source.shape[:2], number, c.head_dim)

    q = heads("query", x, c.num_heads, "heads", c.qk_init)
    k = v = None
    if source is not None:
        k = heads("key", source, c.num_kv_heads, "kv_heads", c.qk_init)
        v = heads("value", source, c.num_kv_heads, "kv_heads", c.value_init)
    if c.qk_norm:
        norm = lambda name: Norm(c.norm, c.norm_epsilon, name=f"{of}{name}")
        q = norm("q_norm")(q)
        k = None if k is None else norm("k_norm")(k)
    return q, k, v


class Attention(nn.Module):
    """Multi-head attention with its four products."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, *, memory=None, segment_ids=None, ropes=None, kind=0, cache=None, train=False):
        """x [B, T, D] to ([B, T, D], cache entry).

        Args:
          memory: [B, S, D] that keys and values come from (cross attention); None is x itself.
          segment_ids: as for `attention`.
          ropes: one table a kind of the pattern, or None entries for none.
          kind: index of this layer's kind in the pattern.
          cache: None, or the pair (CacheStep, this layer's entry). For cross attention the entry is the keys and
            values of the memory themselves, and `memory` is not read.
        """
        c = self.config
        batch, length, _ = x.shape
        cross = memory is not None or (cache is not None and cache[0] is None)
        source = memory if cross else x
        q, k, v = project(c, x, source)
        if not cross and ropes is not None and ropes[kind] is not None:
            q, k = (apply_rope(x, ropes[kind]) for x in (q, k))
        axes = ("batch", "length", "act_heads", None)
        q = constrain(tap(self, "q", q), axes)
        if k is not None:
            k, v = (constrain(tap(self, name, y), axes) for name, y in (("k", k), ("v", v)))
        prefix = self._prefix(ropes, kind)
        if cache is not None:
            out, entry = self._cached(cache, q, k, v, segment_ids, kind, cross, prefix)
        else:
            out, entry = self._attend(q, k, v, segment_ids, kind, cross, train, prefix), None
        out = tap(self, "attention_heads", out.reshape(batch, length, c.num_heads * c.head_dim))
        if c.placement == "sub":
            out = Norm(c.norm, c.norm_epsilon, name="inner_norm")(out)
        out = Linear(c.hidden_size, ("heads", "embed"), c.out_bias, c.residual_init, c.dtype, name="out")(out)
        return out, entry

    @nn.nowrap
    def _prefix(self, ropes, kind):
        """Learned keys and values [N, K, D] in front of all (`fmjax.adapt.prefix`); None without any.

        They lie at the N positions before the first token's, whose keys are turned by their place among them.
        """
        if not self.has_variable("params", "prefix"):
            return None
        c, held = self.config, self.get_variable("params", "prefix")
        if c.pattern[kind].window is not None:
            raise ConfigError("a prefix of keys and values has no place in front of an attention window")
        key, value = (held[name].reshape(-1, c.num_kv_heads, c.head_dim).astype(c.dtype) for name in ("key", "value"))
        rope = None if ropes is None else c.pattern[kind].rope
        if rope is not None:
            table = rope.table(jnp.full((1, len(key)), -len(key)), c.head_dim)
            key = apply_rope(key[None], table)[0]
        return key, value

    @nn.nowrap
    def _attend(self, q, k, v, segment_ids, kind, cross, train, prefix):
        c = self.config
        if prefix is not None:
            own = c.pattern[kind]
            return prefixed_attention(
                q, k, v, prefix, segment_ids=segment_ids, causal=c.causal, window=own.window, mask=own.mask,
                scale=c.query_scale,
            )  # fmt: skip
        rate = c.attention_dropout if train else 0.0
        options = dict(
            segment_ids=segment_ids, causal=c.causal and not cross, scale=c.query_scale, backend=c.attention,
            dropout_rate=rate, dropout_key=self.make_rng("dropout") if rate else None,
        )  # fmt: skip
        if cross:
            return attention(q, k, v, **options)
        return attention(q, k, v, window=c.pattern[kind].window, mask=c.pattern[kind].mask, **options)

    @nn.nowrap
    def _cached(self, cache, q, k, v, segment_ids, kind, cross, prefix):
        c = self.config
        step, entry = cache
        if cross:
            allowed = segment_ids[1] > 0
            return decode_attention(q, entry["key"], entry["value"], allowed, scale=c.query_scale), entry
        own = c.pattern[kind]
        masks = dict(window=own.window, mask=own.mask, prefix=prefix)
        return step.attend(entry, q, k, v, scale=c.query_scale, backend=c.attention, **masks)


def mlp_of(c: TransformerConfig, name: str = "mlp") -> MLP:
    """The MLP of a block."""
    return MLP(
        c.intermediate_size, c.activation, c.mlp_bias, c.mlp_init or c.value_init, c.residual_init,
        c.norm if c.placement == "sub" else None, c.norm_epsilon, c.dtype, name=name,
    )  # fmt: skip


class Block(nn.Module):
    """Attention, cross attention where there is one, and MLP, each with a residual connection.

    Attributes:
      at_once: tokens that go through the MLP at a time, where they divide by it; None is all.
    """

    config: TransformerConfig
    at_once: int | None = None

    @nn.compact
    def __call__(self, x, layer, memory, segment_ids, ropes, train, cache=None, condition=None):
        """One layer, the body of a scan over layers of one kind.

        Args:
          x: [B, T, D].
          layer: its kind's index in the pattern.
          memory: None, or the pair ([B, S, D], its segment ids or None).
          segment_ids: int32 [B, T] or None.
          ropes: one table a kind.
          train: whether dropout is on.
          cache: None, or the pair (CacheStep, this layer's entry).
          condition: [B, D] of the whole row, for the placement "adaln".

        Returns: (x, the updated cache entry or None).
        """
        c = self.config
        halves = ("attention", "cross", "mlp") if c.cross_attention else ("attention", "mlp")
        modulation = {}
        if c.placement == "adaln":
            vectors = iter(Modulation(3 * len(halves), c.dtype, name="modulation")(condition))
            modulation = {name: (next(vectors), next(vectors), next(vectors)) for name in halves}
        dropout = nn.Dropout(c.dropout, deterministic=not train)
        half = lambda x, name, function: self._half(x, name, function, dropout, modulation.get(name))
        entry = None

        def attend(y):
            nonlocal entry
            own = None if cache is None else (cache[0], cache[1])
            options = dict(segment_ids=segment_ids, ropes=ropes, kind=layer, cache=own, train=train)
            y, entry = Attention(c, name="attention")(y, **options)
            return y

        def cross(y):
            held, ids = memory
            own = None
            if cache is not None:
                own, held = (None, cache[1]["memory"]), None
            y, _ = Attention(c, name="cross_attention")(
                y, memory=held, segment_ids=_sides(segment_ids, ids), cache=own, train=train
            )
            return y

        x = half(x, "attention", attend)
        if c.cross_attention:
            x = half(x, "cross", cross)
        tokens = x.shape[0] * x.shape[1]
        if self.at_once and tokens > self.at_once and tokens % self.at_once == 0:
            x = self._mlp_in_turns(x)
        else:
            x = half(x, "mlp", self._mlp())
        if entry is not None and "memory" in cache[1]:
            entry = entry | {"memory": cache[1]["memory"]}
        return tap(self, "residual", x), entry

    @nn.nowrap
    def _mlp(self):
        return mlp_of(self.config)

    @nn.nowrap
    def _mlp_in_turns(self, x):
        """The half of the MLP, `at_once` tokens at a time: what it computes stays in a processor's caches."""

        def turn(block, _, x):
            return None, block._half(x, "mlp", block._mlp(), lambda y: y, None)

        lifted = nn.scan(turn, variable_broadcast="params", split_rngs={"params": False})
        return lifted(self, None, x.reshape(-1, 1, self.at_once, x.shape[-1]))[1].reshape(x.shape)

    @nn.nowrap
    def _half(self, x, name, function, dropout, modulation):
        """x and what `function` makes of it, with the norms where the placement has them; modulated for "adaln"."""
        c = self.config
        if modulation is not None:
            shift, scale, gate = modulation
            y = modulated_norm(x, shift, scale, c.norm_epsilon)
            x = x + gate * dropout(tap(self, f"{name}_out", function(tap(self, f"{name}_in", y))))
            return constrain(x, ("batch", "length", "act_embed"))
        norm = Norm(c.norm, c.norm_epsilon, name=f"{name}_norm")
        y = x if c.placement == "post" else norm(x)
        if c.placement == "normed" and name == "attention":
            x = y
        y = tap(self, f"{name}_out", function(tap(self, f"{name}_in", y)))
        if c.placement == "sandwich":
            y = Norm(c.norm, c.norm_epsilon, name=f"{name}_post_norm")(y)
        x = x + dropout(y)
        x = norm(x) if c.placement == "post" else x
        return constrain(x, ("batch", "length", "act_embed"))


def _sides(segment_ids, memory_ids):
    """Segment ids of a text and of what it attends, or None; their order (`Ordered`) is the text's own affair."""
    if memory_ids is None:
        return None
    return (segment_ids.segment_ids if isinstance(segment_ids, Ordered) else segment_ids, memory_ids)
