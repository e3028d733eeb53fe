"""Cutting documents into sentences, by simple rules that need no model."""

import re

RULES = ("lines", "punctuation", "ignore")
RULES_VERSION = 1  # part of the cache key: raise it when a rule cuts otherwise

_END = re.compile(r"""[.!?]+["'”’»)\]]*(?=\s)""")
_PARAGRAPH = re.compile(r"\n\s*\n")


def split_sentences(text: str, rule: str) -> list[str]:
    """The sentences of a document; those of white space alone are left out.

    Args:
      text: the document.
      rule: "lines": a line is a sentence, as in the input of BERT's and RoBERTa's own preprocessing; a document
        without line ends is cut as by punctuation.
        "punctuation": a sentence ends after `.`, `!` or `?` (and closing quotes and brackets) before white space, and
        with a paragraph, which a blank line ends. Line ends within a paragraph, and other runs of white space, count
        as one space. Abbreviations end a sentence too.
        "ignore": the document stays one stretch of text, as it is.

    A sentence cut out of a line keeps the space before it, so that a tokenizer which tells " the" from "the" sees
    running text.
    """
    if rule == "ignore":
        return [text]
    if rule == "lines" and "\n" in text.strip():
        return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    paragraphs = [" ".join(paragraph.split()) for paragraph in _PARAGRAPH.split(text.replace("\r\n", "\n"))]
    return [sentence for paragraph in paragraphs for sentence in _cut(paragraph) if sentence.strip()]


def _cut(paragraph: str) -> list[str]:
    ends = [match.end() for match in _END.finditer(paragraph)]
    return [paragraph[start:end] for start, end in zip([0, *ends], [*ends, len(paragraph)])]
