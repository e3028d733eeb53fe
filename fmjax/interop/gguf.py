"""GGUF files as published models: llama.cpp's words for keys and tensors beside those of the families.

A file's metadata becomes the config.json, and its tensors' names those of the tables, that the same model has as a
Hugging Face folder; all else is the family's.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.gguf_file import Tensor, read_gguf
from fmjax.interop.family import family_of
from fmjax.interop.gguf_blocks import TYPES, Blocks
from fmjax.interop.importer import Published
from fmjax.interop.published_config import PublishedConfig
from fmjax.layers.position import Llama3Scaling
from fmjax.registry import nearest

ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_BLOCK = BLOCK | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""Tokens that end a turn, which a file may not name beside its EOS; its chat template does."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A `general.architecture`.

    Attributes:
      published: the class in config.json's `architectures`.
      keys: the file's values, without their prefix, and its tensors to keys of config.json.
      block: names of tensors of a layer.
      is_turned: whether rows of queries and keys lie in pairs (llama.cpp's rotary embedding of LLaMA).
      norm_offset: what is added to the weights of norms to make the published ones.
    """

    published: str
    keys: Callable[[PublishedConfig, Mapping[str, Tensor]], dict[str, Any]]
    block: Mapping[str, str] = dataclasses.field(default_factory=lambda: BLOCK)
    is_turned: bool = False
    norm_offset: float = 0.0


def open_file(path: pathlib.Path) -> Published:
    """A GGUF file as a published model.

    Raises InputError for an architecture that is not supported, ConfigError for an option that is not, CheckpointError
    for a damaged file.
    """
    metadata, tensors = read_gguf(path)
    source = str(path)
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        hint = nearest(str(name), ARCHITECTURES, cutoff=0.9)
        raise InputError(
            f"{source!r}: general.architecture {name!r} is not supported{hint} Supported: {', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[name]
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{source!r} has no tensor 'token_embd.weight', the embedding; is it a whole model?")
    prefix = f"{name}."
    config = PublishedConfig(
        {key.removeprefix(prefix): _decimal(value) for key, value in metadata.items() if key.startswith(prefix)}, source
    )
    values = {
        "architectures": [architecture.published],
        **architecture.keys(config, tensors),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        **_token_ids(metadata),
    }
    config.finish()
    heads = {"attn_q": values["num_attention_heads"], "attn_k": values["num_key_value_heads"]}
    found = {}
    for old, tensor in tensors.items():
        if old == "rope_freqs.weight":  # read as a key
            continue
        new, part = _name(old, architecture.block)
        if architecture.is_turned and part in heads:
            tensor = dataclasses.replace(tensor, heads=heads[part])
        if part.endswith("_norm"):
            tensor = dataclasses.replace(tensor, offset=architecture.norm_offset)
        found[new] = Blocks(**vars(tensor)) if tensor.kind in TYPES else tensor
    return Published(path, source, values, family_of(values, source), found)


def _name(name: str, block: Mapping[str, str]) -> tuple[str, str]:
    """(published name, part) of a tensor: ("model.layers.0.mlp.up_proj.weight", "ffn_up"); what is not known keeps its
    name."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        if part in block:
            return f"model.layers.{layer}.{block[part]}.{kind}", part
    part, _, kind = name.rpartition(".")
    return (f"{ENDS[part]}.{kind}", part) if part in ENDS else (name, part)


def _decimal(value: Any) -> Any:
    """A float32 as the shortest decimal that it is: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The special ids of config.json. All that ends a text is in `eos_token_id`."""
    ids = {
        key: metadata[f"tokenizer.ggml.{theirs}_token_id"]
        for key, theirs in (("bos_token_id", "bos"), ("pad_token_id", "padding"))
        if f"tokenizer.ggml.{theirs}_token_id" in metadata
    }
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    tokens, template = metadata.get("tokenizer.ggml.tokens", []), metadata.get("tokenizer.chat_template", "")
    ends += [tokens.index(token) for token in TURN_ENDS if token in template and token in tokens]
    ends = [i for i in dict.fromkeys(ends) if i is not None]
    return ids | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})


def _sizes(config: PublishedConfig) -> dict[str, Any]:
    """What all architectures say alike."""
    heads, width = config.get("attention.head_count", int), config.get("embedding_length", int)
    head_dim = config.get("attention.key_length", int, config.get("rope.dimension_count", int, width // heads))
    config.fixed(
        **{"attention.value_length": head_dim, "rope.dimension_count": head_dim, "expert_count": 0},
        **{"attention.causal": True},
    )
    for key in ("vocab_size", "expert_used_count"):
        config.raw(key)
    return {
        "num_hidden_layers": config.get("block_count", int),
        "hidden_size": width,
        "intermediate_size": config.get("feed_forward_length", int),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "max_position_embeddings": config.get("context_length", int),
        "rms_norm_eps": config.get("attention.layer_norm_rms_epsilon", float),
    }


def _scaling(config: PublishedConfig) -> dict[str, Any]:
    """The scaling of the rotary embedding, as `rope_parameters` without a base."""
    kind = config.get("rope.scaling.type", str, "none")
    factor = config.get("rope.scaling.factor", float, config.get("rope.scale_linear", float, 1.0))
    original = config.get("rope.scaling.original_context_length", int, 0)
    config.fixed(**{"rope.scaling.attn_factor": 1.0, "rope.scaling.finetuned": (True, False)})
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and original:
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    config.refuse("rope.scaling.type", kind, "supported: none, linear, yarn with an original_context_length")


def _llama(config: PublishedConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    sizes, theta = _sizes(config), config.get("rope.freq_base", float, 10000.0)
    scaling = _scaling(config)
    if "rope_freqs.weight" in tensors:
        factors = np.asarray(tensors["rope_freqs.weight"].map(), np.float64)
        scaling = _llama3(factors, theta, sizes["head_dim"], config.source)
    biases = {
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }
    return sizes | biases | {"rope_parameters": {**scaling, "rope_theta": theta}}


def _llama3(factors: np.ndarray, theta: float, head_dim: int, source: str) -> dict[str, Any]:
    """LLaMA 3.1's scaling from what each pair's frequency is divided by, which is all that files say of it: of its four
    numbers all but the factor are as published.

    Raises ConfigError for other factors.
    """
    if np.all(factors == 1):
        return {"rope_type": "default"}
    frequency = theta ** (-2 * np.arange(len(factors)) / head_dim)
    found = Llama3Scaling(_decimal(float(factors.max())))
    if len(factors) != head_dim // 2 or not np.allclose(
        found.scale(frequency, theta)[0], frequency / factors, rtol=1e-4
    ):
        raise ConfigError(
            f"{source}: rope_freqs.weight of shape {factors.shape} is not the scaling of LLaMA 3.1, the only one "
            "supported there"
        )
    return {
        "rope_type": "llama3",
        "factor": found.factor,
        "low_freq_factor": found.low_freq_factor,
        "high_freq_factor": found.high_freq_factor,
        "original_max_position_embeddings": found.original_max_length,
    }


def _qwen(config: PublishedConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return _sizes(config) | {
        "rope_parameters": {**_scaling(config), "rope_theta": config.get("rope.freq_base", float, 10000.0)}
    }


def _gemma3(config: PublishedConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Gemma 3's; what files do not say is written into llama.cpp as here."""
    sizes = _sizes(config)
    config.fixed(attn_logit_softcapping=0.0, final_logit_softcapping=0.0)
    # The largest one scales by its width a head.
    is_27b = sizes["num_hidden_layers"] == 62
    scale = sizes["hidden_size"] // sizes["num_attention_heads"] if is_27b else sizes["head_dim"]
    return sizes | {
        "query_pre_attn_scalar": scale,
        "sliding_window": config.get("attention.sliding_window", int),
        "sliding_window_pattern": config.get("attention.sliding_window_pattern", int, 6),
        "rope_parameters": {
            "full_attention": {**_scaling(config), "rope_theta": config.get("rope.freq_base", float, 1e6)},
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": config.get("rope.freq_base_swa", float, 10000.0),
            },
        },
    }


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", _llama, is_turned=True),
    "gemma3": Architecture("Gemma3ForCausalLM", _gemma3, GEMMA_BLOCK, norm_offset=-1.0),
    "qwen2": Architecture("Qwen2ForCausalLM", _qwen),
    "qwen3": Architecture("Qwen3ForCausalLM", _qwen),
}
