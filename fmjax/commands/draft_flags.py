"""Flags of what drafts tokens for the model (`fmjax.inference.draft_options`), for commands that generate."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from fmjax.commands import cli
from fmjax.errors import InputError

NAMES = ("draft", "draft_tokens")


def add_flags(parser) -> None:
    """Adds --draft and --draft_tokens."""
    parser.add_argument(
        "--draft",
        help="what drafts tokens, of which the model reads several at once and takes those that it would draw: lookup "
        "(what followed in the text before), layers:K (its own first K layers), or a model, small or of draft heads. "
        "The law of the text stays; how many were taken is told at the end",
    )
    parser.add_argument("--draft_tokens", type=cli.number(int, low=1), help="tokens that it drafts a pass of the model")


def check(flags) -> None:
    """Raises InputError for what does not go with a draft, or with no draft."""
    if "draft_tokens" in flags and "draft" not in flags:
        raise InputError("--draft_tokens is a draft's; give a --draft, or leave it out")
    if "draft" in flags and "num_beams" in flags:
        raise InputError("--draft has no meaning with --num_beams: beam search draws nothing; leave one of them out")


def given(flags) -> dict[str, Any]:
    """{"draft": ..., "draft_tokens": ...} as far as they are given, a path loaded as the model is.

    Raises InputError for no draft.
    """
    if "draft" not in flags:
        return {}
    from fmjax.inference import draft_options
    from fmjax.load import load

    draft = flags.draft
    if draft_options.is_name(draft):
        draft_options.check(draft, None)
    else:
        draft = load(draft, dtype=flags.dtype, mesh=flags.mesh if "mesh" in flags else None)
    return {"draft": draft} | ({"draft_tokens": flags.draft_tokens} if "draft_tokens" in flags else {})


@contextlib.contextmanager
def told(flags) -> Iterator[None]:
    """Tells on stderr, once what is done inside has ended, what a draft was worth in all of it."""
    if "draft" not in flags:
        yield
        return
    import jax

    from fmjax.inference import continuations

    worth = _Worth()
    level = continuations.log.level
    continuations.log.setLevel(logging.INFO)
    continuations.log.addHandler(worth)
    try:
        yield
    finally:
        continuations.log.removeHandler(worth)
        continuations.log.setLevel(level)
    if jax.process_index() == 0:
        print(f"draft: {worth.total}", file=sys.stderr)


class _Worth(logging.Handler):
    """Adds up what continuations log of their draft."""

    def __init__(self):
        super().__init__()
        from fmjax.inference.engine_requests import Acceptance

        self.total = Acceptance()

    def emit(self, record: logging.LogRecord) -> None:
        self.total += record.args[1]
