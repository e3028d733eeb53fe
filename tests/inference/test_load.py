"""fmjax.load: the folder in, the model out, and what its methods promise about text."""

import logging
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from tiny_decoder import full_logits

import fmjax
from fmjax.data.tokenizers.loading import ByteTokenizer, SentencePieceTokenizer
from fmjax.errors import InputError
from fmjax.inference import engine
from fmjax.inference.text_stream import TextStream
from fmjax.load import Model
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from tests.quick_keys import quick_key

SIZES = dict(num_layers=2, hidden_size=16, num_heads=4, max_length=64, init_std=0.3)


def make(module, tokenizer, seed=0, **config):
    params = nn.unbox(jax.jit(module.init)(quick_key(seed), jnp.zeros((1, 4), jnp.int32))["params"])
    return Model(module, params, config, tokenizer)


@pytest.fixture(scope="module")
def bytes_model():
    sizes = {**SIZES, "vocab_size": None}
    return make(GPT(**{**SIZES, "vocab_size": 258}), ByteTokenizer(), model={"name": "gpt", **sizes})


@pytest.fixture(scope="module")
def saved(bytes_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "saved"
    bytes_model.save(folder)
    return folder


def test_a_saved_model_loads_equal(bytes_model, saved):
    loaded = fmjax.load(saved)
    assert loaded.module == bytes_model.module  # vocab_size, None in the config, came from the tokenizer
    assert loaded.config["model"]["vocab_size"] == 258 and loaded.step == 0
    tokens = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(loaded.apply(tokens), bytes_model.apply(tokens))
    assert loaded.apply(tokens).shape == (2, 6, 258)
    again = fmjax.load(saved / "checkpoints" / "0")
    np.testing.assert_array_equal(again.apply(tokens), bytes_model.apply(tokens))
    half = fmjax.load(saved, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(half.apply(tokens), loaded.apply(tokens), atol=0.3)


def test_loading_says_nothing_that_looks_like_a_fault(saved, caplog):
    fmjax.load(saved)
    fmjax.load(saved, mesh={"fsdp": 2})
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Reverse(nn.Module):
    """A model over texts that names its vocabulary by nothing the library knows, with a field that is rightly None."""

    pieces: int = 258
    window: int | None = None
    num_features: int | None = None

    @nn.compact
    def __call__(self, tokens, train: bool = False):
        assert self.window is None
        return nn.Embed(self.pieces, self.pieces)(tokens[:, ::-1])


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), None], ids=["bytes", "none"])
def test_a_model_without_a_vocabulary_loads_without_its_data(tokenizer, tmp_path):
    data = {"name": "text", "source": "/nowhere/any.txt"}  # opening it would fail
    section = {"name": f"{__name__}:Reverse", "pieces": 258, "window": None, "num_features": 6}
    model = make(Reverse(num_features=6), tokenizer, model=section, data=data, seed=0)
    model.save(tmp_path / "saved")
    loaded = fmjax.load(tmp_path / "saved")
    assert loaded.config["model"] == section and loaded.module.num_features == 6
    np.testing.assert_array_equal(loaded.apply(np.arange(6)[None]), model.apply(np.arange(6)[None]))


def test_more_inputs_by_keyword(bytes_model):
    tokens = np.arange(8)[None]
    packed = bytes_model.apply(tokens, segment_ids=[[1, 1, 1, 2, 2, 2, 2, 2]], train=False)
    np.testing.assert_allclose(packed[0, 3:], bytes_model.apply(tokens[:, 3:])[0], atol=1e-4)


def test_folders_that_are_no_model_say_what_was_found(tmp_path, saved):
    with pytest.raises(InputError, match="does not exist.*config.json"):
        fmjax.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="found there: nothing"):
        fmjax.load(tmp_path)
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(InputError, match="model.safetensors"):
        fmjax.load(tmp_path)
    with pytest.raises(InputError, match="no checkpoint of step 7.*0"):
        fmjax.load(saved, step=7)
    with pytest.raises(InputError, match="float8.*float32"):
        fmjax.load(saved, dtype="float8")


def test_saving_refuses_to_overwrite_and_unknown_formats(bytes_model, saved, tmp_path):
    with pytest.raises(InputError, match="already holds a model"):
        bytes_model.save(saved)
    with pytest.raises(InputError, match="format='onnx' is not known"):
        bytes_model.save(tmp_path / "new", format="onnx")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("first", ["import fmjax.load, fmjax.evaluate", "import fmjax", "from fmjax.load import load"])
def test_module_and_function_share_a_name_in_any_order(first):
    code = f"{first}; import fmjax; assert callable(fmjax.load) and callable(fmjax.evaluate)\n"
    code += "from fmjax.load import Model, load\nimport fmjax.load as module\nassert module.load is load\n"
    code += "try: fmjax.load('/nowhere')\n"
    code += "except fmjax.errors.InputError as e: assert 'does not exist' in str(e)\nelse: raise SystemExit(1)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_is_fast():
    code = "import sys, fmjax; assert not {'jax', 'flax', 'numpy'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "module",
    [
        GPT(**SIZES, vocab_size=31),
        Llama(**SIZES, vocab_size=31, num_kv_heads=2),
        Llama(**SIZES, vocab_size=31, num_kv_heads=1, window=6, tie_embeddings=True),
    ],
    ids=["gpt", "llama", "window"],
)
def test_greedy_decoding_with_the_cache_is_the_argmax_of_the_full_forward(module):
    model = make(module, None)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 31, n).tolist() for n in (1, 3, 19, 7)]
    completions = engine.generate(module, model.params, prompts, max_new_tokens=16, temperature=0)
    for prompt, completion in zip(prompts, completions):
        logits = full_logits(module, model.params, prompt + completion.tokens)[len(prompt) - 1 : -1]
        assert completion.tokens == logits.argmax(-1).tolist()
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        np.testing.assert_allclose(completion.logprobs, logprobs[np.arange(16), completion.tokens], atol=1e-4)


def test_what_there_is_no_embedding_for_is_refused_not_nan(bytes_model):
    for tokens, inputs, message in [
        ([[1, 258]], {}, r"tokens contain 258; the model has 0\.\.257"),
        ([[-1, 2]], {}, "tokens contain -1"),
        ([[1] * 65], {}, r"GPT has 64 learned positions, 0\.\.63, .* of 65 in a row would be at 64"),
        ([[1, 2]], {"positions": [[0, 64]]}, "would be at 64"),
        ([[1, 2]], {"positions": [[-1, 0]]}, "would be at -1"),
        ([[1] * 70], {"segment_ids": [[1] * 70]}, "would be at 69"),
    ]:
        with pytest.raises(InputError, match=message):
            bytes_model.apply(np.array(tokens), **inputs)
    packed = bytes_model.apply(np.ones((1, 70), int), segment_ids=[[1] * 30 + [2] * 40])
    assert np.isfinite(packed).all()
    # Traced tokens cannot be looked at.
    assert jax.jit(lambda tokens: bytes_model.apply(tokens))(np.array([[1, 258]])).shape == (1, 2, 258)
    llama = Llama(num_layers=1, hidden_size=8, intermediate_size=8, num_heads=2, max_length=4, vocab_size=9)
    assert np.isfinite(make(llama, None).apply(np.ones((1, 6), int))).all()  # rotary positions go on


def closed_form(model, tokens, start):
    logits = full_logits(model.module, model.params, tokens[:-1])
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[np.arange(start - 1, len(tokens) - 1), tokens[start:]].sum()


def test_score_is_the_closed_form_with_the_harness_s_borders(bytes_model):
    pairs = [("ab", " cd"), ("ab ", "cd"), ("", "cd"), (" ", "x"), ("ab", ""), ("ab ", "")]
    scores = bytes_model.score(pairs)
    for (context, continuation), (loglikelihood, _, count) in zip(pairs[:4], scores):
        tokens = [256, *(context + continuation).encode()]
        start = 1 + len(context.rstrip())
        assert count == len(tokens) - start
        assert loglikelihood == pytest.approx(closed_form(bytes_model, tokens, start), abs=1e-4)
    assert scores[0] == scores[1]  # the space went to the continuation
    assert scores[4] == scores[5] == (0.0, True, 0)


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", 1), ("a", "b", "c"), 5])
def test_what_is_no_pair_of_texts_is_refused(bytes_model, pair):
    with pytest.raises(InputError, match="pair 1 must be two texts"):
        bytes_model.score([("a", "b"), pair])
    with pytest.raises(InputError, match="put it in a list"):
        bytes_model.score("ab")


def test_a_context_too_long_keeps_its_end_and_a_continuation_too_long_is_refused(bytes_model, caplog):
    text = "the quick brown fox jumps over the lazy dog and then over the quick brown fox again"
    ((loglikelihood, _, count),) = bytes_model.score([(text, " x")])
    tokens = list((text + " x").encode())[-65:]
    assert count == 2 and loglikelihood == pytest.approx(closed_form(bytes_model, tokens, 63), abs=1e-4)
    assert "1 of 1 contexts" in caplog.text
    with pytest.raises(InputError, match="65 tokens.*64"):
        bytes_model.score([("a", "b" * 65)])


def test_rolling_is_the_sum_over_windows(bytes_model):
    text = "".join(chr(97 + i * i % 26) for i in range(150))
    ids = [256, *text.encode()]
    # Windows of 64 inputs; the last, with 22 left to score, reaches back.
    expected = closed_form(bytes_model, ids[:65], 1) + closed_form(bytes_model, ids[64:129], 1)
    expected += closed_form(bytes_model, ids[86:151], 43)
    empty, (loglikelihood, count) = bytes_model.loglikelihood_rolling(["", text])
    assert empty == (0.0, 0) and count == 150
    assert loglikelihood == pytest.approx(expected, abs=1e-3)
    # Tuned on rows of 32, it reads as much as before, as it generates and is exported.
    tuned = Model(**{**vars(bytes_model), "config": {"data": {"sequence_length": 32}}})
    assert tuned.context_length == 64 == tuned.engine.context
    assert tuned.loglikelihood_rolling([text])[0][0] == loglikelihood


def test_generate_gives_continuations_only(bytes_model):
    texts = bytes_model.generate(["Once", "", "Once"], max_new_tokens=20, temperature=0)
    assert texts[0] == texts[2] and not texts[0].startswith("Once")
    ids = bytes_model.encode("Once")
    completion = engine.generate(
        bytes_model.module, bytes_model.params, [ids], max_new_tokens=20, temperature=0, stop_ids=[257]
    )[0]
    assert texts[0] == ByteTokenizer().decode(completion.tokens)
    with pytest.raises(InputError, match="list"):
        bytes_model.generate("Once")
    with pytest.raises(InputError, match="no tokenizer"):
        Model(bytes_model.module, bytes_model.params).generate(["Once"])


class NoBos(ByteTokenizer):
    bos_id = None


class NoEnds(ByteTokenizer):
    bos_id = eos_id = None


def test_without_bos_texts_start_from_eos(bytes_model):
    """As lm-evaluation-harness has it: an empty context is BOS, or else EOS; a text with tokens stands alone."""
    model = Model(bytes_model.module, bytes_model.params, {}, NoBos())
    assert (model.encode(""), model.encode("x"), ByteTokenizer().prefix_id) == ([257], [120], 256)
    logits = np.asarray(model.apply(np.array([[257, 120, 121]])), np.float64)[0]
    nats = [logits[i, token] - np.log(np.exp(logits[i]).sum()) for i, token in enumerate((120, 121))]
    (first,), ((rolled, count),) = model.score([("", "x")]), model.loglikelihood_rolling(["xy"])
    assert first[0] == pytest.approx(nats[0], abs=1e-4) and first[2] == 1
    assert rolled == pytest.approx(sum(nats), abs=1e-4) and count == 2
    greedy = dict(max_new_tokens=3, temperature=0)
    assert model.generate(["", "x"], **greedy) == [model.generate([ids], **greedy)[0] for ids in ([257], [120])]


def test_nothing_to_start_from_is_an_error(bytes_model):
    model = Model(bytes_model.module, bytes_model.params, {}, NoEnds())
    assert len(model.generate(["x"], max_new_tokens=2)) == 1
    for call, argument in [
        (model.generate, ["x", ""]),
        (model.score, [("", "x")]),
        (model.loglikelihood_rolling, ["x"]),
    ]:
        with pytest.raises(InputError, match="neither BOS nor EOS"):
            call(argument)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A SentencePiece model with its usual dummy space in front, and byte fallback."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text.txt").write_text("\n".join(["the cat sat on the mat", "a dog and a cat", "the dog sat"] * 30))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=300, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return SentencePieceTokenizer((folder / "m.model").read_bytes())


@pytest.mark.parametrize("prompt", ["", "the cat", "the cat sat on the mat and the dog sat on a mat", "na\u00efve"])
@pytest.mark.parametrize("rest", [" sat on the mat", " \u20ac5 \U0001f600!", "s", "\n\tx  y"])
def test_streamed_pieces_join_to_the_text_after_the_prompt(pieces, prompt, rest):
    for tokenizer in (pieces, ByteTokenizer()):
        whole = tokenizer.encode(prompt + rest)
        before = tokenizer.encode(prompt)
        start = len(before) if whole[: len(before)] == before else 0
        prefix = tokenizer.decode(whole[:start])
        for size in (1, 3):
            stream = TextStream(tokenizer, [tokenizer.bos_id, *whole[:start]])
            new = whole[start:]
            shown = [stream.push(new[i : i + size], last=i + size >= len(new)) for i in range(0, len(new), size)]
            assert prefix + "".join(shown) == tokenizer.decode(whole)
            assert not any("\ufffd" in piece for piece in shown)


def test_an_incomplete_character_is_held_back_until_the_end():
    stream = TextStream(ByteTokenizer(), [256])
    assert [stream.push([b]) for b in b"\xe2\x82\xac"] == ["", "", "\u20ac"]
    assert stream.push([0xE2], last=True) == "\ufffd"
