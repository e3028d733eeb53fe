"""config.json to fields and back: both ways of writing RoPE, defaults by class, and options that are refused."""

import json

import folders
import pytest

from fmjax.config import build
from fmjax.errors import ConfigError, InputError
from fmjax.interop.family import family_of, publish, read_section
from fmjax.models import MODELS
from fmjax.models.bert import Bert, Roberta
from fmjax.models.gemma import Gemma3
from fmjax.models.gpt import GPT
from fmjax.models.llama import Llama
from fmjax.models.magneto import Magneto
from fmjax.models.qwen import Qwen3
from fmjax.models.transformer import EncoderDecoder
from fmjax.small_files import read_json

SIZES = dict(num_layers=3, hidden_size=16, intermediate_size=24, num_heads=4, vocab_size=29, max_length=32)


def config_of(name, **changes):
    """A fixture's config.json, keys changed, those with the value `...` left out."""
    config = json.loads(str(folders.read(name)["config"])) | changes
    return {key: value for key, value in config.items() if value is not ...}


def section(name, **changes):
    config = config_of(name, **changes)
    return read_section(family_of(config, "config.json"), config, (), "config.json")


LLAMA3 = dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)


def test_both_ways_of_writing_rotary_parameters_are_the_same():
    new = section("llama")
    for word in ("rope_type", "type"):
        old = section("llama", rope_parameters=..., rope_theta=50, rope_scaling={word: "llama3", **LLAMA3})
        assert old == new
    assert new["rope_theta"] == 50.0
    assert new["rope_scaling"] == dict(
        name="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_length=16
    )
    plain = section("llama", rope_parameters=...)
    assert (plain["rope_theta"], plain["rope_scaling"]) == (10000.0, None)
    both = section("llama", rope_theta=50.0, rope_scaling={"rope_type": "llama3", **LLAMA3})
    assert both == new
    with pytest.raises(ConfigError, match="rope_scaling = .*rope_parameters says something else"):
        section("llama", rope_scaling={"rope_type": "linear", "factor": 2.0})


def test_yarn_with_and_without_its_optional_keys():
    yarn = dict(rope_type="yarn", rope_theta=1e6, original_max_position_embeddings=8)
    short = section("qwen3", rope_parameters=yarn)["rope_scaling"]  # the factor follows from the lengths
    assert short["factor"] == 32 / 8 and short["beta_fast"] == 32.0 and short["attention_factor"] is None
    scaled = section("qwen3", rope_parameters=yarn | dict(factor=4.0, mscale=1.0, mscale_all_dim=0.5, truncate=False))
    assert scaled["rope_scaling"]["attention_factor"] == pytest.approx((0.1 * 1.3862944 + 1) / (0.05 * 1.3862944 + 1))
    assert not scaled["rope_scaling"]["truncate"]


def test_gemma_in_its_old_and_new_form():
    new = section("gemma3")
    assert new["rope_theta"] == 1000.0 and new["local_rope_theta"] == 50.0
    assert new["rope_scaling"] == dict(name="linear", factor=8.0) and new["query_scale"] == 6**-0.5
    assert new["layer_pattern"] == ["local", "global", "local"] and new["tie_embeddings"]
    old = dict(rope_theta=1000.0, rope_local_base_freq=50.0, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert section("gemma3", rope_parameters=..., **old) == new
    assert section("gemma3", layer_types=..., sliding_window_pattern=2) == new
    defaults = section(
        "gemma3", rope_parameters=..., layer_types=..., query_pre_attn_scalar=..., tie_word_embeddings=...
    )
    assert (defaults["rope_theta"], defaults["local_rope_theta"], defaults["query_scale"]) == (1e6, 1e4, 1 / 16)
    assert defaults["window"] == 4 and defaults["tie_embeddings"]


def test_defaults_are_those_of_the_class():
    llama = section("llama", head_dim=..., num_key_value_heads=..., tie_word_embeddings=..., attention_bias=...)
    assert (llama["head_dim"], llama["num_kv_heads"], llama["tie_embeddings"], llama["qkv_bias"]) == (
        None,
        None,
        False,
        False,
    )
    assert section("llama", head_dim=None)["head_dim"] is None
    mistral = section("mistral", sliding_window=..., num_key_value_heads=...)
    assert (mistral["window"], mistral["num_kv_heads"]) == (4096, 8)
    assert section("mistral", sliding_window=None)["window"] is None
    qwen = section("qwen3", head_dim=..., use_sliding_window=..., layer_types=...)
    assert (qwen["head_dim"], qwen["window"], qwen["layer_pattern"]) == (128, None, ["global"] * 3)
    assert section("qwen3", layer_types=...)["layer_pattern"] == ["global", "global", "local"]
    assert section("roberta", pad_token_id=3)["position_offset"] == 4
    assert section("gpt2", n_inner=None)["intermediate_size"] is None


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", dict(activation_function="quick_gelu"), "activation_function = 'quick_gelu'.*gelu_new"),
        ("gpt2", dict(tie_word_embeddings=False), "tie_word_embeddings = False"),
        ("gpt_neo", dict(attention_types=[[["global"], 3]]), r"attention_types = .*each of 4 layers"),
        ("llama", dict(hidden_act="gelu"), "hidden_act = 'gelu'"),
        ("llama", dict(rope_parameters=dict(rope_type="dynamic", factor=2.0)), "rope_type = 'dynamic'.*llama3"),
        ("llama", dict(rope_parameters=dict(rope_type="linear", factor=2.0, beta=1)), "rope beta = 1"),
        ("llama", dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5)), "partial_rotary_fac"),
        ("llama", dict(rope_parameters=dict(rope_type="llama3", factor=8.0)), "low_freq_factor"),
        ("llama", dict(rope_parameters=[1]), "rope_parameters = "),
        ("llama", dict(num_hidden_layers="3"), "num_hidden_layers = '3' should be int"),
        ("llama", dict(vocab_size=...), "has no 'vocab_size'"),
        ("llama", dict(quantization_config=dict(bits=4)), "quantization_config = .*quantized weights"),
        ("qwen3", dict(layer_types=["linear_attention"] * 3), "layer_types = 'linear_attention'"),
        ("qwen3", dict(layer_types=["full_attention"]), "layer_types = .*each of 3 layers"),
        ("qwen2", dict(sliding_window=None), "sliding_window = None"),
        ("gemma3", dict(final_logit_softcapping=30.0), "final_logit_softcapping = 30.0"),
        ("gemma3", dict(use_bidirectional_attention=True), "use_bidirectional_attention = True"),
        ("bert", dict(position_embedding_type="relative_key"), "position_embedding_type = 'relative_key'"),
        ("bert", dict(is_decoder=True), "is_decoder = True"),
        ("roberta", dict(hidden_act="relu"), "hidden_act = 'relu'"),
        ("marian", dict(decoder_ffn_dim=48), "decoder_ffn_dim = 48"),
        ("marian", dict(scale_embedding=False), "scale_embedding = False"),
        ("marian", dict(share_encoder_decoder_embeddings=False), "share_encoder_decoder_embeddings = False"),
    ],
)  # fmt: skip
def test_options_that_are_not_honoured_are_refused_by_name_and_value(name, changes, match):
    with pytest.raises(ConfigError, match=match):
        section(name, **changes)


def test_keys_that_nothing_knows_are_said(caplog):
    section("llama", new_trick=0.5, off=False, nothing=None)
    assert "new_trick=0.5" in caplog.text and "off" not in caplog.text and "nothing" not in caplog.text


def test_common_keys_that_change_nothing_are_passed_over(caplog):
    section("gpt_neo", summary_type="cls_index", summary_first_dropout=0.1, max_sequence_length=2048)
    section("llama", is_llama_config=True, cache_implementation="hybrid", **{"transformers.js_config": {"dtype": "q4"}})
    section("bert", pooler_type="first_token_transform", pooler_fc_size=768, directionality="bidi", _num_labels=3)
    section("llama", _model_name_or_path="a name that its maker gave it")
    assert "not known" not in caplog.text


def test_architectures_that_are_not_supported(tmp_path):
    with pytest.raises(
        InputError, match="'LlamaForCausalLn' is not supported; did you mean 'LlamaForCausalLM'.*GPT2LMHead"
    ):
        section("llama", architectures=["LlamaForCausalLn"])
    for name, head in (("bert", "BertForMaskedLM"), ("roberta", "RobertaForMaskedLM")):
        with pytest.raises(InputError, match=f"there are {head}") as error:
            section(name, architectures=[head.replace("MaskedLM", "TokenClassification")])
        assert "did you mean" not in str(error.value)
        assert section(name, architectures=[head.replace("ForMaskedLM", "Model")])["masked_lm_head"] is False
    with pytest.raises(
        InputError, match="supported. Of model_type 'llama' there are LlamaForCausalLM, LlamaModel. Sup"
    ):
        section("llama", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(InputError, match="model_type 'mamba' is not supported; supported: bert, .*gemma3_text, gpt2"):
        section("llama", architectures=..., model_type="mamba")
    assert section("llama", architectures=...) == section("llama")
    with pytest.raises(InputError, match="neither 'architectures' nor 'model_type'"):
        family_of({"model": {}}, "config.json")
    (tmp_path / "config.json").write_text("{'a': 1}")
    with pytest.raises(ConfigError, match="config.json is not readable JSON"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds a list, expected a dict"):
        read_json(tmp_path / "config.json")


PLAIN = {k: v for k, v in SIZES.items() if k != "max_length"}


@pytest.mark.parametrize(
    ("module", "architecture"),
    [
        (GPT(**SIZES), "GPT2LMHeadModel"),
        (GPT(**SIZES, dropout=0.1, init_std=0.1, remat="full", scan_layers=False), "GPT2LMHeadModel"),
        (GPT(**{**SIZES, "intermediate_size": None}, placement="post"), "OpenAIGPTLMHeadModel"),
        (
            GPT(**SIZES, window=4, layer_pattern=("global", "local"), qkv_bias=False, query_scale=1.0),
            "GPTNeoForCausalLM",
        ),
        (Llama(**SIZES), "LlamaForCausalLM"),
        (Llama(**{**SIZES, "intermediate_size": None}, qkv_bias=True, out_bias=True), "LlamaForCausalLM"),
        (Llama(**SIZES, window=4), "MistralForCausalLM"),
        (Llama(**SIZES, qkv_bias=True), "Qwen2ForCausalLM"),
        (Llama(**SIZES, window=4, layer_pattern=("global", "local")), None),
        (Llama(**SIZES, qkv_bias=True, window=4, layer_pattern=("local", "global")), "Qwen2ForCausalLM"),
        (Qwen3(**SIZES, num_kv_heads=2), "Qwen3ForCausalLM"),
        (Gemma3(**SIZES), "Gemma3ForCausalLM"),
        (Bert(**SIZES), "BertForPreTraining"),
        (Bert(**SIZES, next_sentence=False), "BertForMaskedLM"),
        (Roberta(**SIZES), "RobertaForMaskedLM"),
        (EncoderDecoder(**SIZES, interleaved_positions=False, use_head_bias=True, start_id=0), "MarianMTModel"),
    ],
)
def test_the_published_class_of_a_module(module, architecture):
    if architecture is None:
        with pytest.raises(InputError, match="no published class computes what this Llama does"):
            publish(module)
        return
    family, config = publish(module)
    assert config["architectures"] == [architecture]
    again = build(read_section(family, config, (), "config.json"), MODELS)
    assert publish(again)[1] == config


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (GPT(**SIZES, window=4), "GPT2LMHeadModel has .*window=None, not 4"),
        (GPT(**SIZES, query_scale=1.0), "GPT2LMHeadModel has query_scale=0.5, not 1.0"),
        (GPT(**SIZES, placement="post"), "OpenAIGPTLMHeadModel has intermediate_size=64, not 24"),
        (GPT(**SIZES, head_dim=8), "head_dim=4, not 8"),
        (Llama(**SIZES, mlp_bias=True, window=4), "Llama.* has window=None, not 4.*Mistral.* has mlp_bias=False"),
        (Roberta(**SIZES, activation="relu"), "RobertaForMaskedLM: .*hidden_act = 'relu'"),
        (Bert(**SIZES, position_offset=2), "position_offset=0, not 2"),
        (EncoderDecoder(**SIZES, use_head_bias=True, start_id=0), "interleaved_positions=False, not True"),
        (Magneto(**PLAIN), "this Magneto does .supported: autoencoder_kl, bert, .*dit, gemma3"),
    ],
)  # fmt: skip
def test_a_model_that_no_published_class_computes_is_refused_by_field(module, match):
    with pytest.raises(InputError, match=match):
        publish(module)
