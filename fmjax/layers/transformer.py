"""One Transformer stack for every family, scanned over its layers."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.block import Block
from fmjax.layers.norm import Norm
from fmjax.layers.tap import GIVEN, LAYERED, MADE, tap
from fmjax.layers.transformer_config import TransformerConfig, remat_policy
from fmjax.parallel.platform import target_platform

MLP_TOKENS = {"cpu": 512}
"""Tokens of a prompt that go through an MLP at a time; elsewhere all do."""


class Transformer(nn.Module):
    """`num_layers` blocks with stacked parameters [layers, ...], and the final norm where the placement has one."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x, *, segment_ids=None, positions=None, memory=None, cache=None, train=False, condition=None
    ):  # fmt: skip
        """Runs the stack.

        Args:
          x: [B, T, D] embedded inputs.
          segment_ids: int32 [B, T], 0 = padding, or None for one segment without padding; or
            `fmjax.layers.attention.reference.Ordered`, whose order a causal mask goes by.
          positions: int32 [B, T] for rotary embedding; None is 0..T-1.
          memory: None, or for cross attention ([B, S, D], its segment ids int32 [B, S] or None).
          cache: None, or the pair (`fmjax.layers.kv_cache.CacheStep`, the cache's layers).
          train: whether dropout is on (then the rng `dropout` is needed).
          condition: [B, D] of the whole row, for the placement "adaln".

        Returns: ([B, T, D] in the compute dtype, the cache's updated layers or None).
        """
        c = self.config
        x = x.astype(c.dtype)
        ropes = _ropes(c, jnp.arange(x.shape[1])[None] if positions is None else positions)
        layers = None
        if c.scan_layers:
            if cache is not None:
                raise ConfigError(
                    "decoding with a cache needs scan_layers=False; take (module, params) from module.unrolled(params)"
                )
            x = self._scanned(x, memory, segment_ids, ropes, train, condition)
        else:
            x, layers = self._unrolled(x, memory, segment_ids, ropes, train, cache, condition)
        if c.final_norm and c.placement not in ("post", "adaln"):
            x = Norm(c.norm, c.norm_epsilon, name="final_norm")(x)
        return tap(self, "final", x), layers

    def _block(self, barriers):
        """The block's class, rematerialised as the config says.

        Args:
          barriers: against computing again too early, or merging that with what was computed first: a program of
            several blocks needs them. The body of a scan that is one block does not, and they cost time.
        """
        rematerialise, policy = remat_policy(self.config.remat)
        if not rematerialise:
            return Block
        return nn.remat(Block, policy=policy, prevent_cse=barriers, static_argnums=(2, 6))

    @nn.nowrap
    def _unroll(self, iterations):
        """How many of a scan's iterations over equal parts of the stack are written out in one."""
        wanted = -(-self.config.unroll * iterations // self.config.num_layers)
        return wanted if self.config.remat == "none" else max(1, min(wanted, iterations // 2))

    def _scanned(self, x, memory, segment_ids, ropes, train, condition):
        c = self.config
        # Parameters are made by one body whatever the kinds, which do not change them.
        if c.period > 1 and not self.is_initializing():
            return self._by_period(x, memory, segment_ids, ropes, train, condition)
        blocks = nn.scan(
            self._block(barriers=False),
            variable_axes=LAYERED,
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
            unroll=self._unroll(c.num_layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, name="blocks")
        return blocks(x, 0, memory, segment_ids, ropes, train, None, condition)[0]

    def _by_period(self, x, memory, segment_ids, ropes, train, condition):
        """A scan over periods, in which the kind of each layer is static, and after it the layers left over."""
        c = self.config
        mutable = [name for name in MADE if self.is_mutable_collection(name)]
        names = [name for name in GIVEN if self.has_variable(name, "blocks")]
        layers = {"variables": nn.unbox({name: self.get_variable(name, "blocks") for name in names})}
        if train and self.has_rng("dropout"):
            layers["rngs"] = {"dropout": jax.random.split(self.make_rng("dropout"), c.num_layers)}

        block = self._block(barriers=True)(c, parent=None)

        def one(kind, x, layer):
            inputs = (x, kind, memory, segment_ids, ropes, train, None, condition)
            (x, _), state = block.apply(layer["variables"], *inputs, rngs=layer.get("rngs"), mutable=mutable)
            return x, state

        def run(x, layers):
            """(x, what they make [n, ...]) after n layers, the first of which begins a period: a scan for those of one
            kind."""
            kinds = [c.kind(layer) for layer in range(len(jax.tree.leaves(layers)[0]))]
            sizes = [len(list(alike)) for _, alike in itertools.groupby(kinds)]
            made = []
            for i, alike in enumerate(_cut(layers, sizes)):
                x, found = jax.lax.scan(functools.partial(one, sum(sizes[:i]) % c.period), x, alike)
                made.append(found)
            return x, joined(made)

        def joined(parts):
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

        periods = c.num_layers // c.period
        whole = periods * c.period if periods > 1 else 0
        scanned, rest = _cut(layers, (whole, c.num_layers - whole))
        parts = []
        with jax.named_scope("blocks"):
            if whole:
                scanned = jax.tree.map(lambda leaf: leaf.reshape(periods, c.period, *leaf.shape[1:]), scanned)
                x, made = jax.lax.scan(run, x, scanned, unroll=self._unroll(periods))
                parts.append(jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), made))
            if whole < c.num_layers:
                x, made = run(x, rest)
                parts.append(made)
        for name, made in joined(parts).items():
            self.put_variable(name, "blocks", made)
        return x

    def _unrolled(self, x, memory, segment_ids, ropes, train, cache, condition):
        c = self.config
        asked = any(self.is_mutable_collection(name) for name in MADE)
        plain = not asked and not self.has_variable("edits", "blocks_0")
        if cache is not None and plain:
            blocks = [self.variables["params"][f"blocks_{layer}"] for layer in range(c.num_layers)]
            return _decoding_blocks(c, blocks, x, memory, segment_ids, ropes, cache)
        entries = []
        for layer in range(c.num_layers):
            block, kind = self._block(barriers=True)(c, name=f"blocks_{layer}"), layer % len(c.pattern)
            held = None if cache is None else (cache[0], cache[1][layer])
            x, entry = block(x, kind, memory, segment_ids, ropes, train, held, condition)
            entries.append(entry)
        return x, tuple(entries) if cache is not None else None


def decode_part(config: TransformerConfig, blocks, x, segment_ids, positions, cache):
    """Some neighbouring blocks of a stack that decodes, of which the first begins the pattern of kinds.

    Args:
      blocks: parameters of each.
      x, segment_ids, positions: as for `Transformer`, whose first part takes the embedded inputs.
      cache: the pair (CacheStep, the entries of these blocks).

    Returns: (x, the updated entries). After the last part comes `final_norm`.
    """
    return _decoding_blocks(config, blocks, x.astype(config.dtype), None, segment_ids, _ropes(config, positions), cache)


def one_block(
    config: TransformerConfig, kind: int, variables, x, *, segment_ids=None, positions=None, memory=None,
    condition=None, mutable=(),
):  # fmt: skip
    """One block of a stack by itself, without dropout: ([B, T, D], the collections in `mutable` that it makes).

    Args:
      kind: of the layer: its number modulo the length of the pattern.
      variables: the block's own.
      x, segment_ids, positions, memory, condition: as for `Transformer`.
    """
    ropes = _ropes(config, jnp.arange(x.shape[1])[None] if positions is None else positions)
    inputs = (x, kind, memory, segment_ids, ropes, False, None, condition)
    (x, _), state = Block(config).apply(variables, *inputs, mutable=list(mutable))
    return x, state


def final_norm(config: TransformerConfig, params, x):
    """x after the norm that ends a stack, where the placement has one; `params` are the stack's."""
    if config.placement in ("post", "adaln"):
        return x
    return Norm(config.norm, config.norm_epsilon, parent=None).apply({"params": params["final_norm"]}, x)


def _ropes(config, positions):
    """A table a kind of the pattern, None for kinds without."""
    made = {rope: rope.table(positions, config.head_dim) for kind in config.pattern if (rope := kind.rope) is not None}
    return tuple(made.get(kind.rope) for kind in config.pattern)


def _decoding_blocks(config, blocks, x, memory, segment_ids, ropes, cache):
    rules, entries = tuple(nn.get_logical_axis_rules()), []
    for layer, (params, entry) in enumerate(zip(blocks, cache[1])):
        arrays = (x, memory, segment_ids, ropes, (cache[0], entry))
        x, entry = _decoding_block(config, layer % len(config.pattern), rules, params, *arrays)
        entries.append(entry)
    return x, tuple(entries)


# Traced once a kind of layer, however many there are. The rules are those of the context, which JAX does not know of.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decoding_block(config, kind, rules, params, x, memory, segment_ids, ropes, cache):
    at_once = MLP_TOKENS.get(target_platform())
    with nn.logical_axis_rules(rules):
        return Block(config, at_once).apply({"params": params}, x, kind, memory, segment_ids, ropes, False, cache)


def unstack_layers(tree):
    """A tree of parameters (or edits) for `scan_layers=False`: every `blocks` [layers, ...] becomes `blocks_0`, ...

    Other leaves are left alone; a tree without stacked blocks comes back as it is.
    """
    if not isinstance(tree, dict):
        return tree
    found = {}
    for name, part in tree.items():
        if name == "blocks":
            for i in range(len(jax.tree.leaves(part)[0])):
                found[f"blocks_{i}"] = jax.tree.map(lambda leaf: _row(leaf, i), part)
        else:
            found[name] = unstack_layers(part)
    return found


@jax.jit
def _row(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _cut(tree, sizes):
    """A tree a size, with so many rows of each leaf in turn. The gradient of that concatenates; slices' would add."""
    leaves, structure = jax.tree.flatten(tree)
    return [structure.unflatten(part) for part in zip(*(jax.lax.split(leaf, sizes) for leaf in leaves))]
