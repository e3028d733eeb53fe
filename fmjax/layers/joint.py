"""Blocks of two sequences that attend as one, each with weights of its own (MMDiT, Esser et al. 2024,
https://arxiv.org/abs/2403.03206, section 4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.attention import attention
from fmjax.layers.block import mlp_of, project
from fmjax.layers.dense import Linear
from fmjax.layers.flops import transformer_flops
from fmjax.layers.modulation import Modulation, modulated_norm
from fmjax.layers.tap import LAYERED, tap
from fmjax.layers.transformer_config import TransformerConfig, remat_policy
from fmjax.parallel.logical import constrain

AXES = ("batch", "length", "act_embed")


class JointAttention(nn.Module):
    """Attention over both sequences, with products for each; those of the text are called text_query and so on.

    Attributes:
      is_last: nobody reads the text afterwards, so only x asks. The text's queries are parameters all the same, as
        published files have them.
    """

    config: TransformerConfig
    is_last: bool = False

    @nn.compact
    def __call__(self, x, text, segment_ids, train=False):
        """([B, N, D], [B, T, D] or None) of x [B, N, D] and text [B, T, D]; segment_ids int32 [B, N + T] or None."""
        c, length = self.config, x.shape[1]
        ours, theirs = project(c, x, x), project(c, text, text, "text_")
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(ours, theirs))
        q = ours[0] if self.is_last else q
        q, k, v = (
            constrain(tap(self, name, y), ("batch", "length", "act_heads", None))
            for name, y in (("q", q), ("k", k), ("v", v))
        )
        ids = segment_ids if segment_ids is None or not self.is_last else (segment_ids[:, :length], segment_ids)
        rate = c.attention_dropout if train else 0.0
        out = attention(
            q, k, v, segment_ids=ids, causal=False, scale=c.query_scale, backend=c.attention, dropout_rate=rate,
            dropout_key=self.make_rng("dropout") if rate else None,
        )  # fmt: skip
        out = tap(self, "attention_heads", out.reshape(*out.shape[:2], -1))
        linear = lambda name: Linear(
            c.hidden_size, ("heads", "embed"), c.out_bias, c.residual_init, c.dtype, name=name
        )  # fmt: skip
        return linear("out")(out[:, :length]), None if self.is_last else linear("text_out")(out[:, length:])


class JointBlock(nn.Module):
    """Attention of both sequences and an MLP for each, modulated by the row's condition (adaLN-zero).

    Attributes:
      is_last: the text is read, and not written.
    """

    config: TransformerConfig
    is_last: bool = False

    @nn.compact
    def __call__(self, pair, condition, segment_ids, train):
        """(pair, None), the body of a scan over layers: pair is (x [B, N, D], text [B, T, D])."""
        c, (x, text) = self.config, pair
        eps = c.norm_epsilon
        dropout = nn.Dropout(c.dropout, deterministic=not train)
        shift, scale, gate, *rest = Modulation(6, c.dtype, name="modulation")(condition)
        parts = Modulation(2 if self.is_last else 6, c.dtype, name="text_modulation")(condition)
        # Published files have the last block's scale before its shift.
        text_shift, text_scale = reversed(parts) if self.is_last else parts[:2]
        y, z = modulated_norm(x, shift, scale, eps), modulated_norm(text, text_shift, text_scale, eps)
        y, z = JointAttention(c, self.is_last, name="attention")(
            tap(self, "attention_in", y), z, segment_ids, train
        )  # fmt: skip
        x = constrain(x + gate * dropout(tap(self, "attention_out", y)), AXES)
        x = self._fed(x, rest, "mlp", dropout)
        if not self.is_last:
            text = constrain(text + parts[2] * dropout(z), AXES)
            text = self._fed(text, parts[3:], "text_mlp", dropout)
        return (tap(self, "residual", x), text), None

    @nn.nowrap
    def _fed(self, x, modulation, name, dropout):
        c = self.config
        shift, scale, gate = modulation
        y = modulated_norm(x, shift, scale, c.norm_epsilon)
        y = tap(self, "mlp_in", y) if name == "mlp" else y
        y = mlp_of(c, name)(y)
        y = tap(self, "mlp_out", y) if name == "mlp" else y
        return constrain(x + gate * dropout(y), AXES)


class JointTransformer(nn.Module):
    """`num_layers` joint blocks: all but the last with stacked parameters `blocks` [layers - 1, ...], then `last_N`."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, text, condition, *, text_mask=None, train: bool = False) -> jax.Array:
        """[B, N, D] in the compute dtype.

        Args:
          x: [B, N, D].
          text: [B, T, D].
          condition: [B, D] of the whole row.
          text_mask: int32 [B, T], 0 for padding, which x does not attend to; None is without padding.
          train: whether dropout is on (then the rng `dropout` is needed).
        """
        c = self.config
        x, text = x.astype(c.dtype), text.astype(c.dtype)
        ids = None
        if text_mask is not None:
            ones = jnp.ones(x.shape[:2], text_mask.dtype)
            ids = jnp.concatenate([ones, (text_mask > 0).astype(text_mask.dtype)], axis=1)
        block = JointBlock
        rematerialise, policy = remat_policy(c.remat)
        if rematerialise:
            block = nn.remat(JointBlock, policy=policy, prevent_cse=False, static_argnums=(4,))
        pair = (x, text)
        if c.num_layers > 1:
            blocks = nn.scan(
                block, variable_axes=LAYERED,
                split_rngs={"params": True, "dropout": True}, in_axes=nn.broadcast, length=c.num_layers - 1,
                unroll=max(1, min(c.unroll, c.num_layers - 1)), metadata_params={nn.PARTITION_NAME: "layers"},
            )(c, name="blocks")  # fmt: skip
            pair, _ = blocks(pair, condition, ids, train)
        (x, _), _ = block(c, True, name=f"last_{c.num_layers - 1}")(pair, condition, ids, train)
        return tap(self, "final", x)


def joint_flops(config: TransformerConfig, length: int, text_length: int) -> float:
    """FLOPs of one row forward and backward through the stack, by the convention of `fmjax.layers.flops`; those of the
    conditions are not among them."""
    both = transformer_flops(config, vocab_size=0, sequence_length=length + text_length)
    width, heads = config.hidden_size, config.num_heads * config.head_dim
    unread = 2 * text_length * width * (2 * heads + 2 * config.intermediate_size)  # of the last block's text
    return both - 3.0 * (unread + 4 * text_length * (length + text_length) * heads)
