"""Generation with a cache against the full forward pass, one token at a time."""

import collections
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoder import TinyDecoder, full_logits

from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError, RunError
from fmjax.inference import decoding, engine_programs
from fmjax.inference.engine import Engine, generate
from fmjax.inference.engine_requests import PromptRequest, number_copies
from fmjax.inference.sampler import Sampling
from fmjax.load import Model
from fmjax.models.gemma import Gemma3
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from fmjax.models.magneto import Magneto
from fmjax.models.qwen import Qwen3
from fmjax.models.transformer import EncoderDecoder
from fmjax.parallel.placement import Placement
from tests.quick_keys import quick_key

SIZES = dict(num_layers=2, hidden_size=32, intermediate_size=48, num_heads=4, vocab_size=40, max_length=64)
MODELS = {
    "tiny": TinyDecoder(),
    "gpt": GPT(**SIZES),
    "gpt1": GPT(**SIZES, placement="post"),
    "gpt3": GPT(**SIZES, window=5, layer_pattern=("global", "local")),
    "llama": Llama(**SIZES, num_kv_heads=2),
    "mistral": Llama(**SIZES, num_kv_heads=1, window=5, tie_embeddings=True),
    "qwen3": Qwen3(**SIZES, num_kv_heads=2, head_dim=10),
    "gemma3": Gemma3(**SIZES, num_kv_heads=2, head_dim=6, window=5, layer_pattern=("local", "global")),
    "magneto": Magneto(**SIZES),
}
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [5], [9, 8], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [7, 7, 7]]
SAMPLED = Sampling(1.0, top_p=0.95)


@functools.cache
def made(name, batch_size=4):
    """The engine of a model whose weights are large enough that its choices are not close."""
    module = MODELS[name]
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    if name != "tiny":
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(7), len(leaves))
        params = tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])
    return Engine(module, params, batch_size=batch_size, max_length=48), module, params


def requests(prompts, max_new_tokens=12, sampling=Sampling(0.0), seed=0):
    copies = number_copies(prompts)
    return [PromptRequest(prompt, max_new_tokens, sampling, seed, copy) for prompt, copy in zip(prompts, copies)]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def tokens_of(completions):
    return [completion.tokens for completion in completions]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_the_argmax_of_the_full_forward(name):
    """Nine prompts of mixed lengths, which end at different times, through four rows."""
    made_engine, module, params = made(name)
    prompts = [*PROMPTS, *([n, 2 * n, n] for n in range(2, 6))]
    wanted = [dataclasses.replace(r, max_new_tokens=3 + 3 * (i % 4)) for i, r in enumerate(requests(prompts))]
    for request, completion in zip(wanted, made_engine.generate(wanted)):
        count = request.max_new_tokens
        logits = full_logits(module, params, request.tokens + completion.tokens)[len(request.tokens) - 1 : -1]
        assert completion.tokens == logits.argmax(-1).tolist()
        assert len(completion.tokens) == count and completion.finish == "length"
        expected = log_softmax(logits)[np.arange(count), completion.tokens]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "gemma3"])
def test_sampled_logprobs_are_those_of_the_full_forward_at_the_temperature(name):
    made_engine, module, params = made(name)
    for prompt, completion in zip(PROMPTS, made_engine.generate(requests(PROMPTS, 9, Sampling(0.6, top_p=0.95)))):
        logits = full_logits(module, params, prompt + completion.tokens)[len(prompt) - 1 : -1]
        expected = log_softmax(logits / 0.6)[np.arange(9), completion.tokens]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


def test_the_seed_fixes_the_text_whatever_the_batch_around_it():
    made_engine, module, params = made("tiny")
    together = made_engine.generate(requests(PROMPTS, 10, SAMPLED, 5))
    for index in (0, 3):
        alone = made_engine.generate([dataclasses.replace(requests(PROMPTS, 10, SAMPLED, 5)[index])])
        assert alone[0].tokens == together[index].tokens
    # Fewer rows, another order, neighbours with other settings: other slots are refilled at other times.
    mixed = requests(PROMPTS[::-1], 10, SAMPLED, 5)
    others = requests([[4, n] for n in range(5)], 7, Sampling(0.7, 3, repetition_penalty=1.3))
    narrow = made_engine.generate([r for pair in zip(others, mixed) for r in pair], batch_size=2)
    assert tokens_of(narrow[1::2][::-1]) == tokens_of(together)
    assert tokens_of(made_engine.generate(requests(PROMPTS, 10, SAMPLED, 6))) != tokens_of(together)
    copies = made_engine.generate(requests([PROMPTS[0]] * 4, 10, SAMPLED, 5))
    assert len({tuple(c.tokens) for c in copies}) == 4 and copies[0].tokens == together[0].tokens


def test_each_request_has_its_own_settings():
    made_engine, module, params = made("tiny")
    settings = [Sampling(0.0), Sampling(1.0), Sampling(0.5, 4), Sampling(0.0, repetition_penalty=3.0)]
    wanted = [PromptRequest([2, 3], 8, sampling, seed=3) for sampling in settings]
    together = made_engine.generate(wanted)
    assert tokens_of(together) == tokens_of([made_engine.generate([one])[0] for one in wanted])
    assert len({tuple(c.tokens) for c in together}) > 2


def test_a_repetition_penalty_counts_the_prompt_and_what_was_drawn():
    """Against the penalty applied by hand to the logits of the full forward pass."""
    made_engine, module, params = made("tiny")
    wanted = requests(PROMPTS, 10, Sampling(0.0, repetition_penalty=2.5))
    plain = made_engine.generate(requests(PROMPTS, 10))
    completions = made_engine.generate(wanted)
    assert tokens_of(plain) != tokens_of(completions)
    for prompt, completion in zip(PROMPTS, completions):
        logits = full_logits(module, params, prompt + completion.tokens)
        for n, token in enumerate(completion.tokens):
            scores = logits[len(prompt) - 1 + n].copy()
            seen = sorted({*prompt, *completion.tokens[:n]})
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * 2.5, scores[seen] / 2.5)
            assert token == scores.argmax()


def test_stop_tokens_end_a_row_and_only_that_row():
    made_engine, _, _ = made("tiny")
    free = made_engine.generate(requests(PROMPTS))
    stops = [free[0].tokens[3], free[2].tokens[0]]  # of which one ends a prompt with its first token
    stopped = made_engine.generate(requests(PROMPTS), stop_ids=stops)
    assert len(stopped[2].tokens) == 1
    for before, after in zip(free, stopped):
        ends = [n for n, token in enumerate(before.tokens) if token in stops]
        assert after.tokens == (before.tokens[: ends[0] + 1] if ends else before.tokens)
        assert after.finish == ("stop" if ends else "length")


def test_a_full_context_ends_a_row():
    made_engine, module, params = made("tiny")
    prompt = [1, 2] * 23  # 46 of 48 places
    completion = made_engine.generate(requests([prompt, [4]], 20))[0]
    # Inputs 0..47 exist; the token drawn after the last input is the third.
    assert len(completion.tokens) == 3 and completion.finish == "context"
    assert completion.tokens[-1] == full_logits(module, params, prompt + completion.tokens[:2])[-1].argmax()
    small = Engine(module, params, max_length=10)
    assert [len(c.tokens) for c in small.generate(requests([[1, 2, 3], [5] * 10], 20))] == [8, 1]


def test_chunks_join_to_the_whole_and_come_as_they_are_drawn():
    made_engine, _, _ = made("tiny")
    whole = made_engine.generate(requests(PROMPTS[:2], 11))
    chunks = list(made_engine.run(requests(PROMPTS[:2], 11), steps=4))
    for index in range(2):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert [len(chunk.tokens) for chunk in mine] == [1, 4, 4, 2]
        assert sum((chunk.tokens for chunk in mine), []) == whole[index].tokens
        assert [chunk.finish for chunk in mine] == [None, None, None, "length"]


def test_a_request_can_be_ended_from_outside():
    made_engine, _, _ = made("tiny")
    wanted = requests([[n] for n in range(1, 13)], 20)
    expected = made_engine.generate(wanted)
    run, found = made_engine.run(wanted, steps=2), {}
    for chunk in run:
        found.setdefault(chunk.index, []).extend(chunk.tokens)
        if chunk.index % 3 == 0 and len(found[chunk.index]) >= 5:
            run.stop(chunk.index)
    for index, completion in enumerate(expected):
        assert found[index] == completion.tokens[: len(found[index])]
        assert len(found[index]) in ((5, 6) if index % 3 == 0 else (20,))


def test_a_thousand_prompts_stream_through_four_rows_of_one_program(monkeypatch):
    made_engine, module, params = made("tiny")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 13, rng.integers(1, 15)).tolist() for _ in range(1000)]
    monkeypatch.setattr(engine_programs, "TRACES", collections.defaultdict(int))
    engine_programs.programs.cache_clear()
    cached_entries, taken = {}, 0

    def source():
        nonlocal taken
        for request in requests(prompts, 6, Sampling(0.9), 1):
            taken += 1
            yield dataclasses.replace(request, max_new_tokens=1 + taken % 6)

    for chunk in made_engine.run(source()):
        cached_entries.setdefault(chunk.index, []).extend(chunk.tokens)
        assert taken - len(cached_entries) < 40  # the source is read as rows become free
    assert [len(cached_entries[i]) for i in range(1000)] == [1 + (i + 1) % 6 for i in range(1000)]
    # Packed prompts are at most 8 * 14 tokens: rows of 32, 64 and 128.
    traces = engine_programs.TRACES
    assert traces["decode"] == traces["start"] == 1 and traces["prefill"] <= 3
    few = made_engine.generate(requests(prompts[:20], 6, Sampling(0.9), 1), batch_size=4)
    assert [c.tokens[: 1 + (i + 1) % 6] for i, c in enumerate(few)] == [cached_entries[i] for i in range(20)]


def test_nothing_recompiles_as_prompts_lengths_and_numbers_change():
    made_engine, _, _ = made("tiny")
    made_engine.generate(requests(PROMPTS, 10, Sampling(0.5, top_p=0.9)), stop_ids=[3])
    before = dict(engine_programs.TRACES)
    others = [[n, *prompt[1:]] for n, prompt in enumerate(PROMPTS)]
    made_engine.generate(requests(others, 25, Sampling(0.9, 3, min_p=0.1), 4), stop_ids=[5], steps=3)
    assert engine_programs.TRACES == before


def test_windows_keep_no_more_than_the_window_and_long_caches_are_read_in_blocks():
    """A cache of 470 places, read in blocks of which the last overlaps, against the full forward pass of 460 tokens."""
    module = Llama(
        **SIZES | dict(max_length=470), num_kv_heads=2, head_dim=64, window=40, layer_pattern=("global", "local")
    )
    params = nn.unbox(jax.jit(module.init)(quick_key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    params = jax.tree.map(lambda x: x * 6, params)
    made_engine = Engine(module, params, batch_size=2, max_length=470)
    slots = [entry["value"].shape[2] for entry in made_engine.module.init_cache(2, 470)["layers"]]
    assert slots == [470, 40]
    prompts = [np.random.default_rng(n).integers(0, 40, n).tolist() for n in (440, 70)]
    for prompt, completion in zip(prompts, made_engine.generate(requests(prompts, 20))):
        logits = full_logits(module, params, prompt + completion.tokens)[len(prompt) - 1 : -1]
        assert completion.tokens == logits.argmax(-1).tolist()


SEQ2SEQ = EncoderDecoder(**SIZES, start_id=1)


@functools.cache
def seq2seq():
    params = nn.unbox(jax.jit(SEQ2SEQ.init)(quick_key(0), *[jnp.zeros((1, 4), jnp.int32)] * 2)["params"])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


def test_targets_of_an_encoder_decoder_are_the_argmax_of_the_full_forward():
    params = seq2seq()
    made_engine = Engine(SEQ2SEQ, params, batch_size=2)
    wanted = [dataclasses.replace(r, max_new_tokens=4 + 3 * (i % 3)) for i, r in enumerate(requests(PROMPTS))]
    apply = jax.jit(lambda *inputs: SEQ2SEQ.apply({"params": params}, *inputs))
    for request, completion in zip(wanted, made_engine.generate(wanted)):
        count = request.max_new_tokens
        source, target = np.zeros((2, 1, 24), np.int32)
        source[0, : len(request.tokens)] = request.tokens
        target[0, : count + 1] = [1, *completion.tokens]
        real = (np.arange(24) < len(request.tokens)).astype(np.int32)[None]
        logits = np.asarray(apply(target, source, np.ones_like(target), real), np.float64)[0, :count]
        assert completion.tokens == logits.argmax(-1).tolist()
        expected = log_softmax(logits)[np.arange(count), completion.tokens]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


def test_the_texts_of_an_encoder_decoder_start_from_bos():
    module = SEQ2SEQ.clone(vocab_size=258, start_id=None)
    params = nn.unbox(jax.jit(module.init)(quick_key(0), *[jnp.zeros((1, 4), jnp.int32)] * 2)["params"])
    model = Model(module, params, {}, ByteTokenizer())
    sources = ["a house", "b"]
    completions = model.complete(sources, max_new_tokens=6, temperature=0)
    direct = Engine(module, params, start_id=256).generate(
        requests([[*source.encode(), 257] for source in sources], 6), stop_ids=[257]
    )
    assert tokens_of(completions) == tokens_of(direct)
    with pytest.raises(InputError, match="start_id"):
        Engine(module, params)


@pytest.mark.parametrize("mesh", [dict(data=2, fsdp=2, tensor=2), dict(data=8)], ids=["split", "data"])
def test_eight_devices_draw_the_tokens_of_one(mesh):
    one, module, params = made("llama")
    placement = Placement.make(mesh)
    boxed = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    axes = jax.tree.map(lambda x: tuple(x.names), boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    spread = jax.device_put(params, placement.shardings(params, axes))
    wanted = requests([*PROMPTS, *([n, 3] for n in range(6))], 8) + requests(PROMPTS, 8, SAMPLED)
    with placement.inference():
        many = Engine(module, spread, batch_size=8)
        found = many.generate(wanted)
        state = engine_programs.programs()[0](many.form(SAMPLED.uses, 8), 8, 64, None, 40)
    assert tokens_of(found) == tokens_of(one.generate(wanted))
    rows = 8 // mesh.get("data", 1) // mesh.get("fsdp", 1)
    heads = 2 // mesh.get("tensor", 1)
    for name, shape in (("key", (8, 64)), ("value", (64, 8))):
        (shard, *_) = state.cache["layers"][0][name].addressable_shards
        assert shard.data.shape == (rows, heads, *shape)


def test_the_stacked_parameters_can_be_given_away():
    _, module, params = made("gpt")
    mine = jax.tree.map(jnp.copy, params)
    given = Engine(module, mine, batch_size=4, max_length=48, donate=True)
    blocks, shared = mine["stack"]["blocks"], mine["token_embedding"]
    assert all(x.is_deleted() for x in jax.tree.leaves(blocks))
    assert not any(x.is_deleted() for x in jax.tree.leaves(shared))
    assert tokens_of(given.generate(requests(PROMPTS))) == tokens_of(made("gpt")[0].generate(requests(PROMPTS)))


@pytest.mark.parametrize(
    "prompts, message", [([[1], []], "prompt 1 is empty"), ([[1] * 49], "49 tokens.*48"), ([[13]], "token 13.*0..12")]
)
def test_prompts_that_cannot_be_continued_are_refused(prompts, message):
    made_engine, module, params = made("tiny")
    with pytest.raises(InputError, match=message):
        made_engine.run(requests(prompts))
    with pytest.raises(InputError, match=message):  # an iterator's when it is their turn
        list(made_engine.run(iter(requests(prompts))))


def test_bad_use_is_refused():
    made_engine, module, params = made("tiny")
    with pytest.raises(InputError, match="max_new_tokens.*0"):
        made_engine.run(requests([[1]], 0))
    with pytest.raises(InputError, match="iterator need.*max_length"):
        Engine(module, params).run(iter(requests(PROMPTS)))
    with pytest.raises(InputError, match="batch_size.*0"):
        Engine(module, params, batch_size=0)
    with pytest.raises(InputError, match="max_length.*48, got 49"):
        Engine(module, params, max_length=49)
    with pytest.raises(InputError, match="Dense cannot generate"):
        Engine(nn.Dense(3), {})
    assert made_engine.generate([]) == [] and decoding.bucket(33) == 64
    assert [decoding.places(n) for n in (1, 64, 65, 97, 129, 200)] == [64, 64, 96, 128, 192, 256]
    assert decoding.places(65, high=70) == 70


def test_one_call_makes_its_own_engine():
    made_engine, module, params = made("tiny")
    found = generate(module, params, PROMPTS, max_new_tokens=5, temperature=0, batch_size=4)
    assert tokens_of(found) == tokens_of(made_engine.generate(requests(PROMPTS, 5)))
    assert generate(module, params, []) == []


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0)])
def test_logits_that_are_not_finite_are_an_error_that_names_prompt_and_step(sampling):
    """NaN at the positions from 4 on: a prompt of one token gets four, the next logits are NaN."""
    _, module, params = made("tiny")
    places = params["positions"]["embedding"].at[4:].set(jnp.nan)
    engine = Engine(module, params | {"positions": {"embedding": places}}, batch_size=4, max_length=48)
    whole = engine.generate(requests([[1, 2], [5]], 3, sampling))
    assert [len(one.tokens) for one in whole] == [3, 3]
    with pytest.raises(RunError, match="prompt 1: after 4 new tokens the model's logits are not finite"):
        engine.generate([*requests([[1, 2]], 3, sampling), *requests([[5]], 8, sampling)])
    with pytest.raises(RunError, match="prompt 0: after 0 new tokens"):
        engine.generate(requests([[1, 2, 3, 4, 5]], 3, sampling))
