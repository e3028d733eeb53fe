"""Any task made harder: `NAME+typos`, `NAME+paraphrase`, `NAME+options`, `NAME+distractor`.

Each document is asked twice, as it is and perturbed, and the drop of every metric is reported with its error, which
the pairing makes small. What is changed depends on the seed in the task's name (`+typos`) and the document alone.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import math
import os.path
import re
from collections.abc import Callable, Sequence

import numpy as np

from fmjax.errors import InputError
from fmjax.tasks.protocol import Generate, Request, Score, Task

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


PERTURBATIONS: dict[str, Callable | None] = {
    "typos": typos,
    "paraphrase": paraphrase,
    "distractor": distractor,
    "options": None,  # reorders a document, not a text
}


@dataclasses.dataclass(frozen=True)
class _Both:
    """A document as it is and perturbed; the second is the same where only texts of requests change."""

    task: "Perturbed"
    plain: object
    perturbed: object

    @functools.cached_property
    def requests(self) -> tuple[list[Request], list[Request]]:
        """Those of either, made once: the statistics ask whether they differ."""
        return self.task.sides(self)


class Perturbed(Task):
    """A task beside its perturbed self.

    The perturbation changes what the document itself asks, in its contexts (`Score`) and prompts (`Generate`), not the
    examples in front of it, not the template's labels (`Task.labels`) and not the continuations that are scored. Where
    a document's contexts are one text with a gap (`Task.gap_in_context`), all of them are changed alike, outside of the
    gap.

    Args:
      task: the task.
      perturbation: a name of `PERTURBATIONS`.

    Metrics: for each metric of the task, itself, NAME_perturbed, and NAME_drop, the first less the second; `changed`,
    the part of the documents that the perturbation changed at all, and `words_changed`, how many words of a document it
    changed in the mean.

    Raises InputError for a task that the perturbation cannot change, and from `check_changes`.
    """

    def __init__(self, task: Task, perturbation: str):
        if isinstance(task, Perturbed):
            raise InputError(f"task {task.name}+{perturbation}: perturbations do not stack; give one of them")
        if perturbation == "options" and not hasattr(task, "reorder"):
            raise InputError(
                f"task {task.name}+options: {task.name} has no options in its prompt, so there is no order to change "
                "(options that are scored one by one have none); mmlu lists its options"
            )
        if "adapt" in task.uses:
            raise InputError(
                f"task {task.name}+{perturbation}: {task.name} trains on its texts; perturb a prompted task"
            )
        self.task, self.perturbation = task, perturbation
        self.name = f"{task.name}+{perturbation}"
        self.version = f"{task.version}.3"
        self.metrics = tuple(name + end for name in task.metrics for end in ("", "_perturbed", "_drop"))
        self.metrics += ("changed", "words_changed")
        self.description = f"{task.description}; beside it with {perturbation}"
        for field in ("needs", "uses", "num_shots", "separator", "examples_in_order"):
            setattr(self, field, getattr(task, field))

    def check(self):
        self.task.check()

    def documents(self, context):
        return [self._both(document) for document in self.task.documents(context)]

    def examples(self, context):
        found = self.task.examples(context)
        return None if found is None else [_Both(self, document, document) for document in found]

    def example(self, document):
        return self.task.example(document.plain)

    def asks(self, document):
        return self.task.asks(document.plain)

    def example_group(self, document):
        return self.task.example_group(document.plain)

    def preamble_of(self, document):
        return self.task.preamble_of(document.plain)

    def details(self):
        return self.task.details()

    def _both(self, document) -> _Both:
        if self.perturbation != "options":
            return _Both(self, document, document)
        count = len(self.task.requests(document))
        order = [int(i) for i in self._rng(document).permutation(count)]
        if order == sorted(order):  # a document that stays as it was would hide a part of the drop
            order = [*order[1:], order[0]]
        return _Both(self, document, self.task.reorder(document, order))

    def requests(self, document):
        plain, perturbed = document.requests
        return [*plain, *perturbed]

    def sides(self, document: _Both) -> tuple[list[Request], list[Request]]:
        """The requests of the document as it is, and perturbed."""
        plain, perturbed = self.task.requests(document.plain), self.task.requests(document.perturbed)
        change = PERTURBATIONS[self.perturbation]
        if change is not None:
            texts = list(dict.fromkeys(self._text(request) for request in perturbed))

            def own(text: str) -> str:
                return change(text, self._rng(document.plain))

            changed = self._changed(texts, lambda text: around_labels(self.task.labels, text, own))
            perturbed = [self._with_text(request, changed[self._text(request)]) for request in perturbed]
        return plain, perturbed

    def check_changes(self, documents: Sequence[_Both]) -> None:
        """Raises InputError where the perturbation changes none of the documents, whose drop of 0 would say nothing."""
        if all(before == after for before, after in (document.requests for document in documents)):
            raise InputError(
                f"task {self.name}: {self.perturbation} changes none of the {len(documents)} documents asked, whose "
                f"contexts and prompts are empty or hold nothing that it changes; choose another perturbation of "
                f"{', '.join(PERTURBATIONS)}, another task, or a higher limit where there is one"
            )

    def _changed(self, texts: Sequence[str], change: Callable[[str], str]) -> dict[str, str]:
        if self.task.gap_in_context and len(texts) > 1:
            return around_gap(texts, change)
        return {text: change(text) for text in texts}

    def _text(self, request: Request) -> str:
        if isinstance(request, Score):
            return request.context
        if isinstance(request, Generate):
            return request.prompt
        raise InputError(f"task {self.name}: only what is scored or generated after a text can be perturbed")

    def _with_text(self, request: Score | Generate, text: str) -> Request:
        return dataclasses.replace(request, **{"context" if isinstance(request, Score) else "prompt": text})

    def _rng(self, document) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.perturbation} {self.task.key(document)}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def statistics(self, document, answers):
        half = len(answers) // 2
        plain = self.task.statistics(document.plain, answers[:half])
        perturbed = self.task.statistics(document.perturbed, answers[half:])
        before, after = document.requests
        sides = {f"plain/{k}": v for k, v in plain.items()} | {f"perturbed/{k}": v for k, v in perturbed.items()}
        texts = {(self._text(old), self._text(new)) for old, new in zip(before, after)}
        words = max(words_changed(*pair) for pair in texts)
        return sides | {"changed": float(before != after), "words_changed": float(words)}

    @property
    def is_summable(self):
        return self.task.is_summable

    def reduce_documents(self, statistics):
        total = math.fsum(statistics["documents"])
        metrics = {name: math.fsum(statistics[name]) / total for name in ("changed", "words_changed")}
        sides = [
            self.task.reduce_documents(
                {k.removeprefix(side): v for k, v in statistics.items() if k.startswith(side)}
                | {"documents": statistics["documents"]}
            )
            for side in ("plain/", "perturbed/")
        ]
        for name in sides[0]:
            before, after = sides[0][name], sides[1][name]
            metrics |= {name: before, f"{name}_perturbed": after, f"{name}_drop": before - after}
        return metrics

    def key(self, document):
        return self.task.key(document.plain)

    def cluster(self, document):
        return self.task.cluster(document.plain)

    def record(self, document):
        return self.task.record(document.plain)
