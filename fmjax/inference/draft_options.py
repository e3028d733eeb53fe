"""What is asked to draft for a model: by name, or another model."""

import re
from typing import Any

from fmjax.errors import InputError
from fmjax.inference import kinds
from fmjax.inference.checks import check_whole
from fmjax.inference.drafts import Drafted, DraftModel, EarlyExit, Heads, Lookup
from fmjax.registry import nearest

LOOKUP, LAYERS = "lookup", "layers:"

EXPECTED = f"expected '{LOOKUP}', '{LAYERS}K' for the first K layers, or a model"


def is_name(draft: Any) -> bool:
    """Whether a text says what drafts by itself, and is no path of a model."""
    return isinstance(draft, str) and (draft == LOOKUP or draft.startswith(LAYERS))


def check(draft: Any, tokens: int | None) -> None:
    """Raises InputError for what is neither a name nor a model, and for a number of tokens that is not possible."""
    if tokens is not None:
        check_whole(1, draft_tokens=tokens)
        if draft is None or isinstance(draft, Drafted):
            raise InputError(f"draft_tokens = {tokens} are of a draft by name or a model; leave it out, or give one")
    if isinstance(draft, str) and not is_name(draft):
        hint = nearest(draft, [LOOKUP]) if "/" not in draft else "; load a path: fmjax.load(PATH)."
        raise InputError(f"draft = {draft!r}: {EXPECTED}{hint}")
    if isinstance(draft, str) and draft != LOOKUP and not re.fullmatch(r"[1-9][0-9]*", draft.removeprefix(LAYERS)):
        raise InputError(f"draft = {draft!r}: {EXPECTED}; K is a whole number of at least 1")
    if draft is not None and not isinstance(draft, str | Drafted) and not hasattr(draft, "module"):
        raise InputError(f"draft = {draft!r}: {EXPECTED}")


def drafted(model, draft: Any, tokens: int | None) -> Drafted | None:
    """The draft of a model (`fmjax.inference.model.Model`); None for none.

    Args:
      draft: None, a name, a model (one that continues texts, or heads that were trained on this one), or a `Drafted` of
        one's own, which has its number of tokens.
      tokens: proposed a pass; None is the draft's own number.

    Raises InputError for a draft that does not fit: another vocabulary, another placement, more layers than there are,
    more tokens than the context has room for.
    """
    check(draft, tokens)
    if draft is None:
        return None
    found = draft if isinstance(draft, Drafted) else _made(model, draft, tokens)
    context = getattr(model.module, "max_length", None)
    if context is not None and found.draft.tokens >= context:
        raise InputError(
            f"draft_tokens = {found.draft.tokens}: a pass reads them behind a token of the text, and {model} has a "
            f"context of {context}; give at most {context - 1}"
        )
    return found


def _made(model, draft: Any, tokens: int | None) -> Drafted:
    """Of a name or of a model."""
    own = {} if tokens is None else {"tokens": tokens}
    if draft == LOOKUP:
        return Drafted(Lookup(**own))
    if isinstance(draft, str):
        return Drafted(EarlyExit(_layers(model, draft), **own))
    if (draft.placement is None) != (model.placement is None):
        raise InputError(f"the draft {draft} and {model} are to lie on the same devices; load both with the same mesh")
    if kinds.drafts(draft.module):
        return Drafted(_heads(model, draft, tokens), draft.params)
    return _model(model, draft, own)


def _layers(model, draft: str) -> int:
    """Raises InputError for a number of layers that the model does not have, or no stack of layers."""
    layers, config = int(draft.removeprefix(LAYERS)), getattr(model.module, "transformer", None)
    if config is None or not hasattr(model.module, "enter"):
        raise InputError(f"draft = {draft!r}: {type(model.module).__name__} has no stack of layers to leave early")
    if layers >= config.num_layers:
        raise InputError(f"draft = {draft!r}: the model has {config.num_layers} layers; leave some of them out")
    return layers


def _heads(model, draft, tokens: int | None) -> Heads:
    number, size = draft.module.num_heads, getattr(model.module, "hidden_size", None)
    if draft.module.hidden_size != size:
        raise InputError(
            f"the heads of {draft} read vectors of {draft.module.hidden_size} numbers, and the last layer of {model} "
            f"gives {size}: they were trained on another model"
        )
    if tokens is not None and tokens > number:
        raise InputError(f"draft_tokens = {tokens}: {draft} has {number} heads, each of which drafts a token")
    return Heads(draft.module.clone(parent=None), number if tokens is None else tokens)


def _model(model, draft, own: dict) -> Drafted:
    draft.can("complete")
    if not kinds.can_rewind(draft.module):
        raise InputError(f"{draft} cannot draft: its cache gives nothing back; models such as 'gpt' and 'llama' can")
    prints = [getattr(one.tokenizer, "fingerprint", None) for one in (model, draft)]
    sizes = [one.module.vocab_size for one in (model, draft)]
    same = prints[0] == prints[1] if None not in prints else sizes[0] == sizes[1]
    if not same:
        raise InputError(
            f"the draft {draft} has another vocabulary than {model} ({sizes[1]} and {sizes[0]} tokens): a draft has to "
            "have the model's tokenizer; draft = 'lookup' needs none"
        )
    engine = draft.engine
    return Drafted(DraftModel(engine.module, **own), engine.weights)
