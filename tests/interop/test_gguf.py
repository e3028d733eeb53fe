"""GGUF files, written here by the `gguf` package, against the same weights as a Hugging Face folder."""

import json
import math

import folders
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.data.tokenizers.loading import load_tokenizer
from fmjax.errors import CheckpointError, ConfigError, InputError, TokenizerError
from fmjax.gguf_file import PLAIN, QUANTIZED, read_gguf
from fmjax.interop.gguf_blocks import Blocks
from fmjax.interop.loading import open_published
from fmjax.layers.quantized import QTensor, quantization_of
from fmjax.layers.weights import merged, num_bytes

VOCAB, LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM = 40, 2, 32, 4, 2, 8
TOKENS = np.arange(2 * 12).reshape(2, 12) % VOCAB
Kind = gguf.GGMLQuantizationType
PUBLISHED = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"], "sliding_window": 4, "sliding_window_pattern": 2,
        "query_pre_attn_scalar": HEAD_DIM, "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
}  # fmt: skip
SIZES = {
    "num_hidden_layers": LAYERS, "hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


def shapes(architecture: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(llama.cpp's name, shape) of each published tensor, written down anew."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    found = {"model.embed_tokens": ("token_embd", (VOCAB, WIDTH)), "model.norm": ("output_norm", (WIDTH,))}
    if architecture != "gemma3":
        found["lm_head"] = ("output", (VOCAB, WIDTH))
    for i in range(LAYERS):
        block = {
            "input_layernorm": ("attn_norm", (WIDTH,)),
            "self_attn.q_proj": ("attn_q", (q, WIDTH)),
            "self_attn.k_proj": ("attn_k", (kv, WIDTH)),
            "self_attn.v_proj": ("attn_v", (kv, WIDTH)),
            "self_attn.o_proj": ("attn_output", (WIDTH, q)),
            "mlp.gate_proj": ("ffn_gate", (64, WIDTH)),
            "mlp.up_proj": ("ffn_up", (64, WIDTH)),
            "mlp.down_proj": ("ffn_down", (WIDTH, 64)),
        }
        if architecture in ("gemma3", "qwen3"):
            block |= {f"self_attn.{n}_norm": (f"attn_{n}_norm", (HEAD_DIM,)) for n in "qk"}
        if architecture == "gemma3":
            block["post_attention_layernorm"] = ("post_attention_norm", (WIDTH,))
            block["pre_feedforward_layernorm"] = ("ffn_norm", (WIDTH,))
            block["post_feedforward_layernorm"] = ("post_ffw_norm", (WIDTH,))
        else:
            block["post_attention_layernorm"] = ("ffn_norm", (WIDTH,))
        found |= {f"model.layers.{i}.{name}": (f"blk.{i}.{theirs}", shape) for name, (theirs, shape) in block.items()}
    found = {f"{name}.weight": (f"{theirs}.weight", shape) for name, (theirs, shape) in found.items()}
    if architecture == "qwen2":
        for i in range(LAYERS):
            for n, rows in (("q", q), ("k", kv), ("v", kv)):
                found[f"model.layers.{i}.self_attn.{n}_proj.bias"] = (f"blk.{i}.attn_{n}.bias", (rows,))
    return found


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp's converter of LLaMA permutes them."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors() -> np.ndarray:
    """What the converter writes for LLaMA 3.1: by how much each pair's frequency is divided."""
    factors = []
    for frequency in 500000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM):
        wave = 2 * math.pi / frequency
        smooth = (8192 / wave - 1) / (4 - 1)
        factors.append(1 if wave < 8192 / 4 else 8 if wave > 8192 else 1 / ((1 - smooth) / 8 + smooth))
    return np.array(factors, np.float32)


def write(path, architecture="llama", kind=Kind.F32, drop=(), tokenizer=None, **changes):
    """(GGUF file, the published weights that it stands for), random; matrices are of this kind, or of that which a
    function gives for a tensor's name."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    keys = {
        "block_count": LAYERS, "context_length": 64, "embedding_length": WIDTH, "feed_forward_length": 64,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
    } | changes  # fmt: skip
    for key, value in keys.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    base = {"llama": 500000.0, "gemma3": 1e6}.get(architecture, 100.0)
    writer.add_float32(f"{architecture}.rope.freq_base", base)
    if architecture == "llama":
        writer.add_tensor("rope_freqs.weight", llama3_factors())
    if architecture == "gemma3":
        writer.add_uint32("gemma3.attention.sliding_window", 4)
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 2)
        writer.add_string("gemma3.rope.scaling.type", "linear")
        writer.add_float32("gemma3.rope.scaling.factor", 8.0)
    for key, value in (tokenizer or {}).items():
        writer.add_key_value(key, *value)
    weights = {}
    for name, (theirs, shape) in shapes(architecture).items():
        weight = rng.standard_normal(shape, np.float32) * (0.3 if len(shape) > 1 else 0.1)
        stored = weight
        if architecture == "llama" and (heads := {"attn_q": HEADS, "attn_k": KV_HEADS}.get(theirs.split(".")[-2])):
            stored = turned(weight, heads)
        if theirs.endswith("norm.weight") and architecture == "gemma3":
            stored = stored + 1
        one = Kind.F32 if len(shape) < 2 else kind(theirs) if callable(kind) else kind
        raw = gguf.quants.quantize(stored, one)
        weights[name] = weight
        if one != Kind.F32:
            whole = gguf.quants.dequantize(raw, one)
            heads = (
                {"attn_q": HEADS, "attn_k": KV_HEADS}.get(theirs.split(".")[-2]) if architecture == "llama" else None
            )
            weights[name] = whole if heads is None else whole.reshape(heads, -1, 2, WIDTH).swapaxes(1, 2).reshape(shape)
        if theirs not in drop:
            writer.add_tensor(theirs, raw, raw_dtype=one)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, weights


@pytest.mark.parametrize(
    "architecture,kind",
    [("llama", Kind.Q8_0), ("llama", Kind.F16), ("gemma3", Kind.Q4_1), ("qwen2", Kind.BF16), ("qwen3", Kind.Q4_0)],
)
def test_a_file_is_the_model_of_its_folder(architecture, kind, tmp_path):
    path, weights = write(tmp_path / "model.gguf", architecture, kind)
    config = {**SIZES, **PUBLISHED[architecture]}
    folder = fmjax.load(folders.write(tmp_path / "folder", weights, config))
    model = fmjax.load(path)
    assert model.module == folder.module and model.tokenizer is None
    assert open_published(path).dtype == {Kind.F16: "float16", Kind.BF16: "bfloat16"}.get(kind, "float32")
    np.testing.assert_allclose(model.apply(TOKENS), folder.apply(TOKENS), atol=1e-5)
    model.save(tmp_path / "saved", format="hf")
    again = fmjax.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.apply(TOKENS), model.apply(TOKENS))


@pytest.mark.parametrize("name", [*PLAIN, *QUANTIZED])
def test_numbers_of_each_type_are_those_of_the_package(name, tmp_path):
    """Blocks are random bytes, their scales (float16) finite."""
    kind = Kind[name]
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    rows, width = 5, 512
    rng = np.random.default_rng(0)
    if name in PLAIN:
        raw = gguf.quants.quantize(rng.standard_normal((rows, width), np.float32), kind)
    else:
        raw = rng.integers(0, 256, (rows, width // numbers, size), np.uint8)
        raw[..., 1::2] &= 0x3F  # a float16 whose second byte is below 0x7C is finite
        raw = raw.reshape(rows, -1)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(tmp_path / "a.gguf")[1]["x"]
    if name not in PLAIN:
        weight = jax.tree.map(jnp.asarray, Blocks(**vars(tensor)).few_bits())
        np.testing.assert_array_equal(weight.value().T, tensor.map())
        assert quantization_of(weight).format == Blocks(**vars(tensor)).quantization.format
        # Scales of four and six bits take eight here.
        assert num_bytes(weight) <= tensor.size * (1.2 if name.endswith("_K") else 1)
    found = np.asarray(tensor.map(), np.float32)
    assert tensor.shape == found.shape == (rows, width) and np.isfinite(found).all()
    (theirs,) = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    np.testing.assert_array_equal(found, gguf.quants.dequantize(theirs.data, kind).reshape(rows, width))


def few_bits(model) -> list:
    is_packed = lambda x: isinstance(x, QTensor)
    return [x for x in jax.tree.leaves(model.params, is_leaf=is_packed) if is_packed(x)]


def test_weights_of_few_bits_stay_so_when_asked(tmp_path):
    path, _ = write(tmp_path / "model.gguf", "llama", Kind.Q4_1)
    whole, model = fmjax.load(path), fmjax.load(path, quantized=True)
    assert model.module == whole.module and len(few_bits(model)) == 7 + 2 and not few_bits(whole)
    jax.tree.map(np.testing.assert_array_equal, merged(model.params), whole.params)
    np.testing.assert_allclose(model.apply(TOKENS), whole.apply(TOKENS), atol=1e-5)
    prompts = [[1, 2, 3], [4, 5]]
    greedy = [one.complete(prompts, max_new_tokens=5, temperature=0) for one in (model, whole)]
    assert [x.tokens for x in greedy[0]] == [x.tokens for x in greedy[1]]
    model.save(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, fmjax.load(tmp_path / "saved").params, model.params)
    with pytest.raises(InputError, match="not published in few bits"):
        fmjax.load(tmp_path / "saved", quantized=True)
    with pytest.raises(InputError, match="no weights of few bits to keep"):
        fmjax.load(write(tmp_path / "float.gguf")[0], quantized=True)


def test_layers_that_are_quantized_each_in_its_way_come_one_by_one(tmp_path):
    kind = lambda name: Kind.Q8_0 if name == "blk.1.ffn_down.weight" else Kind.Q5_0
    path, _ = write(tmp_path / "model.gguf", "llama", kind)
    model = fmjax.load(path, quantized=True)
    assert not model.module.scan_layers and len(few_bits(model)) == 2 * 7 + 2
    assert model.params["stack"]["blocks_1"]["mlp"]["down"]["kernel"].format == "int8"
    np.testing.assert_allclose(model.apply(TOKENS), fmjax.load(path).apply(TOKENS), atol=1e-5)
    model.save(tmp_path / "saved")
    assert fmjax.load(tmp_path / "saved").module == model.module


def test_torn_files_say_what_is_missing(tmp_path):
    path, _ = write(tmp_path / "model.gguf")
    whole = path.read_bytes()
    torn = tmp_path / "torn.gguf"
    for length in (10, 30, 200, 700, 3000, len(whole) - 40):
        torn.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"torn.gguf' is truncated: {length} bytes, expected \d+ at least"):
            fmjax.load(torn)
    torn.write_bytes(b"<html>no such file</html>")
    with pytest.raises(CheckpointError, match="torn.gguf' is no GGUF file: it begins with b'<htm'"):
        fmjax.load(torn)
    plain = tmp_path / "model.bin"
    plain.write_bytes(whole)
    assert fmjax.load(plain).module.num_layers == LAYERS


def test_what_is_not_supported_is_named(tmp_path):
    path, _ = write(tmp_path / "model.gguf")
    raw = path.read_bytes()
    entry = b"blk.0.attn_norm.weight" + (1).to_bytes(4, "little") + WIDTH.to_bytes(8, "little")
    assert raw.count(entry) == 1
    for number, name in ((16, "IQ2_XXS"), (99, "number 99")):
        path.write_bytes(raw.replace(entry + bytes(4), entry + number.to_bytes(4, "little")))
        with pytest.raises(CheckpointError, match=f"'blk.0.attn_norm.weight' of type {name}, .*Q4_K"):
            fmjax.load(path)
    path.write_bytes(raw.replace(b"llama", b"lhama"))
    with pytest.raises(InputError, match="general.architecture 'lhama' is not supported.*Supported: llama"):
        fmjax.load(path)
    write(path, drop=("blk.1.ffn_up.weight",))
    with pytest.raises(CheckpointError, match="'model.layers.1.mlp.up_proj.weight' of shape .64, 32. is missing"):
        fmjax.load(path)
    write(path, **{"expert_count": 8})
    with pytest.raises(ConfigError, match="expert_count = 8 is not supported"):
        fmjax.load(path)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def texts(values):
    return values, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING


def test_the_tokenizer_of_bytes(tmp_path):
    """BPE with merges, cut at single digits, special tokens and a chat template; as the same tokenizer.json."""
    tokens = ["<|im_start|>", "<|im_end|>", "Ġ", "a", "b", "1", "2", "Ġa", "12", "ab", "ĊĊ", "Ċ"]
    types = [3, 3] + [1] * 10
    fields = {
        "tokenizer.ggml.model": ("gpt2", gguf.GGUFValueType.STRING),
        "tokenizer.ggml.pre": ("smollm", gguf.GGUFValueType.STRING),
        "tokenizer.ggml.tokens": texts(tokens),
        "tokenizer.ggml.token_type": (types, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32),
        "tokenizer.ggml.merges": texts(["Ġ a", "1 2", "a b", "Ċ Ċ"]),
        "tokenizer.ggml.bos_token_id": (0, gguf.GGUFValueType.UINT32),
        "tokenizer.ggml.eos_token_id": (1, gguf.GGUFValueType.UINT32),
        "tokenizer.chat_template": (TEMPLATE, gguf.GGUFValueType.STRING),
    }
    path, _ = write(tmp_path / "model.gguf", tokenizer=fields)
    model = fmjax.load(path)
    tokenizer = model.tokenizer
    spelt = [tokenizer.token(i) for i in tokenizer.encode_special("<|im_start|>ab a12\n\n<|im_end|>")]
    assert spelt == ["<|im_start|>", "ab", "Ġa", "1", "2", "ĊĊ", "<|im_end|>"]
    assert not tokenizer.add_bos and model.eos_ids == (1,)
    assert tokenizer.chat_templates == {"default": TEMPLATE}
    model.save(tmp_path / "saved", format="hf")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["eos_token_id"] == 1
    saved = load_tokenizer(tmp_path / "saved")
    assert saved.fingerprint == tokenizer.fingerprint == load_tokenizer(path).fingerprint
    assert saved.chat_templates == tokenizer.chat_templates
    with pytest.raises(TokenizerError, match="tokenizer.ggml.pre 'smallm' is not supported; supported: gpt-2"):
        write(path, tokenizer=fields | {"tokenizer.ggml.pre": ("smallm", gguf.GGUFValueType.STRING)})
        load_tokenizer(path)


@pytest.mark.parametrize("prefix", [True, False])
def test_the_tokenizer_of_sentencepiece(prefix, tmp_path):
    """The pair with the highest score is merged first; what is no piece falls back to bytes."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "c", "ab", "bc", "▁ab", "<turn>"]
    types = [2, 3, 3] + [6] * 256 + [1] * 7 + [4]
    scores = [0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, 0.0]
    fields = {
        "tokenizer.ggml.model": ("llama", gguf.GGUFValueType.STRING),
        "tokenizer.ggml.tokens": texts(pieces),
        "tokenizer.ggml.scores": (scores, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT32),
        "tokenizer.ggml.token_type": (types, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32),
        "tokenizer.ggml.bos_token_id": (1, gguf.GGUFValueType.UINT32),
        "tokenizer.ggml.eos_token_id": (2, gguf.GGUFValueType.UINT32),
        "tokenizer.ggml.add_space_prefix": (prefix, gguf.GGUFValueType.BOOL),
    }
    path, _ = write(tmp_path / "model.gguf", tokenizer=fields)
    tokenizer = load_tokenizer(path)
    first = ["▁ab"] if prefix else ["ab"]
    assert [tokenizer.token(i) for i in tokenizer.encode("ab")] == first
    assert [tokenizer.token(i) for i in tokenizer.encode("abc")] == ["▁"] * prefix + ["a", "bc"]
    turn = ["<0xC3>", "<0xA9>", "<turn>"]
    assert [tokenizer.token(i) for i in tokenizer.encode("é<turn>")] == ["▁"] * prefix + turn
    assert tokenizer.decode(tokenizer.encode("abc é ab")) == "abc é ab"
    assert tokenizer.add_bos and tokenizer.control_tokens == ("<s>", "</s>")
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint


def test_a_run_may_begin_with_a_file(tmp_path):
    """`train.init_from` and `model_section` take one as they take a folder."""
    from fmjax.config import build
    from fmjax.interop.initial import initial_params
    from fmjax.interop.loading import model_section, placed
    from fmjax.models import MODELS

    path, _ = write(tmp_path / "model.gguf")
    module = build(model_section(path), MODELS)
    params = initial_params(str(path), module, *placed(module, None))
    model = fmjax.load(path)
    np.testing.assert_array_equal(jnp.asarray(module.apply({"params": params}, TOKENS)), model.apply(TOKENS))
