"""Models of two layers over bytes, with what chats need."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.load import Model
from fmjax.models.gpt import GPT

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


class ChatBytes(ByteTokenizer):
    """Bytes with a chat template: "u:Hello", a line a message."""

    chat_templates = {"default": TEMPLATE}


def byte_model(tokenizer=None, max_length: int = 64, **config) -> Model:
    tokenizer = tokenizer or ChatBytes()
    sizes = dict(num_layers=2, hidden_size=16, num_heads=4, max_length=max_length, init_std=0.3)
    module = GPT(**sizes, vocab_size=tokenizer.vocab_size)
    params = nn.unbox(module.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    return Model(module, params, {"model": {"name": "gpt", **sizes}, **config}, tokenizer)
