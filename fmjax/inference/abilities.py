"""What a model can do: a table from verbs to what a model lacks for each, and the function that does it.

`Model.abilities`, `Model.can`, the model's methods and the evaluator's capabilities are this table. A verb of a package
of one's own is one entry more: `ABILITIES["plan"] = Ability(lacks, run)` where its module or objective is defined.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax.errors import InputError
from fmjax.inference import (
    autoregressive, embedding, generators, image_bits, kinds, pairs, pixels, prompts, rewards, scored_text, values,
)  # fmt: skip
from fmjax.inference import fill_mask as masks
from fmjax.registry import nearest


class Ability(NamedTuple):
    """A verb.

    Attributes:
      lacks: lacks(model) -> what it lacks, in a few words, or None.
      run: run(model, ...) for a model that lacks nothing.
    """

    lacks: Callable[[Any], str | None]
    run: Callable


def _lacks_vectors(model) -> str | None:
    if kinds.has_two_towers(model.module):
        return pairs.lacks_vectors(model)
    if pixels.lacks_palette(model) is None:
        return autoregressive.lacks_decoding(model)
    if kinds.reads_tokens(model.module):
        if kinds.has_hidden(model.module):
            return prompts.lacks_tokenizer(model)
    elif kinds.has_hidden(model.module) or kinds.has_pooled(model.module):
        return values.lacks_reading(model)
    return f"{type(model.module).__name__} has no method hidden(...), of whose output vectors are made"


def _embed(model, inputs: Sequence[Any] | None = None, **options) -> np.ndarray:
    """Vectors of texts, or of values of another modality by the name of its array (`images=[...]`)."""
    if kinds.has_two_towers(model.module):
        return pairs.embed(model, inputs, **options)
    named = [name for name in options if name not in ("pooling", "normalize", "progress", "batch_size")]
    if (inputs is not None) + len(named) != 1:
        raise InputError(f"embed takes one list of inputs, got {1 + len(named) if inputs is not None else len(named)}")
    modality = values.read_by_name(model, named[0]) if named else None
    if pixels.lacks_palette(model) is None:
        return pixels.embed(model, inputs if modality is None else options.pop(named[0]), **options)
    if modality is not None:
        return values.embed(model, options.pop(named[0]), modality=modality, **options)
    if not kinds.reads_tokens(model.module):
        return values.embed(model, inputs, **options)
    if options.get("pooling") is None:
        options["pooling"] = "mean" if model.is_bidirectional else "last"
    rows = model.framed(model.tokens(inputs))
    with model.inference():
        return embedding.embed(model.module, model.params, rows, **options)


def _lacks_masks(model) -> str | None:
    if not kinds.reads_tokens(model.module) or not kinds.fills_masks(model.module):
        return "that takes a masked language model, such as BERT"
    if getattr(model.tokenizer, "mask_id", None) is None:
        return "that takes a tokenizer with a mask token"
    return None


def _fill_mask(model, texts: Sequence[str], *, top_k: int = 5) -> list[list[list[tuple[str, float]]]]:
    tokenizer = model.tokenizer
    rows = model.framed(model.tokens(texts, special=True))
    with model.inference():
        found = masks.fill_mask(
            model.module, model.params, rows, tokenizer.mask_id, top_k=top_k, num_tokens=tokenizer.vocab_size
        )
    return [[[(tokenizer.decode([i]), p) for i, p in mask] for mask in text] for text in found]


def _lacks_classes(model) -> str | None:
    return (pairs if kinds.has_two_towers(model.module) else values).lacks_classes(model)


def _classify(model, inputs: Sequence[Any], classes: Sequence[str] | None = None, **options) -> list:
    """Likeliest classes of values: of those that the model was trained for, or of those told in words."""
    if kinds.has_two_towers(model.module):
        return pairs.classify(model, inputs, classes, **options)
    if classes is not None or "templates" in options:
        raise InputError(f"{model} has classes of its own; leave classes and templates out")
    return values.classify(model, inputs, **options)


def _lacks_policy(model) -> str | None:
    if callable(getattr(model, "act", None)):
        return None
    return "it is no policy: its class has no method act(observations)"


ABILITIES: dict[str, Ability] = {
    "score": Ability(scored_text.lacks, scored_text.score),
    "rolling": Ability(scored_text.lacks, scored_text.rolling),
    "generate": Ability(generators.lacks, generators.generate),
    "complete": Ability(autoregressive.lacks_decoding, autoregressive.complete),
    "embed": Ability(_lacks_vectors, _embed),
    "fill_mask": Ability(_lacks_masks, _fill_mask),
    "classify": Ability(_lacks_classes, _classify),
    "pixel_nats": Ability(pixels.lacks_palette, pixels.nats),
    "image_bits": Ability(image_bits.lacks_bits, image_bits.image_bits),
    "reward": Ability(rewards.lacks, rewards.reward),
    "process_reward": Ability(rewards.lacks, rewards.process_reward),
    "act": Ability(_lacks_policy, lambda model, observations: model.act(observations)),
}
"""Verb to ability. `complete` gives what `generate` does of a language model, with tokens and log-probabilities."""


def abilities(model) -> dict[str, Callable]:
    """What a model can do, by verb; its own functions (`Model.functions`) among them."""
    found = {verb: ability.run for verb, ability in ABILITIES.items() if ability.lacks(model) is None}
    return {verb: functools.partial(run, model) for verb, run in (found | model.functions).items()}


def can(model, verb: str) -> Callable:
    """The function of a verb. Raises InputError saying what the model lacks for it, and what it can do."""
    if verb in model.functions:
        return functools.partial(model.functions[verb], model)
    ability = ABILITIES.get(verb)
    if ability is not None and (lack := ability.lacks(model)) is None:
        return functools.partial(ability.run, model)
    known = abilities(model)
    if ability is None:
        lack = f"that is no ability{nearest(verb, [*ABILITIES, *known])}".removesuffix(".")
    raise InputError(f"{model} cannot {verb}: {lack} (what it can do: {', '.join(known) or 'nothing'})")
