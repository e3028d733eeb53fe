"""Blanks in texts are filled by what the model says of each place; what stands around them stays."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import pytest

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference.model import Model

TOKENIZER = ByteTokenizer()
MASK = TOKENIZER.vocab_size


class Alphabet(nn.Module):
    """At place p the letter number p of the alphabet is certain; a mask would be likelier still."""

    max_length: int = 12
    certain: float = 50.0

    @nn.compact
    def __call__(self, tokens, segment_ids=None):
        first = TOKENIZER.encode("a")[0]
        letters = first + jnp.arange(tokens.shape[1])
        logits = self.certain * (jnp.arange(MASK + 1) == letters[:, None]) + 60.0 * (jnp.arange(MASK + 1) == MASK)
        return jnp.broadcast_to(logits, (len(tokens), *logits.shape))


MODEL = Model(Alphabet(), {}, {"objective": {"name": "masked_diffusion", "mask_id": MASK}}, TOKENIZER)


def test_blanks_are_filled_and_the_rest_stays():
    for order in ("random", "confidence"):
        found = MODEL.generate(["X____Y____", "____Z", "", "XY"], length=3, steps=5, order=order, batch_size=3)
        assert found == ["XbcdYfgh", "abcZ", "abc", "XYcde"]


def test_a_text_depends_on_its_prompt_copy_and_seed_alone():
    model = dataclasses.replace(MODEL, module=Alphabet(certain=0.0))
    among = model.generate(["Z____", "____________"], num_samples=2, length=4, steps=3, seed=1)
    assert among[:2] == model.generate(["Z____"], num_samples=2, length=4, steps=3, seed=1)
    assert among[0] != among[1]
    assert among[0] != model.generate(["Z____"], length=4, steps=3, seed=2)[0]


def test_what_cannot_be_filled_is_refused():
    with pytest.raises(
        InputError, match=r"is 14 tokens with its blanks, and .* reads 12; shorten it or give a smaller"
    ):
        MODEL.generate(["XY____"], length=12)
    with pytest.raises(InputError, match="is a text with blanks '____', got 3"):
        MODEL.generate([3])
    for options, message in [
        (dict(order="left"), "order = 'left'"),
        (dict(length=0), "length"),
        (dict(blank=""), "blank"),
    ]:
        with pytest.raises(InputError, match=message):
            MODEL.generate(["X"], **options)
    with pytest.raises(InputError, match="no tokenizer to write texts with"):
        dataclasses.replace(MODEL, tokenizer=None).generate(["X"])
