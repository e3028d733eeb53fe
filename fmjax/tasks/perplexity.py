"""Bits per byte and perplexities of whole texts: a run's held-out documents, any file, WikiText-2.

Totals are taken over documents before dividing: bits per byte is the bits of all documents over the bytes of all, so a
long document weighs more than a short one. Words and bytes are those of the original text, also where a detokenised
one is scored; words are what `re.split(r"\\s+", text)` gives, as in lm-evaluation-harness.
"""

import gzip
import hashlib
import lzma
import math
import pathlib
import re

from fmjax.data import formats
from fmjax.errors import DataError
from fmjax.tasks.protocol import Rolling, Task, exp
from fmjax.tasks.reading import read_text

RECORDS = ("json", "parquet")
"""Kinds of files (`fmjax.data.formats.file_kind`) that hold several documents."""


class RollingTask(Task):
    """A task whose documents are texts, each scored as a whole."""

    metrics = ("bits_per_byte", "byte_perplexity", "word_perplexity")
    positive = ("byte_perplexity", "word_perplexity")
    uses = ("rolling",)

    def scored(self, document: str) -> str:
        """The text that the model is given, where that is not the document itself."""
        return document

    def requests(self, document):
        return [Rolling(self.scored(document))]

    def statistics(self, document, answers):
        (answer,) = answers
        return {
            "loglikelihood": answer.loglikelihood,
            "tokens": answer.num_tokens,
            "bytes": len(document.encode()),
            "words": len(re.split(r"\s+", document)),
        }

    def reduce(self, totals):
        per_byte = -totals["loglikelihood"] / totals["bytes"]
        return {
            "bits_per_byte": per_byte / math.log(2),
            "byte_perplexity": exp(per_byte),
            "word_perplexity": exp(-totals["loglikelihood"] / totals["words"]),
        }

    def record(self, document):
        return {
            "beginning": document[:200],
            "characters": len(document),
            "sha256": hashlib.sha256(document.encode()).hexdigest(),
        }


class CompressionTask(RollingTask):
    """Beside the model, what `gzip -9` and `xz` need for the same documents, each document compressed by itself."""

    metrics = (*RollingTask.metrics, "gzip_bits_per_byte", "xz_bits_per_byte")

    def statistics(self, document, answers):
        data = document.encode()
        return super().statistics(document, answers) | {
            "gzip_bits": 8 * len(gzip.compress(data, 9)),
            "xz_bits": 8 * len(lzma.compress(data)),
        }

    def reduce(self, totals):
        others = {f"{name}_bits_per_byte": totals[f"{name}_bits"] / totals["bytes"] for name in ("gzip", "xz")}
        return super().reduce(totals) | others

    def headline(self, metrics):
        return (
            f"{self.title} bits per byte {metrics['bits_per_byte']:.2f} | "
            f"gzip -9 {metrics['gzip_bits_per_byte']:.2f} | xz {metrics['xz_bits_per_byte']:.2f}"
        )


class HeldOut(CompressionTask):
    """Documents that the run kept from its training."""

    name = "heldout"
    title = "held-out"
    description = "bits per byte of the run's own held-out documents, beside gzip -9 and xz document by document"
    needs = "the data the model was trained on"

    def documents(self, context):
        return [document for document in context.open_data().documents("heldout") if document]


class TextFile(CompressionTask):
    """A file from anywhere: one document, or the documents of .jsonl, .json or .parquet, read as `data.source` reads
    them; `text:PATH:FIELD` names the field with the text where it is not "text"."""

    name = "text"
    description = "text:PATH[:FIELD], bits per byte of a text file or the documents of a .jsonl, beside gzip -9 and xz"
    needs = "the file at PATH"

    def __init__(self, path: str):
        file, _, field = path.rpartition(":")
        named = formats.file_kind(pathlib.Path(file)) in RECORDS and not pathlib.Path(path).exists()
        self.path, self.field = pathlib.Path(file if named else path).expanduser(), field if named else None
        self.name = f"text:{path}"
        self.title = self.path.name

    def documents(self, context):
        context.note(str(self.path), self.path)
        if formats.file_kind(self.path) not in RECORDS:
            return [read_text(self.path)]
        documents = [text for _, text in formats.read_file(self.path, formats.Reading(self.field)) if text]
        if not documents:
            raise DataError(f"{str(self.path)!r} has no document with text")
        return documents


class WikiText(RollingTask):
    """WikiText-2's test articles (Merity et al. 2016, https://arxiv.org/abs/1609.07843), the raw text, detokenised.

    TFDS has no WikiText.
    """

    name = "wikitext"
    version = "2"
    metrics = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    description = "perplexities of WikiText-2's test articles, detokenised"
    needs = "text_wikitext2/wiki.test.raw (CC BY-SA)"
    files = ("wiki.test.raw",)

    def documents(self, context):
        found = context.find("text_wikitext2", *self.files)
        if found is None and (other := context.find("text_wikitext2", *WikiTextTokenized.files)):
            raise DataError(
                f"needs the raw text, text_wikitext2/{self.files[0]}; {str(other)!r} is the tokenised one, whose "
                "perplexities do not compare: put the raw text beside it, or evaluate wikitext_tokenized"
            )
        return split_articles(read_text(found or context.file("text_wikitext2", *self.files)))

    def scored(self, document):
        return detokenize_wikitext(document)


class WikiTextTokenized(WikiText):
    """The same articles from the text whose rare words are <unk>, which is easier: lower perplexities, which do not
    compare with those of the raw text."""

    name = "wikitext_tokenized"
    version = "1"
    description = "perplexities of WikiText-2's test articles with <unk> for rare words, detokenised"
    needs = "text_wikitext2/wiki.test.tokens or test.txt (CC BY-SA)"
    files = ("wiki.test.tokens", "test.txt")


def split_articles(text: str) -> list[str]:
    """Articles of a WikiText file: each begins at a title line "= Title =" of the first level."""
    articles, lines = [], []
    for line in text.split("\n"):
        bare = line.strip()
        if bare.startswith("= ") and bare.endswith(" =") and not (bare.startswith("= =") or bare.endswith("= =")):
            articles.append("\n".join(lines))
            lines = []
        lines.append(line)
    articles.append("\n".join(lines))
    return [article for article in articles if article.strip()]


# WikiText writes punctuation apart. The rules that join it again, in this order, are those that define
# lm-evaluation-harness's `wikitext`, oddities included, because scores depend on each of them.
_REJOINED = (
    ("s '", "s'"),
    (r"/' [0-9]/", "/'[0-9]/"),
    *((f" @{re.escape(sign)}@ ", sign) for sign in "-,."),
    *((f" {re.escape(sign)} ", f"{sign} ") for sign in ":;.!?,"),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    *((sign, sign.replace(" ", "")) for sign in ("= = = =", "= = =", "= =", " \u00b0 ")),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenize_wikitext(text: str) -> str:
    """The text as it is scored: spaces before punctuation and inside brackets and quotation marks removed."""
    for pattern, replacement in _REJOINED:
        text = re.sub(pattern, replacement, text)
    return text
