"""Short texts of two classes, and a model that reads them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.load import Model
from fmjax.models.gpt import GPT
from tests.quick_keys import quick_key

MODULE = GPT(num_layers=1, hidden_size=16, num_heads=2, max_length=32, vocab_size=258, init_std=0.3)
PARAMS = nn.unbox(jax.jit(MODULE.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
MODEL = Model(MODULE, PARAMS, {}, ByteTokenizer())
_RNG = np.random.default_rng(0)
TEXTS = ["".join(_RNG.choice(list("abcdef "), _RNG.integers(3, 12))) + "xy"[i % 2] for i in range(40)]
LABELS = [i % 2 for i in range(40)]
