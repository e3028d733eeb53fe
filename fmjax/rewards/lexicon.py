"""How positive a text is, by the words in it."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable

from fmjax.data.prepared import fingerprint
from fmjax.errors import ConfigError, DataError
from fmjax.rewards.base import Samples

ALPHA = 15.0
"""Of the sum s of a text's values: s / sqrt(s^2 + ALPHA) lies between -1 and 1, as in VADER."""


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """A reward: how positive replies are.

    Attributes:
      score: from a text to a number between -1 and 1.
      content: a hash of what it goes by.
    """

    score: Callable[[str], float]
    content: str

    def __call__(self, samples: Samples) -> list[float]:
        return [self.score(reply) for reply in samples.replies]


def open_lexicon(name: str, where: str) -> Lexicon:
    """The lexicon of a name.

    "vader" is the compound score of Hutto and Gilbert 2014 (https://doi.org/10.1609/icwsm.v8i1.14550), by the package
    vaderSentiment, with its rules for negation, capitals and the like. A file gives the normalised sum of its words'
    values, without such rules.

    Raises ConfigError where the package is not there; DataError, naming the line, for a file that is no lexicon.
    """
    if name != "vader":
        values = read_lexicon(pathlib.Path(name).expanduser())
        return Lexicon(lambda text: valence(text, values), fingerprint(values))
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ConfigError(
            f"{where} = 'vader' needs the package vaderSentiment: pip install vaderSentiment, or name a file with a "
            "word, a tab and its value in a line"
        ) from None
    analyzer = SentimentIntensityAnalyzer()
    score = lambda text: float(analyzer.polarity_scores(text)["compound"])
    return Lexicon(score, fingerprint(analyzer.lexicon))


def read_lexicon(path: pathlib.Path) -> dict[str, float]:
    """Words in small letters to values: the first two columns, by tabs, of each line, as in VADER's own file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the lexicon {str(path)!r} cannot be read: {error}") from None
    values = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        word, _, rest = line.partition("\t")
        try:
            value = float(rest.split("\t")[0])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{path}, line {number}: expected a word, a tab and its value, found {line[:60]!r}")
        values[word.lower()] = value
    if not values:
        raise DataError(f"the lexicon {str(path)!r} has no words")
    return values


def valence(text: str, values: dict[str, float]) -> float:
    """s / sqrt(s^2 + 15) of the sum s of a text's words' values; 0.0 of a text without any."""
    total = sum(values.get(word, 0.0) for word in re.findall(r"[\w']+|[^\w\s]+", text.lower()))
    return total / math.sqrt(total * total + ALPHA)
