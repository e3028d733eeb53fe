"""A deep stack that is run in parts: the same continuations, and programs that do not grow with it."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
from tiny_decoder import full_logits

from fmjax.inference import engine_parts, engine_programs
from fmjax.inference.engine import Engine
from fmjax.inference.engine_requests import PromptRequest
from fmjax.inference.sampler import Sampling
from fmjax.layers import transformer
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from tests.quick_keys import quick_key

SIZES = dict(hidden_size=32, intermediate_size=48, num_heads=4, vocab_size=40, max_length=64)
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [5], [9, 8], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [7, 7, 7]]


def made(monkeypatch, module):
    """(engine in parts of two layers, engine of one program, weights large enough that choices are not close)."""
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    params = jax.tree.map(lambda x: x * 6, params)
    with monkeypatch.context() as patch:
        whole = Engine(module, params, batch_size=4, max_length=48)
        patch.setattr(engine_parts, "PART_BYTES", 0)
        patch.setattr(engine_parts, "PART_LAYERS", (2,))
        parts = Engine(module, params, batch_size=4, max_length=48)
    assert (parts.part, whole.part) == (2, None)
    return parts, whole, params


def test_parts_continue_as_the_whole_does(monkeypatch):
    """Also where prompts go through the MLP a few tokens at a time."""
    monkeypatch.setattr(transformer, "MLP_TOKENS", {"cpu": 8})
    in_turns, seen = transformer.Block._mlp_in_turns, []
    monkeypatch.setattr(transformer.Block, "_mlp_in_turns", lambda self, x: seen.append(x.shape) or in_turns(self, x))
    # The last part is of one layer.
    module = GPT(num_layers=5, **SIZES, window=5, layer_pattern=("global", "local"), placement="post")
    parts, whole, params = made(monkeypatch, module)
    greedy = [PromptRequest(prompt, 5 + 4 * i) for i, prompt in enumerate(PROMPTS)]
    found = parts.generate(greedy)
    assert seen
    for prompt, completion in zip(PROMPTS, found):
        logits = full_logits(module, params, prompt + completion.tokens)[len(prompt) - 1 : -1]
        assert completion.tokens == logits.argmax(-1).tolist()
    stop = found[4].tokens[3]
    sampling = Sampling(0.8, top_k=7, repetition_penalty=1.2)
    drawn = [PromptRequest(prompt, 20, sampling, seed=3) for prompt in PROMPTS]
    one, other = (engine.generate(drawn, stop_ids=[stop], steps=6) for engine in (parts, whole))
    assert [(c.tokens, c.finish) for c in one] == [(c.tokens, c.finish) for c in other]


def test_programs_are_as_many_whatever_the_depth(monkeypatch):
    counts = []
    for depth in (4, 8):
        parts, _, _ = made(monkeypatch, Llama(num_layers=depth, **SIZES))
        monkeypatch.setattr(engine_parts, "TRACES", collections.defaultdict(int))
        parts.generate([PromptRequest(PROMPTS[0], 40)])
        counts.append(dict(engine_parts.TRACES))
    assert counts[0] == counts[1] == {"part": 2, "prefill": 1, "decode": 1}


def test_long_runs_decode_by_one_program(monkeypatch):
    parts, _, _ = made(monkeypatch, Llama(num_layers=4, **SIZES))
    assert parts.run([PromptRequest([1], 30)] * 2)._in_parts
    assert not parts.run([PromptRequest([1], 30)] * 20)._in_parts
    run = parts.run([PromptRequest(PROMPTS[0], 10)])
    expected = [token for chunk in run for token in chunk.tokens]
    run = parts.run([PromptRequest(PROMPTS[0], 10)])
    run._in_parts = False
    assert [token for chunk in run for token in chunk.tokens] == expected


def test_small_stacks_are_one_program():
    module = Llama(num_layers=12, **SIZES)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    assert engine_parts.part_size(*_unrolled(module, params)) is None
    large = Llama(num_layers=12, **SIZES | dict(hidden_size=768, intermediate_size=2048))
    params = jax.eval_shape(large.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    assert engine_parts.part_size(*_unrolled(large, params)) == 3


def _unrolled(module, params):
    """Shapes alone of the weights to decode with."""
    blocks = nn.unbox(params)["stack"]["blocks"]
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), blocks)
    return module, engine_programs.Weights({"stack": {"blocks_0": one}})
