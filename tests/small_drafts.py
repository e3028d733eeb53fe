"""Small models and drafts of random weights, which are wrong mostly, and what is asked of them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.inference.drafts import Drafted, DraftModel, EarlyExit, Heads, Lookup
from fmjax.inference.engine import Engine
from fmjax.inference.engine_requests import PromptRequest, number_copies
from fmjax.inference.sampler import Sampling
from fmjax.load import Model
from fmjax.models.draft_heads import DraftHeads
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from tests.quick_keys import quick_key

SIZES = dict(num_layers=2, hidden_size=32, intermediate_size=48, num_heads=4, vocab_size=40, max_length=64)
MODULES = {
    "llama": Llama(**SIZES, num_kv_heads=2),
    "windows": GPT(**SIZES, window=5, layer_pattern=("global", "local")),
    "other": Llama(**SIZES | dict(num_layers=1, hidden_size=16), num_kv_heads=1, window=6),
    "tiny": Llama(**SIZES | dict(vocab_size=4)),
    "tiny other": Llama(**SIZES | dict(vocab_size=4, num_layers=1, hidden_size=16)),
}
PROMPTS = [[1, 2, 3, 1, 2, 3, 1], [5], [9, 8], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [7, 7, 7]]
SAMPLED = Sampling(0.9, top_k=12, top_p=0.95, repetition_penalty=1.3)


@functools.cache
def made(name):
    module = MODULES[name]
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    params = jax.tree.map(lambda x: x * (3 if "tiny" in name else 7), params)
    return Engine(module, params, batch_size=4, max_length=48), module, params


@functools.cache
def draft(name, tokens=3):
    """Random ones, which are wrong mostly: most of what they propose is not taken."""
    if name == "lookup":
        return Drafted(Lookup(tokens))
    if name == "layers":
        return Drafted(EarlyExit(1, tokens))
    if name == "heads":
        module = DraftHeads(3, 32)
        params = module.init(quick_key(1), jnp.zeros((1, 1), jnp.int32))["params"]
        params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(quick_key(2), x.shape), nn.unbox(params))
        return Drafted(Heads(module, tokens), params)
    engine = made(name)[0]
    return Drafted(DraftModel(engine.module, tokens), engine.weights)


def requests(prompts, max_new_tokens=12, sampling=Sampling(0.0), seed=0):
    copies = number_copies(prompts)
    return [PromptRequest(prompt, max_new_tokens, sampling, seed, copy) for prompt, copy in zip(prompts, copies)]


def texts(completions):
    return [(one.tokens, one.finish) for one in completions]


def model(name, tokenizer=None):
    _, module, params = made(name)
    return Model(module, params, {}, tokenizer)
