"""Texts that a decoder writes on the way of its training."""

import dataclasses
import logging
from typing import ClassVar

import jax

from fmjax.data.tokenizers.chat import encode_chat
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.objectives.base import need_features

log = logging.getLogger("fmjax")


@dataclasses.dataclass(frozen=True)
class TextSamples:
    """The part of an objective that writes `samples.txt`.

    Attributes:
      sample_prompts: continued for `samples.txt`; "" starts from BOS or EOS; none: no samples.
      sample_tokens: length of those continuations.
      sample_temperature: their temperature; 0 is greedy.
      sample_chat: whether each of `sample_prompts` is what a user says, replied to by the model's chat template.
    """
    RESUME_FREE: ClassVar[tuple[str, ...]] = ("sample_prompts", "sample_tokens", "sample_temperature", "sample_chat")

    sample_prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 200
    sample_temperature: float = 0.8
    sample_chat: bool = False

    def __post_init__(self):
        check_positive(sample_tokens=self.sample_tokens)
        if self.sample_temperature < 0:
            raise ConfigError(f"sample_temperature={self.sample_temperature!r}: expected a number of at least 0.")

    def check(self, module, data) -> None:
        """Raises ConfigError for another kind of model, or `sample_prompts` that could not be continued."""
        need_features(self, module)
        obstacle = self._obstacle(module, data)
        if obstacle and self.sample_prompts != type(self).sample_prompts:
            raise ConfigError(f"objective.sample_prompts: {obstacle}; change them, or set them to () for no samples")

    def can_sample(self, module, data) -> bool:
        """Whether `sample` would work; logs why not."""
        obstacle = self._obstacle(module, data)
        if obstacle:
            log.info("no samples: %s", obstacle)
        return bool(self.sample_prompts) and not obstacle

    def _obstacle(self, module, data) -> str | None:
        if not self.sample_prompts:
            return None
        tokenizer, context = data.tokenizer, getattr(module, "max_length", None)
        if not hasattr(module, "init_cache"):
            return f"{type(module).__name__} cannot generate (it has no init_cache)"
        if tokenizer is None:
            return "the data have no tokenizer"
        if self.sample_chat and not tokenizer.chat_templates:
            return f"objective.sample_chat is set, and the tokenizer {tokenizer.source} has no chat template"
        for prompt in self.sample_prompts:
            if self.sample_chat:
                length = len(encode_chat(tokenizer, _asked(prompt), add_generation_prompt=True))
            else:
                length = len(tokenizer.encode(prompt)) + (tokenizer.bos_id is not None)
            if not length and tokenizer.prefix_id is None:
                return f"{prompt!r} has no tokens, and the tokenizer neither BOS nor EOS to start from"
            if context is not None and length >= context:
                return f"{prompt[:40]!r} has {length} tokens, which fill model.max_length = {context}"
        return None

    def sample(self, model, key) -> list[str]:
        """A text for each of `sample_prompts`, prompt included; a reply in a line of its own.

        Args:
          model: a `fmjax.inference.model.Model`.
          key: random key that the continuations depend on.
        """
        seed = int(jax.random.bits(key) >> 1)
        prompts = [model.encode_chat(_asked(p)) if self.sample_chat else p for p in self.sample_prompts]
        texts = model.generate(
            prompts, max_new_tokens=self.sample_tokens, temperature=self.sample_temperature, seed=seed
        )
        between = "\n" if self.sample_chat else ""
        return [prompt + between + text for prompt, text in zip(self.sample_prompts, texts)]


def _asked(prompt: str) -> list[dict[str, str]]:
    """A chat in which a user has said this."""
    return [{"role": "user", "content": prompt}]
