"""What a `fmjax.inference.model.Model` does with texts: tokens of them, and continuations."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fmjax.data.tokenizers.published_settings import stated_eos_ids
from fmjax.inference import autoregressive, continuations, generators, kinds
from fmjax.inference import prompts as encoding
from fmjax.inference.beam import beam_search
from fmjax.inference.chat_settings import chat_settings
from fmjax.inference.checks import named_options
from fmjax.inference.engine import Engine


class ContinuesTexts:
    """Methods of `Model`, whose attributes they read. What makes values of another modality generates by them too."""

    def tokens(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Tokens of texts without anything in front or behind; `special` as in `encode_prompts`.

        Raises InputError without a tokenizer, for what is no text, or for a token that the model has no embedding for.
        """
        return encoding.encode_texts(self, texts, special)

    def with_bos(self, tokens: list[int], what: str, force: bool = False) -> list[int]:
        """The tokens with BOS in front where texts begin with it; where there are none, or with `force`, always with
        the tokenizer's `prefix_id`.

        Raises InputError naming `what` where that is needed and there is neither BOS nor EOS.
        """
        return encoding.with_bos(self, tokens, what, force)

    @property
    def is_bidirectional(self) -> bool:
        """Whether the model reads whole texts: an encoder, or an encoder-decoder's encoder."""
        return kinds.is_bidirectional(self.module)

    def framed(self, texts: Sequence[list[int]]) -> list[list[int]]:
        """Tokens of texts with what stands around a text in training: CLS and SEP or what takes their place."""
        return encoding.framed(self, texts)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text as a prompt, with BOS in front where training had it; of an empty text `prefix_id`.

        Raises InputError without a tokenizer, and for an empty text where there is neither BOS nor EOS.
        """
        return self.with_bos(self.tokens([text])[0], repr(text))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text: the tokenizer's EOS, and what published weights name (LLaMA 3 has several)."""
        published = self.config.get("published", {})
        files = {"generation_config.json": published.get("generation", {}), "config.json": published}
        ids = {*(stated_eos_ids(files) or ()), getattr(self.tokenizer, "eos_id", None)} - {None}
        return tuple(sorted(ids))

    def encode_prompts(self, prompts: Sequence[str | Sequence[int]], *, special: bool = False) -> list[list[int]]:
        """Tokens of prompts as the model continues them: texts as `encode` gives them, or the source of an
        encoder-decoder with its frame; token ids stay as they are.

        special: names of control tokens in the texts, such as <|im_start|>, stand for them.
        Raises: InputError for what is neither text nor token ids, or a text without a tokenizer.
        """
        return encoding.encode_prompts(self, prompts, special)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options) -> list[int]:
        """Tokens of a chat up to where the assistant's reply begins, as the model's chat template writes it.

        Args:
          messages: {"role": "user", "content": "Hello"} and the like.
          options: of `fmjax.data.tokenizers.chat.render_chat`, such as tools, or variables of the template.

        Raises: TokenizerError without a template, or where it refuses the messages.
        """
        return encoding.encode_chat(self, messages, **options)

    @named_options(continuations.Options)
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, template: Mapping[str, Any] | None = None, **options
    ) -> str:
        """The assistant's reply to a chat, by the model's own chat template.

        Args:
          messages, template: see `encode_chat`; `template` are its options.
          options: as in `generate`; temperature, top_k and the like that are not given are `chat_settings`.
        """
        options = self.chat_settings | options
        return self.generate([self.encode_chat(messages, **template or {})], **options)[0]

    @property
    def chat_settings(self) -> dict[str, float]:
        """How replies of a chat are drawn by default: as the model's generation_config.json says, or else greedily."""
        return chat_settings(self.config.get("published", {}).get("generation", {}))

    @property
    def generator(self):
        """What makes the model's values (`fmjax.inference.generators`): the generator that its objective names.

        Raises InputError for a model that cannot generate.
        """
        self.can("generate")
        return generators.kind_of(self)(self)

    def generate(self, prompts: Sequence[Any] | None = None, **options) -> list:
        """Values that the model makes: continuations of texts, or what its generator makes of prompts.

        Of texts: continuations, without the texts themselves; "" starts from BOS, or EOS
        where the tokenizer has none.

        Each ends at one of `eos_ids`, before a stop string, after `max_new_tokens`, or where the context is full.
        In float32 the same prompt and seed give the same text whatever else is in the list (`Options.seed`); copies of
        a prompt get different continuations. An encoder-decoder gives the targets of its prompts, the sources.

        Args:
          prompts: a list of texts, or of token ids that are taken as they are.
          options: of `fmjax.inference.continuations.Options`: max_new_tokens=64, temperature=1.0 (0 is greedy), top_k,
            top_p, min_p, repetition_penalty, seed, stop, stop_ids, num_samples, copies, batch_size, progress, draft.

        Of another generator: prompts are what it takes, none where it needs none, options are of its `Options`.

        Returns: for each prompt in order, its `num_samples` values, one after the other.
        Raises: InputError for a prompt that cannot be continued, or a bad value; without a tokenizer, as `complete`
          alone then has something to give.
        """
        return self.can("generate")(prompts, **options)

    @named_options(continuations.Options)
    def complete(self, prompts: Sequence[str | Sequence[int]], **options) -> list[continuations.Continuation]:
        """As `generate`, with tokens, their log-probabilities and why each continuation ended.

        Without a tokenizer prompts are token ids, and `text` is "".
        """
        return self.can("complete")(prompts, **options)

    @named_options(continuations.Options)
    def stream(self, prompts: Sequence[str | Sequence[int]], *, steps: int = 8, **options) -> Iterator[tuple[int, str]]:
        """As `generate`, yielding (index, piece of text) as the tokens come, every `steps` of them."""
        self.can("generate")
        pieces = self.pieces(prompts, steps=steps, **options)
        return ((piece.index, piece.text) for piece in pieces if piece.text)

    def unrolled(self, *, donate: bool = False):
        """The same model with its parameters layer by layer, of which generation needs no second copy.

        donate: free the stacked layers of this model, which is then of no more use.

        Raises InputError for a model that cannot generate.
        """
        self.can("complete")
        with self.inference():
            made = Engine(self.module, self.params, start_id=0, donate=donate)
        return dataclasses.replace(self, module=made.module, params=made.weights.params, kept={})

    @named_options(continuations.Options)
    def pieces(self, prompts: Sequence[str | Sequence[int]], **options) -> Iterator[continuations.Piece]:
        """As `stream`; the last piece of a continuation comes with the whole of it, as `complete` gives it."""
        self.can("complete")
        return autoregressive.pieces(self, prompts, continuations.Options(**options))

    @named_options(beam_search)
    def beam_search(
        self, prompts: Sequence[str | Sequence[int]], *, stop_ids: Sequence[int] = (), **options
    ) -> list[list[continuations.Continuation]]:
        """The likeliest continuations of each prompt, best first.

        Args:
          prompts: as in `generate`.
          options: of `fmjax.inference.beam.beam_search`: num_beams=4, max_new_tokens=64, length_penalty=0.6,
            normalization="gnmt", num_results=1, batch_size, cache="float".

        Raises: InputError for a prompt that cannot be continued, or a bad value.
        """
        self.can("complete")
        return autoregressive.search(self, prompts, stop_ids, **options)

    @property
    def engine(self) -> Engine:
        """The model ready to generate, made at first use and kept: its layers then lie in memory a second time.

        `kept.clear()` lets go of it.
        """
        self.can("complete")
        made = self.kept.get("engine")
        if made is None or self.kept["params"] is not self.params:
            made = autoregressive.make_engine(self)
            self.kept.update(engine=made, params=self.params)
        return made
