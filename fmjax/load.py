"""A trained model as one object: `m = fmjax.load(path)`, then `m.apply`, `m.generate`, `m.score`, `m.save`.

This module is itself callable (`fmjax.load(path)` is `fmjax.load.load(path)`), so that the function and the module it
lives in can share their promised name whichever is imported first.
"""

import dataclasses
import functools
import json
import logging
import pathlib
import sys
import types
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError
from fmjax.inference import engine, scoring
from fmjax.inference.sampler import Sampling
from fmjax.inference.text import StoppedText, check_stops
from fmjax.layers.checks import COMPUTE_DTYPES, check_choice

log = logging.getLogger("fmjax")


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What was drawn after one prompt.

    Attributes:
      index: which of the call's continuations it is.
      text: the text, up to a stop token or stop string.
      tokens: the drawn tokens, the last of them a stop token or the one that completed a stop string, if `finish` is
        "stop".
      logprobs: log-probability of each at the temperature that drew it.
      finish: "stop", "length" (`max_new_tokens` drawn) or "context" (the model's context is full).
    """

    index: int
    text: str
    tokens: list[int]
    logprobs: list[float]
    finish: str | None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A module with its parameters and what belongs to them.

    Attributes:
      module: Flax Linen module; `module.apply({"params": params}, ...)` is all there is to it.
      params: its parameters.
      config: the run's resolved configuration, nested plain data.
      tokenizer: see `fmjax.data.tokenizer.Tokenizer`; None where the folder has none.
      step: the training step of the checkpoint.
      source: where it was loaded from, for messages and results.
      identity: short strings that name the data it was trained on (`OpenData.identity`); empty where not known.
      add_bos: whether a text starts with BOS, as the rows of training did.
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
    kept: dict = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        count = sum(x.size for x in jax.tree.leaves(self.params))
        at = "" if self.step is None else f", step {self.step}"
        return f"Model({type(self.module).__name__}, {count:,} parameters, from {self.source}{at})"

    @property
    def context_length(self) -> int | None:
        """Tokens that scoring gives the model at most: `module.max_length`, or its training rows' length if shorter."""
        known = [getattr(self.module, "max_length", None), self.config.get("data", {}).get("sequence_length")]
        return min((length for length in known if length), default=None)

    def apply(self, tokens, **inputs) -> jax.Array:
        """Logits: [B, T, V] for tokens int [B, T]; more of the module's inputs by keyword."""
        arrays = {k: jnp.asarray(v) for k, v in inputs.items() if isinstance(v, np.ndarray | jax.Array | list)}
        options = tuple(sorted((k, v) for k, v in inputs.items() if k not in arrays))
        return _apply(self.module, self.params, jnp.asarray(tokens), arrays, options)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text as a prompt: with BOS in front where training had it, and BOS alone for an empty text.

        Raises InputError without a tokenizer, and for an empty text where there is no BOS.
        """
        return self._with_bos(self._tokens([text])[0], repr(text))

    def generate(self, prompts: Sequence[str], *, return_details: bool = False, **options) -> list:
        """Continuations of texts, without the texts themselves; "" starts from BOS.

        Each ends at the tokenizer's EOS, before a stop string, after `max_new_tokens`, or where the context is full. The
        same prompt and seed give the same text whatever else is in the list; copies of a prompt get different
        continuations.

        Args:
          prompts: a list of texts.
          return_details: return `Continuation`s, with tokens, log-probabilities and why each ended, in place of texts.
          options: as in `stream`.

        Returns: for each prompt in order, its `num_samples` continuations, one after the other.
        """
        found = list(self.stream(self._texts(prompts), details=True, **options))
        ended = sorted((part for part in found if part.finish), key=lambda part: part.index)
        texts = [""] * len(ended)
        for part in found:
            texts[part.index] += part.text
        if not return_details:
            return texts
        return [dataclasses.replace(part, text=text) for part, text in zip(ended, texts)]

    def stream(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        num_samples: int = 1,
        batch_size: int = 16,
        steps: int = 8,
        progress: str | None = None,
        details: bool = False,
    ) -> Iterator:
        """As `generate`, yielding (index, piece of text) as the tokens come, every `steps` of them.

        Args:
          prompts: a list of texts.
          max_new_tokens: tokens drawn at most for each.
          temperature, top_k, top_p, min_p, repetition_penalty: see `fmjax.inference.sampler.Sampling`.
          seed: of the random draws.
          stop: a continuation ends before the first of these strings; no part of one is ever given out.
          stop_ids: tokens that end a continuation, besides the tokenizer's EOS.
          num_samples: continuations of each prompt; sample j of prompt i has the index i * num_samples + j.
          batch_size: rows generated at once.
          steps: the host reads after so many tokens a row.
          progress: label of a progress bar; None shows none.
          details: yield `Continuation`s: pieces of text with `finish` None, then one without text for each that ended.

        Raises: InputError for a prompt that cannot be continued, or a bad value.
        """
        if num_samples < 1:
            raise InputError(f"num_samples must be at least 1, got {num_samples}")
        check_stops(stop)
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        ids = [self._with_bos(tokens, f"prompt {i}") for i, tokens in enumerate(self._tokens(self._texts(prompts)))]
        ids = [tokens for tokens in ids for _ in range(num_samples)]
        copies = engine.number_copies(ids)
        requests = [
            engine.Request(*parts) for parts in zip(ids, repeat(max_new_tokens), repeat(sampling), repeat(seed), copies)
        ]
        stop_ids = {*stop_ids} | ({self.tokenizer.eos_id} - {None})
        run = self.engine.run(requests, stop_ids=stop_ids, steps=steps, batch_size=batch_size, progress=progress)
        return self._read(run, ids, stop_ids, stop, details)

    def _read(self, run, ids, stop_ids, stop, details) -> Iterator:
        texts = [
            StoppedText(self.tokenizer, () if self.engine.start_id is not None else tokens, stop) for tokens in ids
        ]
        drawn = [([], []) for _ in ids]
        for chunk in run:
            index, text = chunk.index, texts[chunk.index]
            for held, new in zip(drawn[index], (chunk.tokens, chunk.logprobs)):
                held += new
            shown = chunk.tokens[:-1] if chunk.tokens[-1] in stop_ids else chunk.tokens
            piece = text.push(shown, last=chunk.finish is not None)
            if piece:
                yield Continuation(index, piece, [], [], None) if details else (index, piece)
            finish = "stop" if text.stopped else chunk.finish
            if text.stopped:
                run.stop(index)
            if finish and details:
                count = text.num_tokens if text.stopped else None
                yield Continuation(index, "", *(held[:count] for held in drawn[index]), finish)

    @property
    def engine(self) -> engine.Engine:
        """The model ready to generate, made at first use and kept: its layers then lie in memory a second time."""
        made = self.kept.get("engine")
        if made is None or self.kept["params"] is not self.params:
            size, start = None, None
            if self.tokenizer is not None:
                size, start = self.tokenizer.vocab_size, self.tokenizer.bos_id
            start = (
                getattr(self.module, "start_id", None) if getattr(self.module, "start_id", None) is not None else start
            )
            made = engine.Engine(self.module, self.params, num_tokens=size, start_id=start)
            self.kept.update(engine=made, params=self.params)
        return made

    def score(self, pairs: Sequence[tuple[str, str]], *, progress: str | None = None) -> list[tuple[float, bool, int]]:
        """Log-likelihoods of continuations.

        Tokenised as lm-evaluation-harness does: spaces at the end of a context belong to the continuation, and the
        continuation's tokens are those that `context + continuation` has beyond the context's. A context that does not
        fit keeps its end (the number of such is logged).

        Args:
          pairs: (context, continuation); an empty context is BOS.
          progress: label of a progress bar; None shows none.

        Returns: (log-likelihood in nats, whether every token was the likeliest, number of tokens) for each.
        Raises: InputError where the continuation alone is longer than the context, or has no token of its own.
        """
        pairs = [_move_spaces(context, continuation) for context, continuation in pairs]
        wholes = self._tokens([context + continuation for context, continuation in pairs])
        contexts = self._tokens([context for context, _ in pairs])
        segments = []
        for (context, continuation), whole, before in zip(pairs, wholes, contexts):
            if continuation and len(whole) <= len(before):
                raise InputError(
                    f"the continuation {continuation!r} has no token of its own after the context ending in "
                    f"{context[-20:]!r}: the tokenizer joins them; move their border"
                )
            tokens = self._with_bos(whole, repr(continuation), force=not before)
            start = len(tokens) - (len(whole) - len(before))
            segments.append(scoring.Segment(tokens, start))
        segments, cut = _fit(segments, self.context_length)
        if cut:
            log.warning("%d of %d contexts were longer than the model's: their beginning was left out", cut, len(pairs))
        return self._score(segments, progress)

    def loglikelihood_rolling(self, texts: Sequence[str], *, progress: str | None = None) -> list[tuple[float, int]]:
        """(log-likelihood in nats, number of tokens) of whole texts of any length, from BOS.

        In windows of the model's context, as `fmjax.inference.scoring.rolling_windows` says. EOS is not scored.
        progress: label of a progress bar; None shows none.
        """
        segments, owners = [], []
        for index, tokens in enumerate(self._tokens(self._texts(texts))):
            first = self._with_bos([], f"text {index}")[0]
            windows = scoring.rolling_windows(tokens, first, self.context_length or max(1, len(tokens)))
            segments += windows
            owners += [index] * len(windows)
        totals = [[0.0, 0] for _ in texts]
        for owner, (loglikelihood, _, count) in zip(owners, self._score(segments, progress)):
            totals[owner][0] += loglikelihood
            totals[owner][1] += count
        return [(loglikelihood, count) for loglikelihood, count in totals]

    def save(self, directory: str | pathlib.Path, format: str = "fmjax") -> None:
        """Writes a folder that `fmjax.load` accepts: config.json, parameters, tokenizer.

        Raises InputError for a format that does not exist, or a directory that already holds a model.
        """
        if format != "fmjax":
            raise InputError(f"format {format!r} is not one that models are saved in; there is: 'fmjax'")
        directory = pathlib.Path(directory)
        if (directory / "config.json").exists() or (directory / "checkpoints").exists():
            raise InputError(f"{str(directory)!r} already holds a model; save to a new directory")
        from fmjax.training.checkpoint import save_params

        directory.mkdir(parents=True, exist_ok=True)
        save_params(directory, self.params, self.step or 0)
        if self.tokenizer is not None:
            self.tokenizer.save(directory)
        # Last: a folder with a config.json is whole.
        (directory / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")

    def _score(self, segments, progress=None) -> list[tuple[float, bool, int]]:
        scores = scoring.score_segments(
            self.module, self.params, segments, context_length=self.context_length, progress=progress
        )
        return [(score.loglikelihood, score.is_greedy, score.num_tokens) for score in scores]

    def _texts(self, texts: Sequence[str]) -> Sequence[str]:
        if isinstance(texts, str):
            raise InputError("expected a list of texts, got one text; put it in a list")
        return texts

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if self.tokenizer is None:
            raise InputError(f"the model from {self.source} has no tokenizer; use its module and params with tokens")
        return self.tokenizer.encode_batch(texts)

    def _with_bos(self, tokens: list[int], what: str, force: bool = False) -> list[int]:
        bos = self.tokenizer.bos_id
        if bos is None and (force or not tokens):
            raise InputError(f"{what}: nothing to start from: the text before it is empty and the tokenizer has no BOS")
        return [bos, *tokens] if bos is not None and (self.add_bos or force or not tokens) else tokens


@functools.partial(jax.jit, static_argnames=("module", "options"))
def _apply(module, params, tokens, arrays, options):
    return module.apply({"params": params}, tokens, **arrays, **dict(options))


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of the context moved to the front of the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _fit(segments, context_length):
    """Segments cut from the left to the context, and how many were."""
    if context_length is None:
        return segments, 0
    fitted, cut = [], 0
    for segment in segments:
        extra = max(0, len(segment.tokens) - 1 - context_length)
        if extra >= segment.start:
            wanted = len(segment.tokens) - segment.start
            raise InputError(f"a continuation has {wanted} tokens, more than the model's context of {context_length}")
        fitted.append(scoring.Segment(segment.tokens[extra:], segment.start - extra))
        cut += extra > 0
    return fitted, cut


def load(path: str | pathlib.Path, dtype: str = "float32", step: int | None = None) -> Model:
    """Loads a model.

    Args:
      path: a run's workdir, one of its checkpoints (`WORKDIR/checkpoints/STEP`), or a folder that `Model.save` wrote.
      dtype: "float32", "bfloat16" or "float16": of the parameters and of what is computed with them.
      step: which checkpoint of a workdir; None is the newest complete one.

    Raises: InputError for a path that holds no model, saying what was found; CheckpointError for a damaged checkpoint.
    """
    check_choice("dtype", dtype, COMPUTE_DTYPES)
    folder = pathlib.Path(path).expanduser()
    if not folder.exists():
        raise InputError(f"{str(path)!r} does not exist; {_EXPECTED}")
    if folder.is_dir() and folder.parent.name == "checkpoints" and folder.name.isdigit() and step is None:
        folder, step = folder.parent.parent, int(folder.name)
    for recognises, reader in READERS:
        if recognises(folder):
            return reader(folder, dtype, step)
    found = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else ["a file"]
    raise InputError(f"{str(path)!r} is not a model (found there: {', '.join(found) or 'nothing'}); {_EXPECTED}")


_EXPECTED = (
    "expected the workdir of a run or a folder written by Model.save, with config.json and checkpoints/ "
    "(Hugging Face folders and hub ids are not supported)"
)


def _is_workdir(folder: pathlib.Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def _load_workdir(folder: pathlib.Path, dtype: str, step: int | None) -> Model:
    from fmjax.config import load_workdir_config
    from fmjax.training.checkpoint import load_params
    from fmjax.training.setup import build_module

    config = load_workdir_config(folder)
    if not isinstance(config.get("model"), dict):
        raise InputError(f"{str(folder / 'config.json')!r} has no section 'model'; is it the config of a run?")
    params, step = load_params(folder, step)
    tokenizer = _find_tokenizer(folder)
    # What else the data told the module is in the config: the trainer writes it there.
    known = {} if tokenizer is None else {"vocab_size": tokenizer.vocab_size}
    module = build_module(config, known)
    filled = {k: getattr(module, k) for k, v in config["model"].items() if v is None and k in known}
    config = {**config, "model": {**config["model"], **filled}}
    vocab_size = getattr(module, "vocab_size", None)
    if tokenizer is not None and vocab_size is not None and vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"{str(folder)!r}: the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary only "
            f"{vocab_size}; is tokenizer.* from another run?"
        )
    module, params = cast(module, params, dtype)
    return Model(module, params, config, tokenizer, step, str(folder), _data_identity(folder, step))


def _data_identity(folder: pathlib.Path, step: int) -> dict:
    """What the checkpoint says its data were; empty for one that `Model.save` wrote."""
    import orbax.checkpoint as ocp

    path = (folder / "checkpoints" / str(step) / "meta").absolute()
    if not path.is_dir():
        return {}
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(path)["data"]


def _find_tokenizer(folder: pathlib.Path):
    from fmjax.data.tokenizer import load_tokenizer

    return load_tokenizer(folder) if any(folder.glob("tokenizer.*")) else None


def cast(module: nn.Module, params, dtype: str) -> tuple[nn.Module, Any]:
    """Module and parameters that compute in `dtype`; integers stay as they are."""
    if getattr(module, "dtype", dtype) != dtype:
        module = module.clone(dtype=dtype)
    return module, jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)


READERS = [(_is_workdir, _load_workdir)]
"""Which folders can be read: (recognises(folder), reader(folder, dtype, step) -> Model); the first that fits reads."""


class _CallableModule(types.ModuleType):
    """`import fmjax.load` makes this module an attribute of the package, where the function is promised."""

    def __call__(self, path, dtype="float32", step=None) -> Model:
        return load(path, dtype, step)


_CallableModule.__call__.__doc__ = load.__doc__
sys.modules[__name__].__class__ = _CallableModule
