"""A small task with options to choose from, and a model that answers it, on one device or on eight."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.interop.loading import placed
from fmjax.load import Model
from fmjax.models.gpt import GPT
from fmjax.parallel.placement import Placement
from fmjax.tasks.multiple_choice import Choices, MultipleChoice
from tests.quick_keys import quick_key

MODULE = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=128, vocab_size=258, init_std=0.3)
PARAMS = nn.unbox(jax.jit(MODULE.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
MODEL = Model(MODULE, PARAMS, {}, ByteTokenizer())


def questions(count=24, seed=0):
    rng = np.random.default_rng(seed)

    def word():
        return "".join(rng.choice(list("abcdefgh"), rng.integers(3, 9)))

    return [
        Choices(f"Is {word()} {word()}", tuple(word() for _ in range(3)), int(rng.integers(3)), group=f"page {i // 3}")
        for i in range(count)
    ]


class Quiz(MultipleChoice):
    name = "quiz"

    def __init__(self, documents=None, examples=None):
        self.given = questions() if documents is None else documents
        self.shown = questions() if examples is None else examples

    def documents(self, context):
        return self.given

    def examples(self, context):
        return self.shown


def on_eight_devices():
    """`MODEL` with its parameters spread and its batches split."""
    placement = Placement.make({"fsdp": 4, "tensor": 2})
    assert placement.num_row_shards == 4
    spread = jax.device_put(PARAMS, placed(MODULE, placement)[1])
    return dataclasses.replace(MODEL, params=spread, placement=placement)
