"""Models of random weights, without a training; and parameters that are not as they were at the start."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.config import build
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.load import Model
from fmjax.models import MODELS
from fmjax.models.gpt import GPT
from tests.quick_keys import quick_key

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


class ChatBytes(ByteTokenizer):
    """Bytes with a chat template: "u:Hello", a line a message."""

    chat_templates = {"default": TEMPLATE}


def stirred(params, seed: int = 7, by: float = 0.2):
    """Normal numbers times `by` on top of float32 parameters: scales and biases away from ones and zeros.

    In numpy, since JAX would compile a program for each shape.
    """
    drawn = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x) + by * drawn.normal(size=x.shape), x.dtype), params)


def byte_model(tokenizer=None, max_length: int = 64, **config) -> Model:
    tokenizer = tokenizer or ChatBytes()
    sizes = dict(num_layers=2, hidden_size=16, num_heads=4, max_length=max_length, init_std=0.3)
    module = GPT(**sizes, vocab_size=tokenizer.vocab_size)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    return Model(module, params, {"model": {"name": "gpt", **sizes}, **config}, tokenizer)


def random_model(section: dict, tokenizer=None, image=None, seed: int = 5, carry=None, **config) -> Model:
    """What a run of a module would leave, `section` being its complete `config.model`.

    Args:
      image: codec of images.
      carry: what the run's objective would carry.
      config: further sections of the run's config.
    """
    module = build(section, MODELS)
    inputs = {name: jnp.zeros(one.shape, one.dtype) for name, one in module.example().items()}
    params = nn.unbox(jax.jit(lambda key: module.init(key, **inputs)["params"])(quick_key(seed)))
    codecs = {} if image is None else {"image": image}
    return Model(module, params, {"model": section, **config}, tokenizer, codecs=codecs, carry=carry)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "mutable", "train"))
def applied(module, variables, *inputs, **told):
    """`module.apply` as one program: without jit each operation of a module would be compiled by itself."""
    return module.apply(variables, *inputs, **told)
