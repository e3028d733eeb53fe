"""A trained model as one object: `m = fmjax.load(path)`, then `m.apply`, `m.generate`, `m.score`, `m.save`."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.adapt.adapter import attached
from fmjax.adapt.packed import packed_section
from fmjax.data.codecs.base import save_codecs
from fmjax.errors import InputError
from fmjax.inference import abilities, kinds, pairs, scored_text, scoring, values
from fmjax.inference.checks import as_tokens, check_inputs, check_no_text, check_options, named_options
from fmjax.inference.continues_texts import ContinuesTexts
from fmjax.layers.checks import check_choice
from fmjax.layers.weights import bare, count, has_adapters, merged, without_adapters
from fmjax.models.state import kept_state, state_collections
from fmjax.parallel.placement import Placement
from fmjax.registry import nearest


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model(ContinuesTexts):
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
      adapters: low-rank adapters that it knows, by name (`fmjax.adapt.adapter.Adapter`).
      adapter: the name of the one that its parameters have beside them; None for the base alone.
      open_path: as `fmjax.load`, for generators that go on from what other runs make; None where there is no path.
      open_other: from the name of another model of its objective to that model (`opened`); None where there are none.
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
    open_other: Callable | None = None
    open_path: Callable | None = None
    adapters: dict[str, Any] = dataclasses.field(default_factory=dict)
    adapter: str | None = None

    def __repr__(self) -> str:
        size = count(self.params)
        at = "" if self.step is None else f", step {self.step}"
        return f"Model({type(self.module).__name__}, {size:,} parameters, from {self.source}{at})"

    @property
    def base_params(self):
        """Its parameters without an adapter."""
        return self.params if self.adapter is None else bare(self.params)

    def knowing(self, adapters: dict[str, Any]):
        """The same model, which knows these adapters too."""
        return dataclasses.replace(self, adapters=self.adapters | adapters)

    def with_adapter(self, name: str | None):
        """The same model with one of its `adapters` beside its parameters, of which there is no second copy; None is
        the base alone.

        Raises InputError for a name that it does not know.
        """
        if name == self.adapter:
            return self
        if name is not None and name not in self.adapters:
            known = ", ".join(self.adapters) or "none; give fmjax.load some: adapters={NAME: PATH}"
            raise InputError(f"{self} knows no adapter {name!r}{nearest(name, self.adapters)} Known: {known}")
        params, source = self.base_params, self.source
        if self.adapter is not None:
            source = source.removesuffix(f" with {self.adapters[self.adapter].source}")
        if name is not None:
            params, source = attached(params, self.adapters[name]), f"{source} with {self.adapters[name].source}"
        return dataclasses.replace(self, params=params, source=source, adapter=name, kept={})

    def merged(self):
        """The same model with every weight computed, adapters and kernels of few bits too: arrays alone, as large as
        those of a model that was never cut down, and faster to compute a token at a time with."""
        return dataclasses.replace(self, params=merged(self.params), adapters={}, adapter=None, kept={})

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
    def served(self):
        """The model that its run has made: of a module that trains more than that, such as PPO's values, the part that
        its `SERVES` names; else itself."""
        name = getattr(self.module, "SERVES", None)
        if name is None:
            return self
        section = self.config.get("model", {}).get(name)
        config = self.config if section is None else {**self.config, "model": section}
        module, params = getattr(self.module, name), self.params and self.params[name]
        return dataclasses.replace(self, module=module, params=params, config=config, kept={})

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

    def opened(self, name: str):
        """Another model that the objective names by path, such as its first stage: `fmjax.objectives.base.OtherModel`.

        It is loaded when it is first asked for. Raises InputError where it cannot be.
        """
        kept = self.kept.setdefault("others", {})
        if name not in kept:
            if self.open_other is None:
                raise InputError(f"{self} does not know where its {name} is; load it with fmjax.load")
            kept[name] = self.open_other(name)
        return kept[name]

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

    def save(self, directory: str | pathlib.Path, format: str = "fmjax", **options) -> None:
        """Writes a folder that `fmjax.load` accepts: config.json, parameters, carry, tokenizer, codecs.

        Args:
          format: "fmjax", in which kernels of few bits stay so, or "hf": a Hugging Face folder, which `transformers`
            loads with equal logits; both with the adapter merged into the kernels. "peft": the adapter alone, which
            `peft` puts on its base.
          options: of `fmjax.interop.exporter.save_published`, for "hf".

        Adapters that its own run trained beside kernels of few bits are merged with all of these into floats.

        Raises InputError for a format that does not exist, a directory that already holds a model, for "hf", a model
        that no published class computes exactly, for "peft", one without an adapter, and for an adapter beside kernels
        of few bits, which it cannot be merged into.
        """
        check_choice("format", format, ("fmjax", "hf", "peft"))
        if format == "peft":
            from fmjax.interop.peft import save as save_peft

            if self.adapter is None:
                raise InputError(f"{self} goes by no adapter to save; choose one: with_adapter(NAME)")
            save_peft(self.adapters[self.adapter], self, directory)
            return
        if self.adapter is None and has_adapters(self.params):
            return self.merged().save(directory, format, **options)
        if format == "hf":
            from fmjax.interop.exporter import save_published

            save_published(self, directory, **options)
            return
        from fmjax.checkpoint_files import save_params
        from fmjax.interop.exporter import whole_folder

        params = without_adapters(self.params)
        with whole_folder(directory) as folder:
            save_params(folder, params, self.step or 0, self.carry)
            if self.tokenizer is not None:
                self.tokenizer.save(folder)
            save_codecs(self.codecs, folder)
            config = {key: value for key, value in self.config.items() if key != "weights"}  # which are computed
            if (self.config.get("weights") or {}).get("name") == "sparse":  # what rounds it later asks for this
                before = {"after": config["compression"]} if "compression" in config else {}
                config["compression"] = {"method": "sparse"} | before
            packed = packed_section(params)
            config |= {} if packed is None else {"weights": packed}
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@functools.partial(jax.jit, static_argnames=("module", "options"))
def _apply(module, variables, tokens, arrays, options):
    if tokens is not None and kinds.has_two_towers(module):  # whose first argument is the images
        arrays, tokens = arrays | {"tokens": tokens}, None
    first = () if tokens is None else (tokens,)
    return module.apply(variables, *first, **arrays, **dict(options))
