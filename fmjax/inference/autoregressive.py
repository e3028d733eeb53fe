"""Texts, a token after the other: `fmjax.inference.continuations` as a generator."""

import dataclasses
from collections.abc import Iterator, Sequence

from fmjax.errors import InputError
from fmjax.inference import continuations, draft_options, kinds
from fmjax.inference.engine import Engine
from fmjax.parallel.placement import each_inside


def lacks_decoding(model) -> str | None:
    """What a model lacks to continue tokens."""
    if not kinds.reads_tokens(model.module):
        return f"it reads {', '.join(kinds.inputs(model.module)) or 'nothing'}, and tokens are continued"
    if kinds.has_cache(model.module):
        return None
    if kinds.is_bidirectional(model.module):
        return "it is an encoder, which reads whole texts"
    return (
        "it has no init_cache(batch_size, max_length), which the engine decodes with; decoder language models such as "
        "'gpt' and 'llama' have it"
    )


class Autoregressive:
    """Continuations of texts or token ids."""

    Options = continuations.Options

    def __init__(self, model):
        self.model = model

    @staticmethod
    def lacks(model) -> str | None:
        if lack := lacks_decoding(model):
            return lack
        if model.tokenizer is None:
            return "it has no tokenizer to write texts with; Model.complete gives the tokens that follow token ids"
        return None

    def default_prompts(self) -> Sequence[str]:
        raise InputError(f'{self.model} continues texts: give it some, [""] to start from nothing')

    def run(self, prompts: Sequence, options: continuations.Options) -> Iterator[tuple[int, str]]:
        """(index, text) of each continuation when it has ended."""
        found = pieces(self.model, prompts, options)
        return ((piece.index, piece.whole.text) for piece in found if piece.whole is not None)


def pieces(model, prompts: Sequence, options: continuations.Options) -> Iterator[continuations.Piece]:
    """Pieces of continuations as they come, by the model's engine and up to its `eos_ids`."""
    options = dataclasses.replace(options, stop_ids=(*options.stop_ids, *model.eos_ids))
    engine, ids = model.engine, model.encode_prompts(prompts)
    with model.inference():
        draft = draft_options.drafted(model, options.draft, options.draft_tokens)
        found = continuations.Continuations(engine, model.tokenizer, ids, options, draft)
    return each_inside(model.inference, found)


def complete(model, prompts: Sequence, **options) -> list[continuations.Continuation]:
    """Continuations of prompts, in their order."""
    return continuations.complete(pieces(model, prompts, continuations.Options(**options)))


def search(model, prompts: Sequence, stop_ids: Sequence[int], **options) -> list[list[continuations.Continuation]]:
    """The likeliest continuations of prompts, by beam search."""
    engine, ids = model.engine, model.encode_prompts(prompts)
    with model.inference():
        return continuations.search(engine, model.tokenizer, ids, stop_ids=[*stop_ids, *model.eos_ids], **options)


def make_engine(model) -> Engine:
    """The model ready to generate."""
    num_tokens = bos = None
    if model.tokenizer is not None:
        num_tokens, bos = model.tokenizer.vocab_size, model.tokenizer.bos_id
    start = getattr(model.module, "start_id", None)
    options = dict(num_tokens=num_tokens, start_id=bos if start is None else start)
    banned = model.config.get("published", {}).get("banned_ids", ())
    with model.inference():
        return Engine(model.module, model.params, banned_ids=banned, **options)
