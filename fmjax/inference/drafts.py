"""What drafts tokens for a model to read several at once: the row's own text, the model's first layers, another model,
or heads on the model's last layer.

A draft is a frozen dataclass, static under jit, with the number of `tokens` that it proposes a pass and pure functions
of its own arrays `own`, of which rows come first:

    start(batch_size, max_length) -> own           empty, for a cache of so many places
    read(weights, own, packed) -> own              packed prompts have become the rows' content
    propose(form, weights, model, state, own, limit) -> (state, own, Proposals)
        of the draft's weights and the model's, at most `limit` int32 [B] tokens a row; 0 in one that has stopped
    settle(own, passed) -> own                     what the model took of them
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.inference import decoding
from fmjax.inference.engine_programs import Form, State
from fmjax.inference.sampler import law, pick
from fmjax.inference.speculation import DRAFT, folded, uniform
from fmjax.layers.transformer import decode_part


class Proposals(NamedTuple):
    """What a draft proposes to go on with, behind the token that each row has drawn last.

    Attributes:
      tokens: int32 [B, k].
      count: int32 [B], so many of a row's are proposed.
      laws: float32 [B, k, V], what they were drawn from; None where each is proposed for certain.
      finite: bool [B], whether the draft's logits were.
    """

    tokens: jax.Array
    count: jax.Array
    laws: jax.Array | None
    finite: jax.Array


class Passed(NamedTuple):
    """What a pass of the model made of proposals.

    Attributes:
      before: int32 [B], the cache's lengths before it.
      tokens: int32 [B, k + 1], of which the first `count` int32 [B] were drawn.
      hidden: [B, k + 1, D], what the last layer gave at its inputs.
    """

    before: jax.Array
    tokens: jax.Array
    count: jax.Array
    hidden: jax.Array


TRUST = {2: 3, 4: 7}
"""Of a match of so many tokens at least, so many are proposed at most: a pass over 4 tokens costs hardly more than one
over one."""

COPIED = 8
"""Of a match of so many tokens all are proposed that a pass may read."""


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Prompt look-up (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): what followed the last
    tokens where the row's text, prompt and drawn, had them before.

    Of all places the one where most of the last tokens are the same, and of equal ones the last; a text that ends in a
    loop is continued around it. How many tokens are proposed goes by how many were the same (TRUST, COPIED).
    """

    tokens: int = 15

    def start(self, batch_size: int, max_length: int) -> jax.Array:
        """int32 [B, max_length + 1], the rows' texts."""
        return jnp.zeros((batch_size, max_length + 1), jnp.int32)

    def read(self, weights, own, packed):
        rows = jnp.where(packed.segment_ids > 0, packed.slots, len(own))
        return own.at[rows, packed.positions].set(packed.tokens, mode="drop")

    def propose(self, form: Form, weights, model, state: State, own, limit):
        rows, last = jnp.arange(len(own)), state.cache["lengths"]
        own = own.at[rows, last].set(state.token, mode="drop")
        tokens, same = look_up(own, last, self.tokens)
        most = jnp.where(same >= COPIED, self.tokens, 0)
        for least, number in TRUST.items():
            most = jnp.where(same >= least, jnp.maximum(most, number), most)
        return state, own, Proposals(tokens, jnp.minimum(most, limit), None, jnp.ones(len(own), bool))

    def settle(self, own, passed: Passed):
        place = passed.before[:, None] + 1 + jnp.arange(passed.tokens.shape[1])[None]
        drawn = jnp.arange(passed.tokens.shape[1])[None] < passed.count[:, None]
        rows = jnp.where(drawn, jnp.arange(len(own))[:, None], len(own))
        return own.at[rows, place].set(passed.tokens, mode="drop")


def look_up(text, last, number: int) -> tuple[jax.Array, jax.Array]:
    """(tokens int32 [B, number], how many of the last tokens were the same, int32 [B], at most COPIED) for `Lookup`.

    Args:
      text: int32 [B, N].
      last: int32 [B], where each text's last token is.
    """
    rows, index = jnp.arange(len(text))[:, None], jnp.arange(text.shape[1])[None]
    same, length = index < last[:, None], jnp.zeros_like(text)
    for back in range(COPIED):
        place = last[:, None] - back
        own = text[rows, jnp.maximum(place, 0)]
        same &= (jnp.roll(text, back, axis=1) == own) & (index >= back)
        length += same
    best = jnp.argmax(length * text.shape[1] + index * (length > 0), axis=1)[:, None]
    ahead = jnp.arange(number)[None] % jnp.maximum(last[:, None] - best, 1)
    return text[rows, best + 1 + ahead], length[rows, best][:, 0]


@dataclasses.dataclass(frozen=True)
class EarlyExit:
    """The model's first layers, its last norm and its head (self-speculation: Zhang et al. 2024,
    https://arxiv.org/abs/2309.08168; by early exit, Elhoushi et al. 2024, https://arxiv.org/abs/2404.16710).

    Their entries of the cache are the model's own; the model's pass writes them again.
    """

    layers: int
    tokens: int = 3

    def start(self, batch_size: int, max_length: int):
        return None

    def read(self, weights, own, packed):
        return own

    def propose(self, form: Form, weights, model: decoding.Weights, state: State, own, limit):
        module, stack = form.module, model.params["stack"]
        blocks = [stack[f"blocks_{layer}"] for layer in range(self.layers)]

        def step(cache, token, active):
            entered = decoding.enter(module, model, cache, token[:, None], active[:, None].astype(jnp.int32))
            held = entered.step, cache["layers"]
            where = entered.segment_ids, entered.positions
            x, layers = decode_part(module.transformer, blocks, entered.x, *where, held)
            logits = decoding.leave(module, model, x, jnp.arange(len(token)))
            return logits, {"lengths": entered.step.after, "layers": layers}

        cache = state.cache
        first = {"lengths": cache["lengths"], "layers": cache["layers"][: self.layers]}
        first, proposals = _drawn(form, step, first, state, limit, self.tokens, self.tokens)
        layers = (*first["layers"], *cache["layers"][self.layers :])
        return state._replace(cache={**cache, "layers": layers}), own, proposals

    def settle(self, own, passed: Passed):
        return own


@dataclasses.dataclass(frozen=True)
class DraftModel:
    """A smaller model with the same vocabulary (Leviathan et al. 2023). It reads the last token that it proposes too,
    so that its cache has all that the model may take.

    Attributes:
      module: in the form to decode with.
    """

    module: nn.Module
    tokens: int = 3

    def start(self, batch_size: int, max_length: int):
        """Its cache."""
        return decoding.init_cache(self.module, batch_size, max_length, spare=self.tokens)

    def read(self, weights: decoding.Weights, own, packed):
        return decoding.prefill(self.module, weights, own, packed)[1]

    def propose(self, form: Form, weights: decoding.Weights, model, state: State, own, limit):
        def step(cache, token, active):
            logits, cache = decoding.step(self.module, weights, cache, token, active)
            return _fitted(logits, form.module.vocab_size), cache

        own, proposals = _drawn(form, step, own, state, limit, self.tokens, self.tokens + 1)
        return state, own, proposals

    def settle(self, own, passed: Passed):
        return self.module.rewound(own, passed.before + passed.count)


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads on the model's last layer (Medusa, Cai et al. 2024, https://arxiv.org/abs/2401.10774), each of which drafts
    one token further: the likeliest of each, in a chain. After a prompt they have nothing yet: its first pass is plain.

    Attributes:
      module: with `drafted` (`fmjax.models.draft_heads.DraftHeads`).
    """

    module: nn.Module
    tokens: int

    def start(self, batch_size: int, max_length: int):
        """What the last layer gave where the newest token was drawn, and whether there is such."""
        hidden = jnp.zeros((batch_size, self.module.hidden_size), self.module.dtype)
        return {"hidden": hidden, "known": jnp.zeros(batch_size, bool)}

    def read(self, weights, own, packed):
        return own | {"known": own["known"].at[packed.rows].set(False, mode="drop")}

    def propose(self, form: Form, weights, model: decoding.Weights, state: State, own, limit):
        hidden = self.module.apply({"params": weights}, own["hidden"], method="drafted")[:, : self.tokens]
        logits = decoding.logits_of(form.module, model, hidden)
        chosen = [_law(form, logits[:, place], state, state.seen) for place in range(self.tokens)]
        tokens = jnp.stack([found.likeliest for found in chosen], axis=1)
        finite = jnp.all(jnp.isfinite(jnp.concatenate([found.total for found in chosen], axis=1)), axis=1)
        known = own["known"]
        return state, own, Proposals(tokens, jnp.where(known, limit, 0), None, finite | ~known)

    def settle(self, own, passed: Passed):
        place = jnp.maximum(passed.count - 1, 0)
        new = jnp.take_along_axis(passed.hidden, place[:, None, None], axis=1)[:, 0]
        drew = passed.count > 0
        hidden = jnp.where(drew[:, None], new.astype(own["hidden"].dtype), own["hidden"])
        return {"hidden": hidden, "known": own["known"] | drew}


class Drafted(NamedTuple):
    """A draft and its weights."""

    draft: Any
    weights: Any = None


def _fitted(logits: jax.Array, size: int) -> jax.Array:
    """Logits [B, size] of a vocabulary whose tokens are the same but that is padded otherwise."""
    logits = logits[:, :size].astype(jnp.float32)
    return jnp.pad(logits, ((0, 0), (0, size - logits.shape[1])), constant_values=-jnp.inf)


def _law(form: Form, logits, state: State, seen):
    """The law of a draft's token, processed as the model's; what a language allows is known of one token alone, and the
    model's law has it."""
    uses = form.uses._replace(allowed=False)
    return law(logits, state.settings, uses, form.num_tokens, seen, form.banned_ids)


def _drawn(form: Form, step, cache, state: State, limit, number: int, steps: int):
    """(cache, Proposals) of a draft that decodes: `step(cache, token [B], active [B]) -> (logits [B, V], cache)`.

    It takes so many `steps`; of the last one beyond `number` nothing but the cache counts.
    """
    rows, temperature = jnp.arange(len(state.token)), state.settings.temperature

    def one(carry, place):
        cache, token, seen = carry
        logits, cache = step(cache, token, (limit > 0) & (place <= limit))
        found = _law(form, logits, state, seen)
        token, probabilities = found.likeliest, None
        if form.uses.draw:
            probabilities = found.probabilities(temperature)
            keys = jax.vmap(jax.random.fold_in)(state.keys, state.drawn + place)
            token = jnp.where(temperature > 0, pick(found.weights, uniform(folded(keys, DRAFT))), token)
        seen = None if seen is None else seen.at[rows, token].set(True)
        return (cache, token, seen), (token, probabilities, jnp.isfinite(found.total[:, 0]))

    (cache, _, _), found = jax.lax.scan(one, (cache, state.token, state.seen), jnp.arange(steps))
    tokens, laws, finite = jax.tree.map(lambda x: jnp.moveaxis(x[:number], 0, 1), found)
    # What was not proposed need not be finite: its input had no place.
    finite = jnp.all(finite | (jnp.arange(number)[None] >= limit[:, None]), axis=1)
    return cache, Proposals(tokens, limit, laws, finite)
