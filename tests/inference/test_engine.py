"""Generation with a cache against the full forward pass, one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoder import TinyDecoder, full_logits

from fmjax.errors import InputError
from fmjax.inference import engine

MODULE = TinyDecoder()
PARAMS = MODULE.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [5], [9, 8], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [7, 7, 7]]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_greedy_equals_the_argmax_of_the_full_forward():
    completions = engine.generate(MODULE, PARAMS, PROMPTS, max_new_tokens=12, temperature=0)
    for prompt, completion in zip(PROMPTS, completions):
        assert len(completion.tokens) == 12 and completion.finish == "length"
        for n, token in enumerate(completion.tokens):
            logits = full_logits(MODULE, PARAMS, prompt + completion.tokens[:n])[-1]
            assert token == logits.argmax()
            np.testing.assert_allclose(completion.logprobs[n], log_softmax(logits)[token], atol=1e-4)


def test_sampled_logprobs_are_those_of_the_full_forward_at_the_temperature():
    for prompt, completion in zip(PROMPTS, engine.generate(MODULE, PARAMS, PROMPTS, max_new_tokens=9, temperature=0.6)):
        logits = full_logits(MODULE, PARAMS, prompt + completion.tokens)[len(prompt) - 1 : -1]
        expected = log_softmax(logits / 0.6)[np.arange(9), completion.tokens]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


def test_the_seed_fixes_the_text_whatever_the_batch_around_it():
    options = dict(max_new_tokens=10, temperature=1.0, top_p=0.95, seed=5)
    together = engine.generate(MODULE, PARAMS, PROMPTS, **options)
    for index in (0, 3):
        assert engine.generate(MODULE, PARAMS, [PROMPTS[index]], **options)[0].tokens == together[index].tokens
    narrow = engine.generate(MODULE, PARAMS, PROMPTS[::-1], batch_size=2, **options)[::-1]
    assert [c.tokens for c in narrow] == [c.tokens for c in together]
    other = engine.generate(MODULE, PARAMS, PROMPTS, **{**options, "seed": 6})
    assert [c.tokens for c in other] != [c.tokens for c in together]
    copies = engine.generate(MODULE, PARAMS, [PROMPTS[0]] * 4, **options)
    assert len({tuple(c.tokens) for c in copies}) == 4 and copies[0].tokens == together[0].tokens


def test_stop_tokens_end_a_row_and_only_that_row():
    free = engine.generate(MODULE, PARAMS, PROMPTS, max_new_tokens=12, temperature=0)
    stop = free[0].tokens[3]
    stopped = engine.generate(MODULE, PARAMS, PROMPTS, max_new_tokens=12, temperature=0, stop_ids=[stop])
    for before, after in zip(free, stopped):
        expected = before.tokens[: before.tokens.index(stop) + 1] if stop in before.tokens else before.tokens
        assert after.tokens == expected
        assert after.finish == ("stop" if stop in before.tokens else "length")


def test_a_full_context_ends_a_row():
    prompt = [1, 2] * 23  # 46 of 48 places
    completion = engine.generate(MODULE, PARAMS, [prompt, [4]], max_new_tokens=20, temperature=0)[0]
    # Inputs 0..47 exist; the token drawn after the last input is the third.
    assert len(completion.tokens) == 3 and completion.finish == "context"
    assert completion.tokens[-1] == full_logits(MODULE, PARAMS, prompt + completion.tokens[:2])[-1].argmax()


def test_chunks_join_to_the_whole_and_come_as_they_are_drawn():
    whole = engine.generate(MODULE, PARAMS, PROMPTS[:2], max_new_tokens=11, temperature=0)
    chunks = list(engine.Engine(MODULE, PARAMS).run([engine.Request(p, 11) for p in PROMPTS[:2]], steps=4))
    for index in range(2):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert [len(chunk.tokens) for chunk in mine] == [1, 4, 4, 2]
        assert sum((chunk.tokens for chunk in mine), []) == whole[index].tokens
        assert [chunk.finish for chunk in mine] == [None, None, None, "length"]


def test_nothing_recompiles_as_prompts_lengths_and_numbers_change():
    engine.generate(MODULE, PARAMS, PROMPTS, max_new_tokens=10, temperature=0.5, top_p=0.9)
    before = dict(engine.TRACES)
    others = [prompt[:-1] or [2] for prompt in PROMPTS]
    engine.generate(MODULE, PARAMS, others, max_new_tokens=13, temperature=0.9, top_k=3, seed=4)
    assert engine.TRACES == before


@pytest.mark.parametrize(
    "prompts, message", [([[1], []], "prompt 1 is empty"), ([[1] * 49], "49 tokens.*48"), ([[13]], "token 13.*0..12")]
)
def test_prompts_that_cannot_be_continued_are_refused(prompts, message):
    with pytest.raises(InputError, match=message):
        engine.generate(MODULE, PARAMS, prompts)


def test_no_prompts_no_completions():
    assert engine.generate(MODULE, PARAMS, []) == []
