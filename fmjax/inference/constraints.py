"""Texts that a continuation is held to: a JSON schema, a regular expression, a list of choices, a Lark grammar.

Each token is drawn from the model's own distribution over those tokens alone that some text of the language goes on
with, renormalised; a stop token counts among them where a text may end. The tokens of a text need not be those that the
tokenizer would cut it into: no token is forced because others are the rule. By `llguidance`, `pip install -e
'.[constrained]'`.
"""

import dataclasses
import functools
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmjax.data.tokenizers.base import Tokenizer
from fmjax.errors import InputError, RunError, TokenizerError
from fmjax.inference.text_stream import TextStream
from fmjax.layers.checks import check_choice

KINDS = ("json_schema", "regex", "choices", "lark")

OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Without it a token that begins what must come would be the only one allowed, though shorter ones begin it too."""

WHITE_SPACE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""JSON is written as `json.dumps` does: with any white space, a small model may write nothing else."""


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What a continuation has to be, made by `json_schema`, `regex`, `choices` or `lark`.

    Attributes:
      kind: one of KINDS.
      source: the schema or the choices as JSON, the expression, the grammar.
    """

    kind: str
    source: str

    def __post_init__(self):
        check_choice("constraint", self.kind, KINDS)


def json_schema(schema: Mapping[str, Any] | str) -> Constraint:
    """JSON that a schema takes, in the white space of `json.dumps`.

    Raises InputError for what is no schema; keywords that are not supported are named when it is used.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InputError(f"the JSON schema is no JSON: {error}") from None
    if not isinstance(schema, Mapping | bool):
        raise InputError(f'a JSON schema is an object such as {{"type": "integer"}}, got {schema!r}')
    return Constraint("json_schema", json.dumps(schema, ensure_ascii=False))


def regex(pattern: str) -> Constraint:
    """Texts that a regular expression matches as a whole, in Rust's syntax without look-around and back references."""
    if not isinstance(pattern, str):
        raise InputError(f"a regular expression is a text, got {pattern!r}")
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise InputError(f"the regular expression {pattern!r} ends inside an escape; write \\\\ for a backslash")
    return Constraint("regex", pattern)


def choices(texts: Sequence[str]) -> Constraint:
    """One of these texts."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        raise InputError(f"choices are a list of texts, got {texts!r}")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise InputError(f"a choice is a text that is not empty, got {text!r} among {list(texts)!r}")
    return Constraint("choices", json.dumps(list(texts), ensure_ascii=False))


def lark(grammar: str) -> Constraint:
    """Texts of a grammar in llguidance's variant of Lark, whose first rule is `start`."""
    if not isinstance(grammar, str):
        raise InputError(f"a grammar is a text, got {grammar!r}")
    return Constraint("lark", grammar)


def each(constraint: Constraint | Sequence[Constraint | None] | None, count: int) -> list[Constraint | None]:
    """A constraint, or None, for each of `count` prompts. Raises InputError for a list of another length."""
    found = [constraint] * count if constraint is None or isinstance(constraint, Constraint) else list(constraint)
    if len(found) != count:
        raise InputError(f"constraint: expected one for all, or one for each of {count} prompts, got {len(found)}")
    return found


def check(constraint: Any) -> None:
    """Raises InputError for what is neither a constraint nor a list of them, and without llguidance."""
    if constraint is None:
        return
    given = constraint if isinstance(constraint, list | tuple) else [constraint]
    for one in given:
        if not isinstance(one, Constraint | None):
            raise InputError(
                f"constraint must be made by json_schema, regex, choices or lark of fmjax.inference.constraints, got "
                f"{one!r}"
            )
    if any(one is not None for one in given) and importlib.util.find_spec("llguidance") is None:
        raise InputError("a constraint needs llguidance: pip install -e '.[constrained]'")


@functools.lru_cache(maxsize=64)
def language(constraint: Constraint, tokenizer: Tokenizer | None, spaced: bool = False) -> "TextLanguage":
    """The texts of a constraint as tokens (`fmjax.inference.engine_requests.Language`).

    spaced: the tokens spell a space before the text, which decoding drops (`drops_space`).

    Raises InputError for a schema, expression or grammar that is not understood, naming what is wrong in it, for a
    choice that the tokens cannot spell, and without a tokenizer; TokenizerError for one whose tokens have no bytes of
    their own.
    """
    check(constraint)
    if tokenizer is None:
        raise InputError("a constraint is of texts, and the model has no tokenizer for them")
    from llguidance import LLMatcher, LLParserLimits

    known, grammar = _vocabulary(tokenizer), _grammar(constraint, spaced)
    if constraint.kind == "choices":
        _check_spelt(json.loads(constraint.source), tokenizer, spaced)
    matcher = LLMatcher(known, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if matcher.is_error():
        what = constraint.kind.replace("_", " ")
        raise InputError(f"the {what} {constraint.source[:200]!r} is not understood: {matcher.get_error().strip()}")
    return TextLanguage(matcher, constraint, _several_spaces(tokenizer) if spaced else None)


@functools.lru_cache(maxsize=4)
def _several_spaces(tokenizer: Tokenizer) -> np.ndarray:
    """uint32 words: the tokens with more than one space, all of which some decoders drop of a first token."""
    bits = np.asarray([piece.count(b" ") > 1 for piece in tokenizer.token_bytes()])
    bits = np.pad(bits, (0, 64 + -len(bits) % 32))  # as many words as llguidance has, and more
    return np.packbits(bits, bitorder="little").view("<u4")


def drops_space(tokenizer: Tokenizer | None, before: Sequence[int]) -> bool:
    """Whether decoding drops the space that the first token after some others begins with: those of SentencePiece spell
    one in front of a text, which is not a part of it."""
    if tokenizer is None or (found := _spaced_word(tokenizer)) is None:
        return False
    token, word = found
    return TextStream(tokenizer, before).push([token], last=True) == word


@functools.lru_cache(maxsize=4)
def _spaced_word(tokenizer: Tokenizer) -> tuple[int, str] | None:
    """A token that spells a space and a word, and the word; None where there is none."""
    found = ((id, piece) for id, piece in enumerate(tokenizer.token_bytes()) if re.fullmatch(rb" [A-Za-z]+", piece))
    return next(((id, piece[1:].decode()) for id, piece in found), None)


def _check_spelt(texts: Sequence[str], tokenizer: Tokenizer, spaced: bool) -> None:
    """Raises InputError for a text that no tokens spell."""
    pieces = set(tokenizer.token_bytes()) - {b""}
    longest = max(map(len, pieces), default=0)
    for text in texts:
        data = (" " * spaced + text).encode()
        ends = {0}
        for end in range(1, len(data) + 1):
            if any(start in ends and data[start:end] in pieces for start in range(max(0, end - longest), end)):
                ends.add(end)
        if len(data) not in ends:
            raise InputError(f"the choice {text!r} cannot be spelt: the tokenizer has no tokens for all its characters")


class TextLanguage:
    """See `language`."""

    def __init__(self, matcher, constraint: Constraint, not_first: np.ndarray | None = None):
        self._matcher, self._constraint, self._not_first = matcher, constraint, not_first

    def begin(self) -> "TextWalk":
        """A walk that nothing was drawn of."""
        return TextWalk(self._matcher.deep_copy(), self._constraint, self._not_first)


class TextWalk:
    """See `fmjax.inference.engine_requests.Walk`."""

    def __init__(self, matcher, constraint: Constraint, not_first: np.ndarray | None = None):
        self._matcher, self._constraint, self._not_first = matcher, constraint, not_first

    def allowed(self) -> np.ndarray:
        """uint32 words: the tokens that go on with some text."""
        if self._matcher.is_stopped():
            self._check()
            return np.zeros(0, np.uint32)
        words = self._matcher.compute_bitmask()
        if self._matcher.get_error().startswith("NoExtensionBias"):  # no token goes on with any text
            return np.zeros(0, np.uint32)
        self._check()
        words = np.frombuffer(words, "<u4")
        return words if self._not_first is None else words & ~self._not_first[: len(words)]

    def may_end(self) -> bool:
        """Whether what was drawn is a text of the language."""
        return self._matcher.is_accepting()

    def take(self, token: int) -> None:
        """Goes on by a token."""
        self._matcher.consume_token(token)
        self._not_first = None
        self._check()

    def copy(self) -> "TextWalk":
        """Another one at the same place."""
        return TextWalk(self._matcher.deep_copy(), self._constraint, self._not_first)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RunError(
                f"the constraint {self._constraint.source[:80]!r} cannot be followed any further: "
                f"{self._matcher.get_error().strip()}"
            )


def _grammar(constraint: Constraint, spaced: bool) -> str:
    """The constraint in llguidance's Lark, with a space in front of its texts or without."""
    from llguidance import regex_to_lark

    source = constraint.source
    if constraint.kind == "lark":
        return f'{OPTIONS}start: " " text\ntext: %lark {{\n{source}\n}}\n' if spaced else OPTIONS + source
    if constraint.kind == "json_schema":
        schema = json.loads(source)
        schema = schema if isinstance(schema, dict) else {"allOf": [schema]}
        value = f"%json {json.dumps(schema | {'x-guidance': WHITE_SPACE})}\n"
        return OPTIONS + ('start: " " value\nvalue: ' if spaced else "start: ") + value
    if constraint.kind == "choices":
        source = "|".join(map(re.escape, sorted(set(json.loads(source)))))
    source = f" (?:{source})" if spaced else source
    return f"{OPTIONS}start: TEXT\nTEXT: /{regex_to_lark(source, '')}/\n"


class _Vocabulary:
    """What llguidance reads of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = None  # it adds one of its own, which is never drawn
    special_token_ids = ()

    def __init__(self, tokens: list[bytes]):
        self.tokens = tokens

    def __call__(self, text) -> list[int]:
        raise RuntimeError("nothing is forced, so nothing is tokenised")


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer):
    """llguidance's tokenizer: a trie of the tokens' bytes."""
    from llguidance import LLTokenizer

    # A first byte of 0xFF marks control tokens there; it is in no text.
    tokens = [b"" if piece.startswith(b"\xff") else piece for piece in tokenizer.token_bytes()]
    if not any(tokens):
        raise TokenizerError(f"{tokenizer.source}: no token stands for bytes of a text")
    return LLTokenizer(_Vocabulary(tokens))
