"""Texts made harder: typing errors, other words, a sentence that has nothing to do with it. What changes is drawn."""

import difflib
import itertools
import os.path
import re
from collections.abc import Callable, Sequence

import numpy as np

# Noncharacters, so that no text holds them; no perturbation changes them.
_GAP = "\uffff"  # stands for what differs among the contexts of one document
_LABEL = "\ufffe"  # stands for a label of the task's template


def typos(text: str, rng: np.random.Generator, rate: float = 0.1) -> str:
    """Of the words that can have one, a part `rate`, at least one, with two neighbouring letters inside swapped."""
    places = []  # in each word, where a swap changes it
    for match in re.finditer(r"[A-Za-z]{4,}", text):
        inside = range(match.start() + 1, match.end() - 2)
        if found := [i for i in inside if text[i] != text[i + 1]]:
            places.append(found)
    count = min(len(places), max(1, round(rate * len(places))))
    letters = list(text)
    for index in sorted(rng.choice(len(places), count, replace=False)) if places else ():
        at = int(rng.choice(places[index]))
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


# From left to right alone: each second phrase fits wherever the first stands and means the same there in nearly every
# sentence. So the word with one meaning is replaced by one that may have several ("begins" -> "starts"), never the
# other way round, and a phrase holds its article or verb where the new one needs another.
_PARAPHRASES = {
    "do not": "don't", "does not": "doesn't", "did not": "didn't", "is not": "isn't", "are not": "aren't",
    "was not": "wasn't", "were not": "weren't", "has not": "hasn't", "have not": "haven't", "will not": "won't",
    "would not": "wouldn't", "could not": "couldn't", "should not": "shouldn't", "cannot": "can't",
    "because": "for the reason that", "because of": "owing to", "in order to": "to", "such as": "like",
    "although": "though", "until": "till", "prior to": "before", "toward": "towards", "for example": "for instance",
    "buy": "purchase", "buys": "purchases", "bought": "purchased", "buying": "purchasing", "receives": "gets",
    "earns": "makes", "begin": "start", "begins": "starts", "began": "started", "begun": "started",
    "talking": "speaking", "wants to": "would like to", "needs to": "has to", "is able to": "can", "are able to": "can",
    "is seen": "can be seen", "are seen": "can be seen", "located in": "situated in", "located on": "situated on",
    "located at": "situated at", "located near": "situated near", "children": "kids", "children's": "kids'",
    "his mother": "his mom", "her mother": "her mom", "my mother": "my mom", "a person": "an individual",
    "the person": "the individual", "a lady": "a woman", "the lady": "the woman", "someone": "somebody",
    "everyone": "everybody", "anyone": "anybody", "no one": "nobody", "television": "TV", "bicycle": "bike",
    "the united states": "the US", "approximately": "roughly", "nearly": "almost", "often": "frequently",
    "several": "a number of", "lots of": "a lot of", "a large": "a big", "additional": "extra",
    "the entire": "the whole", "an entire": "a whole", "in total": "altogether", "afterwards": "after that",
    "every day": "each day", "every week": "each week", "every month": "each month", "every year": "each year",
    "every time": "each time", "per hour": "an hour", "per day": "a day", "per week": "a week",
    "per month": "a month", "per year": "a year", "which of the following": "which of these",
    "will most likely": "will probably", "would most likely": "would probably", "is most likely to": "is likeliest to",
    "are most likely to": "are likeliest to",
}  # fmt: skip
# Longest first; a part of a hyphenated word is none ("large-scale", "mother-in-law").
_PHRASE = re.compile(
    rf"(?<![\w-])({'|'.join(map(re.escape, sorted(_PARAPHRASES, key=len, reverse=True)))})(?![\w-])", re.IGNORECASE
)


def paraphrase(text: str, rng: np.random.Generator) -> str:
    """Phrases replaced by others of the same meaning, from a fixed table."""

    def replace(match: re.Match) -> str:
        old, new = match[0], _PARAPHRASES[match[0].lower()]
        if old.isupper():
            return new.upper()
        if not old[0].isupper():
            return new
        before = text[: match.start()].rstrip(" \"'(")
        if before and before[-1] not in f".?!:\n{_LABEL}":  # in a name or a title: "We Bought a Zoo"
            return old
        return new[0].upper() + new[1:]

    return _PHRASE.sub(replace, text)


_DISTRACTORS = (
    "The library on Main Street closes at six on Fridays.",
    "A train to the coast leaves every twenty minutes.",
    "Nobody remembered where the blue umbrella had come from.",
    "The recipe asks for two cups of flour and a pinch of salt.",
    "In the evening the wind turned to the north.",
    "Her cousin collects stamps from small islands.",
)


def distractor(text: str, rng: np.random.Generator) -> str:
    """A sentence that has nothing to do with the text in front of it, behind a label."""
    start = re.match(rf"[{_LABEL}\s]*", text).end() if text.startswith(_LABEL) else 0
    return f"{text[:start]}{_DISTRACTORS[rng.integers(len(_DISTRACTORS))]} {text[start:]}"


def around_labels(labels: Sequence[str], text: str, change: Callable[[str], str]) -> str:
    """A text perturbed, but for the labels that stand at the beginning of its lines."""
    pattern = re.compile("|".join(map(re.escape, sorted(labels, key=len, reverse=True))) or "(?!)")
    pattern = re.compile(rf"^(?:{pattern.pattern})", re.MULTILINE)
    parts = change(pattern.sub(_LABEL, text)).split(_LABEL)
    return "".join(part + label for part, label in itertools.zip_longest(parts, pattern.findall(text), fillvalue=""))


def words_changed(before: str, after: str) -> int:
    """Words in which two texts differ: replaced, left out or added."""
    compared = difflib.SequenceMatcher(None, before.split(), after.split(), autojunk=False)
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in compared.get_opcodes() if tag != "equal")


def around_gap(texts: Sequence[str], change: Callable[[str], str]) -> dict[str, str]:
    """Each of several texts perturbed where they are all the same, alike, so that they differ in what they did before.

    Whole words at their start and at their end are shared; what stands between them, the gap, stays as it is.
    """
    start = re.sub(r"\w+$", "", os.path.commonprefix(texts))
    ends = [text[len(start) :][::-1] for text in texts]
    end = re.sub(r"^\w+", "", os.path.commonprefix(ends)[::-1])
    before, _, after = change(start + _GAP + end).partition(_GAP)
    return {text: before + text[len(start) : len(text) - len(end)] + after for text in texts}
