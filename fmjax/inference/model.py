"""A trained model as one object: `m = fmjax.load(path)`, then `m.apply`, `m.generate`, `m.score`, `m.save`."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.data.codecs.base import save_codecs
from fmjax.data.tokenizers.published_settings import stated_eos_ids
from fmjax.errors import InputError
from fmjax.inference import (
    abilities, autoregressive, continuations, generators, kinds, pairs, scored_text, scoring, values,
)  # fmt: skip
from fmjax.inference import prompts as encoding
from fmjax.inference.beam import beam_search
from fmjax.inference.chat_settings import chat_settings
from fmjax.inference.checks import as_tokens, check_inputs, check_no_text, check_options, named_options
from fmjax.inference.engine import Engine
from fmjax.layers.checks import check_choice
from fmjax.layers.weights import merged
from fmjax.models.state import kept_state, state_collections
from fmjax.parallel.placement import Placement


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A module with its parameters and what belongs to them.

    What it can do is a table (`fmjax.inference.abilities`), whose verbs the methods here are: `abilities`, `can`.

    Attributes:
      module: Flax Linen module; `module.apply(model.variables, ...)` is all there is to it.
      params: its parameters.
      config: the run's resolved configuration, nested plain data.
      tokenizer: see `fmjax.data.tokenizers.loading.Tokenizer`; None where the folder has none.
      step: the training step of the checkpoint.
      source: where it was loaded from, for messages and results.
      identity: short strings that name the data it was trained on (`OpenData.identity`); empty where not known.
      add_bos: whether a text starts with BOS, as the rows of training did.
      placement: the mesh that the parameters are split over; None for one device.
      codecs: by modality, what makes arrays of values and values of arrays (`fmjax.data.codecs`); text has the
        tokenizer.
      carry: what the objective of the run carried besides the parameters, or None.
      functions: abilities of its own: functions of (model, inputs) by name; pytrees, such as `jax.tree_util.Partial`,
        of what they compute with.
      kept: what methods keep for their next call (`engine`).
    """

    module: nn.Module
    params: Any
    config: dict = dataclasses.field(default_factory=dict)
    tokenizer: Any = None
    step: int | None = None
    source: str = "memory"
    identity: dict = dataclasses.field(default_factory=dict)
    add_bos: bool = True
    placement: Placement | None = None
    functions: dict[str, Any] = dataclasses.field(default_factory=dict)
    codecs: dict[str, Any] = dataclasses.field(default_factory=dict)
    carry: Any = None
    kept: dict = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        count = sum(x.size for x in jax.tree.leaves(self.params))
        at = "" if self.step is None else f", step {self.step}"
        return f"Model({type(self.module).__name__}, {count:,} parameters, from {self.source}{at})"

    @property
    def state(self) -> dict[str, Any]:
        """The module's state (`fmjax.models.state`), which the run carried; {} for a module without any.

        Raises InputError for a module with state and a carry without it.
        """
        state = kept_state(self.carry)
        if missing := [name for name in state_collections(self.module) if name not in state]:
            raise InputError(f"{self} has no {missing[0]!r}, which its module keeps besides parameters, in its carry")
        return state

    @property
    def variables(self) -> dict[str, Any]:
        """What the module is applied to: {"params": parameters}, and its state."""
        return {"params": self.params, **self.state}

    @property
    def context_length(self) -> int | None:
        """Tokens that the model reads at most, in scoring as in generation and where it is exported to:
        `module.max_length`, whatever the length of its training rows; None where it says none."""
        return getattr(self.module, "max_length", None)

    @functools.cached_property
    def objective(self):
        """The objective that the model was trained with; None where the config tells none."""
        from fmjax.config import build
        from fmjax.objectives import OBJECTIVES

        section = self.config.get("objective")
        return build(section, OBJECTIVES) if section else None

    @property
    def codec(self):
        """Of the values that the model makes: that of `objective.makes`, a modality; None for texts."""
        return self.codecs.get(getattr(self.objective, "makes", None))

    @property
    def reads(self) -> dict[str, Any]:
        """Codecs, by modality, of the values that the model reads; none where it reads tokens alone."""
        return values.reads(self)

    @property
    def abilities(self) -> dict[str, Callable]:
        """What the model can do: verb ("score", "generate", "embed", "classify", ...) to function."""
        return abilities.abilities(self)

    def can(self, verb: str) -> Callable:
        """The function of one of its abilities: `m.can("embed")(texts)`.

        Raises InputError for another verb, saying what the model lacks for it and what it can do.
        """
        return abilities.can(self, verb)

    def apply(self, tokens=None, **inputs) -> jax.Array:
        """Logits: [B, T, V] for tokens int [B, T]; more of the module's inputs by keyword, all where none is tokens.

        Raises InputError for a text, for ids that are not [B, T] or outside the vocabulary, and for more tokens than
        there are learned positions (where they can be read: not under jit).
        """
        check_no_text(tokens)
        if tokens is None and not inputs:
            raise InputError(f"{self} takes {', '.join(kinds.inputs(self.module))}; give apply some of that")
        if kinds.reads_source(self.module) and "source_tokens" not in inputs:
            raise InputError(f"{self} translates a source: give apply(tokens, source_tokens=...), tokens of the target")
        arrays = {k: jnp.asarray(v) for k, v in inputs.items() if isinstance(v, np.ndarray | jax.Array | list)}
        options = tuple(sorted((k, v) for k, v in inputs.items() if k not in arrays))
        if tokens is not None:
            tokens = as_tokens(tokens)
            check_inputs(self.module, self.params, tokens, arrays)
        with self.inference():
            return _apply(self.module, self.variables, tokens, arrays, options)

    def inference(self) -> contextlib.AbstractContextManager:
        """The context in which the parameters, as they lie, are computed with; its methods enter it themselves."""
        return contextlib.nullcontext() if self.placement is None else self.placement.inference()

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
            top_p, min_p, repetition_penalty, seed, stop, stop_ids, num_samples, copies, batch_size, progress.

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

    def unrolled(self, *, donate: bool = False) -> "Model":
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
            normalization="gnmt", num_results=1, batch_size.

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

    @named_options()
    def score(self, pairs: Sequence[tuple[str, str]], *, progress: str | None = None) -> list[tuple[float, bool, int]]:
        """Log-likelihoods of continuations.

        Tokenised as lm-evaluation-harness does: spaces at the end of a context belong to the continuation, and the
        continuation's tokens are those that `context + continuation` has beyond the context's. A context that does not
        fit keeps its end (the number of such is logged).

        Args:
          pairs: (context, continuation); an empty context is the tokenizer's `prefix_id`, and an empty continuation
            scores (0.0, True, 0).
          progress: label of a progress bar; None shows none.

        Returns: (log-likelihood in nats, whether every token was the likeliest, number of tokens) for each.
        Raises: InputError for what is no pair of texts, where the continuation alone is longer than the context, or has
          no token of its own.
        """
        return self.can("score")(pairs, progress=progress)

    @named_options()
    def loglikelihood_rolling(self, texts: Sequence[str], *, progress: str | None = None) -> list[tuple[float, int]]:
        """(log-likelihood in nats, number of tokens) of whole texts of any length, from the tokenizer's
        `prefix_id`.

        In windows of the model's context, as `fmjax.inference.scoring.rolling_windows` says. EOS is not scored.
        progress: label of a progress bar; None shows none.
        """
        return self.can("rolling")(texts, progress=progress)

    def iter_scores(
        self, segments: Sequence[scoring.Segment], progress: str | None = None, unit: str = "texts"
    ) -> Iterator[tuple[int, tuple[float, bool, int]]]:
        """(index, score as in `score`) of segments of tokens, as they are done; see `fmjax.inference.scoring`."""
        return scored_text.iter_scores(self, segments, progress, unit)

    def embed(
        self, inputs: Sequence[Any] | None = None, *, pooling: str | None = None, normalize: bool = False,
        progress: str | None = None, **named: Sequence[Any],
    ) -> np.ndarray:  # fmt: skip
        """Vectors of texts or of other values that the model reads, float32 [N, D], from the last layer's output.

        Args:
          inputs: texts, or values of the modality that the model reads.
          pooling: "mean", "first" or "last" of what a text or value has; None is what its module says (`pooled`), or
            else "mean" for those that read whole texts and "last" for decoders, whose last token alone has seen the
            whole text.
          normalize, progress: see `fmjax.inference.embedding.embed`.
          named: in place of `inputs`, by the name of the module's input: images=[...]; and texts=[...], of a model of
            images and texts in one space, whose vectors have length 1 and are pooled as it was trained.

        Raises InputError as `fmjax.inference.embedding.embed`, and for inputs of another kind.
        """
        options = dict(pooling=pooling, normalize=normalize, progress=progress)
        check_options("embed", named, [*options, *values.names(self), *["texts"] * kinds.has_two_towers(self.module)])
        return self.can("embed")(inputs, **options, **named)

    @named_options(values.classify, pairs.classify)
    def classify(
        self, inputs: Sequence[Any], classes: Sequence[str] | None = None, **options
    ) -> list[list[tuple[Any, float]]]:
        """For each value the likeliest classes, (label, probability) each: see `fmjax.inference.values.classify`.

        classes: of a model of images and texts, what they are in words: `fmjax.inference.pairs.classify`.
        """
        return self.can("classify")(inputs, **({} if classes is None else {"classes": classes}), **options)

    @named_options()
    def fill_mask(self, texts: Sequence[str], *, top_k: int = 5) -> list[list[list[tuple[str, float]]]]:
        """For each text, for each mask token in it ("[MASK]" for BERT, "<mask>" for RoBERTa), the `top_k` likeliest
        tokens, (text, probability) each.

        Raises InputError for a model that is no masked language model, or a text without mask.
        """
        return self.can("fill_mask")(texts, top_k=top_k)

    @property
    def is_bidirectional(self) -> bool:
        """Whether the model reads whole texts: an encoder, or an encoder-decoder's encoder."""
        return kinds.is_bidirectional(self.module)

    def framed(self, texts: Sequence[list[int]]) -> list[list[int]]:
        """Tokens of texts with what stands around a text in training: CLS and SEP or what takes their place."""
        return encoding.framed(self, texts)

    def save(self, directory: str | pathlib.Path, format: str = "fmjax", **options) -> None:
        """Writes a folder that `fmjax.load` accepts: config.json, parameters, carry, tokenizer, codecs.

        Args:
          format: "fmjax", or "hf": a Hugging Face folder, which `transformers` loads with equal logits.
          options: of `fmjax.interop.exporter.save_published`, for "hf".

        Raises InputError for a format that does not exist, a directory that already holds a model, or, for "hf", a
        model that no published class computes exactly.
        """
        check_choice("format", format, ("fmjax", "hf"))
        if format == "hf":
            from fmjax.interop.exporter import save_published

            save_published(self, directory, **options)
            return
        from fmjax.checkpoint_files import save_params
        from fmjax.interop.exporter import whole_folder

        with whole_folder(directory) as folder:
            save_params(folder, merged(self.params), self.step or 0, self.carry)
            if self.tokenizer is not None:
                self.tokenizer.save(folder)
            save_codecs(self.codecs, folder)
            config = {key: value for key, value in self.config.items() if key != "weights"}  # which are computed
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

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


@functools.partial(jax.jit, static_argnames=("module", "options"))
def _apply(module, variables, tokens, arrays, options):
    if tokens is not None and kinds.has_two_towers(module):  # whose first argument is the images
        arrays, tokens = arrays | {"tokens": tokens}, None
    first = () if tokens is None else (tokens,)
    return module.apply(variables, *first, **arrays, **dict(options))
