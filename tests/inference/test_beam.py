"""Beam search against transformers and against trying everything."""

import ast
import itertools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import fmjax
from fmjax.errors import ConfigError, InputError, RunError
from fmjax.inference import engine_programs
from fmjax.inference.beam import beam_search
from fmjax.inference.engine import Engine
from fmjax.inference.engine_requests import PromptRequest
from fmjax.models.gpt import GPT
from fmjax.models.transformer import EncoderDecoder
from tests.quick_keys import quick_key

ORACLES = pathlib.Path(__file__).parent.parent / "oracles"
EOS = 2


@pytest.fixture(scope="module", params=["beam_llama", "beam_marian"])
def published(request, tmp_path_factory):
    """(engine, fixture) of the published class's weights."""
    with np.load(ORACLES / f"{request.param}.npz") as file:
        fixture = dict(file)
    folder = tmp_path_factory.mktemp(request.param)
    config = json.loads(str(fixture["config"]))
    (folder / "config.json").write_text(json.dumps(config))
    weights = {k.removeprefix("weight/"): v for k, v in fixture.items() if k.startswith("weight/")}
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    model = fmjax.load(folder)
    return Engine(model.module, model.params), fixture


def test_beams_and_scores_are_those_of_transformers(published):
    engine, fixture = published
    numbers = [k.split("/")[1] for k in fixture if k.startswith("settings/")]
    assert len(numbers) == 4
    ends = set()
    for number in numbers:
        settings = ast.literal_eval(str(fixture[f"settings/{number}"]))
        beams = settings["num_beams"]
        found = beam_search(
            engine, fixture["inputs"].tolist(), max_new_tokens=8, normalization="power", stop_ids=[EOS],
            num_results=beams, batch_size=2 * beams, **settings,
        )  # fmt: skip
        start = 1 if engine.start_id is not None else fixture["inputs"].shape[1]
        expected = fixture[f"sequences/{number}"].reshape(len(found), beams, -1)[:, :, start:]
        scores = fixture[f"scores/{number}"].reshape(len(found), beams)
        for group, group_tokens, group_scores in zip(found, expected, scores):
            assert len(group) == beams
            for beam, tokens, score in zip(group, group_tokens, group_scores):
                tokens = tokens.tolist()
                tokens = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
                assert beam.tokens == tokens and beam.score == pytest.approx(float(score), abs=2e-5)
                ends.add(beam.finish)
    assert ends == {"stop", "length"}


def spread(module, *inputs):
    params = nn.unbox(jax.jit(module.init)(quick_key(3), *inputs))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


SIZES = dict(num_layers=1, hidden_size=8, num_heads=2, vocab_size=4, max_length=12)
ZEROS = jnp.zeros((1, 3), jnp.int32)


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_wide_enough_it_finds_the_best_of_all_sequences(kind, alpha):
    """4 tokens, 3 steps: with 64 beams nothing is ever cut. The penalty is the paper's ((5 + |Y|) / 6)^alpha."""
    if kind == "decoder":
        module = GPT(**SIZES)
        params, start = spread(module, ZEROS), None
    else:
        module = EncoderDecoder(**SIZES, start_id=1, intermediate_size=8)
        params, start = spread(module, ZEROS, ZEROS), 1
    prompts = [[3, 0, 1], [1, 3]]
    engine = Engine(module, params)
    found = beam_search(
        engine, prompts, num_beams=64, max_new_tokens=3, length_penalty=alpha, stop_ids=[EOS], num_results=5
    )
    every = [tokens for n in (1, 2, 3) for tokens in itertools.product(range(4), repeat=n)]
    every = [t for t in every if EOS not in t[:-1] and (t[-1] == EOS or len(t) == 3)]
    for prompt, beams in zip(prompts, found):
        scored = []
        whole = np.zeros((len(every), 8), np.int32)
        before = [start] if start is not None else prompt
        for row, tokens in zip(whole, every):
            row[: len(before) + len(tokens)] = [*before, *tokens]
        inputs = (whole,) if start is None else (whole, np.tile(np.asarray(prompt, np.int32), (len(every), 1)))
        logprobs = np.asarray(jax.nn.log_softmax(jax.jit(module.apply)({"params": params}, *inputs)))
        for row, tokens in zip(logprobs, every):
            total = sum(row[len(before) - 1 + i, token] for i, token in enumerate(tokens))
            scored.append((total / ((5 + len(tokens)) / 6) ** alpha, tokens))
        scored.sort(reverse=True)
        assert [tuple(beam.tokens) for beam in beams] == [tokens for _, tokens in scored[:5]]
        np.testing.assert_allclose([beam.score for beam in beams], [score for score, _ in scored[:5]], atol=1e-5)


def test_one_beam_is_greedy_search_and_any_number_of_prompts_passes_through():
    module = GPT(**SIZES | dict(vocab_size=11))
    params = spread(module, ZEROS)
    engine = Engine(module, params)
    prompts = [[i, (3 * i) % 11, 5][: 1 + i % 3] for i in range(7)]
    found = beam_search(engine, prompts, num_beams=1, max_new_tokens=6, length_penalty=0, stop_ids=[EOS], batch_size=2)
    greedy = engine.generate([PromptRequest(prompt, 6) for prompt in prompts], stop_ids=[EOS])
    for (beam,), completion in zip(found, greedy):
        assert beam.tokens == completion.tokens and beam.finish == completion.finish
        assert beam.score == pytest.approx(sum(completion.logprobs), abs=1e-4)
    kept = beam_search(
        engine, prompts, num_beams=1, max_new_tokens=6, length_penalty=0, stop_ids=[EOS], batch_size=2, cache="int4"
    )
    assert [one.score for (one,) in kept] != [one.score for (one,) in found]
    before = dict(engine_programs.TRACES)
    beam_search(engine, prompts[::-1], num_beams=1, max_new_tokens=5, length_penalty=1, stop_ids=[4], batch_size=2)
    assert engine_programs.TRACES == before
    long = beam_search(engine, [[1] * 10], num_beams=2, max_new_tokens=6)[0][0]
    assert len(long.tokens) == 3 and long.finish == "context"
    assert beam_search(engine, []) == []


def test_logits_that_are_not_finite_are_an_error_that_names_prompt_and_step():
    module = GPT(**SIZES)
    params = spread(module, ZEROS)
    places = params["position_embedding"]["embedding"].at[5:].set(jnp.nan)
    engine = Engine(module, params | {"position_embedding": {"embedding": places}})
    assert len(beam_search(engine, [[1, 3]], num_beams=2, max_new_tokens=4)[0][0].tokens) == 4
    with pytest.raises(RunError, match="prompt 1: after 2 new tokens the model's logits are not finite"):
        beam_search(engine, [[1], [1, 3, 0, 1]], num_beams=2, max_new_tokens=4, batch_size=2)


def test_bad_values_are_refused():
    engine = Engine(GPT(**SIZES), spread(GPT(**SIZES), ZEROS))
    for options, message in [
        (dict(num_results=5), "num_results.*num_beams = 4, got 5"),
        (dict(length_penalty=-1.0), "length_penalty.*-1.0"),
        (dict(max_new_tokens=0), "max_new_tokens"),
    ]:
        with pytest.raises(InputError, match=message):
            beam_search(engine, [[1]], **options)
    with pytest.raises(ConfigError, match="did you mean 'gnmt'"):
        beam_search(engine, [[1]], normalization="gnm")
    with pytest.raises(ConfigError, match="cache='int7' is not known"):
        beam_search(engine, [[1]], cache="int7")
    with pytest.raises(InputError, match="prompt 1 is empty"):
        beam_search(engine, [[1], []])
