"""Reading a published config.json key by key, so that no option that matters is passed over."""

import logging
from collections.abc import Mapping
from typing import Any

from fmjax.errors import ConfigError

log = logging.getLogger("fmjax")

REQUIRED = object()

# Keys that any config.json may have and that change nothing about what a model computes from tokens to logits.
_NEUTRAL = frozenset((
    "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "_commit_hash",
    "_class_name", "_diffusers_version",
    "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids",
    "task_specific_params", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    "output_attentions", "output_hidden_states", "output_past", "return_dict", "return_dict_in_generate",
    "output_scores", "torchscript", "tokenizer_class", "prefix", "chunk_size_feed_forward", "pruned_heads",
    "do_sample", "early_stopping", "max_length", "min_length", "num_beams", "num_beam_groups", "num_return_sequences",
    "temperature", "top_k", "top_p", "typical_p", "length_penalty", "repetition_penalty", "diversity_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "remove_invalid_values", "exponential_decay_length_penalty",
    "use_bfloat16", "tf_legacy_loss", "is_encoder_decoder", "is_decoder", "cross_attention_hidden_size",
    "initializer_range", "init_std", "classifier_dropout", "gradient_checkpointing", "ignore_index", "auto_map",
    "model_name", "_from_model_config", "unsloth_version", "unsloth_fixed",
    "add_bos_token", "add_eos_token", "max_sequence_length", "is_llama_config", "cache_implementation", "_num_labels",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
    "transformers.js_config", "directionality", "classif_dropout",
    "_flash_attn_2_enabled", "predict_special_tokens", "max_new_tokens",
))  # fmt: skip
_REFUSED = ("quantization_config", "compression_config")


class PublishedConfig:
    """A config.json. What a family asks for is checked and ticked off; `finish` deals with what nobody asked for.

    Args:
      values: the JSON object.
      source: where it came from, for messages.
    """

    def __init__(self, values: Mapping[str, Any], source: str):
        self.values, self.source = dict(values), source
        self._read = set(_NEUTRAL)
        for key in _REFUSED:
            if self.values.get(key):
                raise ConfigError(f"{source}: {key} = {self.values[key]!r}: quantized weights are not supported")

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def raw(self, key: str) -> Any:
        """The value as it stands, None where there is none."""
        self._read.add(key)
        return self.values.get(key)

    def get(self, key: str, kind: type, default: Any = REQUIRED, null: bool = False) -> Any:
        """The value of `key`, of type `kind`; an absent one is `default`. `null` or a default of None allow null.

        Raises ConfigError for a missing key without default, or a value of another type.
        """
        value = self.raw(key)
        if key not in self.values:
            if default is REQUIRED:
                raise ConfigError(f"{self.source} has no {key!r}, which says what the model is ({kind.__name__})")
            return default
        if value is None and (null or default is None):
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(f"{self.source}: {key} = {value!r} should be {kind.__name__}")
        return value

    def choice(self, key: str, known: Mapping[str, Any], default: str) -> Any:
        """What `known` has for the value of `key`. Raises ConfigError, listing the known values, for another."""
        value = self.get(key, str, default)
        if value not in known:
            self.refuse(key, value, f"known: {', '.join(known)}")
        return known[value]

    def one_rate(self, rates: Mapping[str, float]) -> float:
        """The dropout rate where a class has several keys and fmjax one: the first, with a warning if they differ."""
        first = next(iter(rates.values()))
        if set(rates.values()) != {first}:
            log.warning("%s: of the dropout rates %s the first is used for all", self.source, dict(rates))
        return first

    def fixed(self, **expected: Any) -> None:
        """Raises ConfigError unless each of these keys is absent or has its expected value (or one of a tuple)."""
        for key, value in expected.items():
            allowed = value if isinstance(value, tuple) else (value,)
            if key in self.values and not any(self.raw(key) == one for one in allowed):
                self.refuse(key, self.values[key], f"supported: {', '.join(map(repr, allowed))}")

    def refuse(self, key: str, value: Any, why: str) -> None:
        """Raises ConfigError for an option that would change what the model computes and is not supported."""
        raise ConfigError(f"{self.source}: {key} = {value!r} is not supported ({why})")

    def finish(self, strict: bool = False) -> None:
        """Warns of keys with a value that nothing reads; those with an underscore in front are notes of what wrote the
        file. The classes in `transformers` do not read them either.

        strict: raise ConfigError in place of the warning.
        """
        unread = [f"{k}={v!r}" for k, v in self.values.items() if k not in self._read and v and k[0] != "_"]
        if unread and strict:
            raise ConfigError(
                f"{self.source}: these keys are not supported: {', '.join(sorted(unread))}; remove those that change "
                "nothing for this class"
            )
        if unread:
            log.warning("%s: these keys are not known and not used: %s", self.source, ", ".join(sorted(unread)))
