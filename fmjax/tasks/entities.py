"""Entities in texts, generated after a prompt, by a linear probe of words, and fine-tuned: WNUT-17."""

from collections.abc import Sequence

from fmjax.errors import DataError, InputError
from fmjax.tasks import adaptation
from fmjax.tasks.protocol import Apply, Generate, Task
from fmjax.tasks.reading import read_text
from fmjax.tasks.trained import Trained


def entity_counts(gold: Sequence[str], predicted: Sequence[str], *, strict: bool) -> dict[str, int]:
    """Numbers of entities of a sentence whose words are tagged in IOB2: "correct", "predicted", "gold".

    strict: as seqeval's `mode="strict", scheme=IOB2`, where an entity begins with B-; otherwise as seqeval's default,
    conlleval's, where an I- without its B- begins one too.
    """
    try:
        from seqeval.metrics.sequence_labeling import get_entities
        from seqeval.scheme import IOB2, Entities
    except ImportError:
        raise InputError("entity F1 is seqeval's; install it with `pip install fmjax[eval]`") from None
    if strict:
        sides = [
            {(one.tag, one.start, one.end) for group in Entities([list(tags)], IOB2).entities for one in group}
            for tags in (gold, predicted)
        ]
    else:
        sides = [set(get_entities(list(tags))) for tags in (gold, predicted)]
    return {"correct": len(sides[0] & sides[1]), "predicted": len(sides[1]), "gold": len(sides[0])}


class Tagging(Task):
    """A task whose documents are {"words": [...], "tags": [...]}, tags in IOB2.

    Micro-averaged over entities: `precision`, `recall` and `f1` by seqeval's default scheme, `f1_strict` by its strict
    IOB2. Where there is nothing to divide by they are 0, as in seqeval.
    """

    metrics = ("f1", "precision", "recall", "f1_strict")

    def counted(self, document, predicted: Sequence[str], extra: int = 0) -> dict[str, float]:
        """Statistics of predicted tags, and of `extra` predictions that are nowhere in the sentence."""
        found = {}
        for prefix, strict in (("", False), ("strict_", True)):
            counts = entity_counts(document["tags"], predicted, strict=strict)
            counts["predicted"] += extra
            found |= {prefix + name: float(value) for name, value in counts.items()}
        return found

    def reduce(self, totals):
        def f1(kind):
            return _ratio(2 * totals[f"{kind}correct"], totals[f"{kind}predicted"] + totals[f"{kind}gold"])

        return {
            "f1": f1(""),
            "precision": _ratio(totals["correct"], totals["predicted"]),
            "recall": _ratio(totals["correct"], totals["gold"]),
            "f1_strict": f1("strict_"),
        }


def _ratio(one: float, other: float) -> float:
    return one / other if other else 0.0


KINDS = ("corporation", "creative-work", "group", "location", "person", "product")


class WNUT17Data(Tagging):
    """WNUT-17 (Derczynski et al. 2017, https://aclanthology.org/W17-4418): rare entities in social media.

    A line is a word, a tab and its tag; sentences end at a blank line or at a lone tab.
    """

    needs = "eval_wnut17_ner/emerging.test.annotated, wnut17train.conll (CC BY 4.0); seqeval"
    tags = ("O", *(f"{begin}-{kind}" for kind in KINDS for begin in "BI"))

    def check(self):
        entity_counts([], [], strict=True)  # asks the library

    def documents(self, context):
        return self._read(context.file("eval_wnut17_ner", "emerging.test.annotated"))

    def training(self, context):
        return self._read(context.file("eval_wnut17_ner", "wnut17train.conll"))

    def _read(self, path):
        found, words, tags = [], [], []
        for number, line in enumerate([*read_text(path).split("\n"), ""], start=1):
            word, _, tag = line.rstrip("\r").partition("\t")
            if not line.strip():
                if words:
                    found.append({"words": words, "tags": tags})
                words, tags = [], []
            elif not word or tag not in self.tags:
                raise DataError(f"{path}, line {number}: expected a word, a tab and a tag, got {line[:80]!r}")
            else:
                words, tags = [*words, word], [*tags, tag]
        return found


class WNUT17(WNUT17Data):
    """Generates a line of entities, "kind: words; kind: words", or "none"; each is looked for in the sentence, left to
    right where it occurs several times. One that is not there counts as predicted and wrong."""

    name = "wnut17"
    version = "2"
    uses = ("generate",)
    num_shots = 3
    description = "entities of a sentence, generated: entity F1, seqeval default and strict"
    labels = ("Sentence:", "Entities:")
    preamble = f"Entities are of the kinds {', '.join(KINDS)}.\n\n"

    def examples(self, context):
        return self.training(context)

    def prompt(self, document) -> str:
        return f"Sentence: {' '.join(document['words'])}\nEntities:"

    def example(self, document):
        return f"{self.prompt(document)} {written(document['words'], document['tags'])}"

    def requests(self, document):
        return [Generate(self.prompt(document), max_new_tokens=64, stop=("\n",))]

    def statistics(self, document, answers):
        return self.counted(document, *read_entities(answers[0], document["words"]))


def written(words: Sequence[str], tags: Sequence[str]) -> str:
    """Entities as the prompt's examples write them."""
    found = []
    for word, tag in zip(words, tags):
        if tag.startswith("B-"):
            found.append([tag[2:], word])
        elif tag.startswith("I-") and found:
            found[-1].append(word)
    return "; ".join(f"{kind}: {' '.join(rest)}" for kind, *rest in found) or "none"


def read_entities(answer: str, words: Sequence[str]) -> tuple[list[str], int]:
    """(tags of the words, number of entities that could not be placed) of a generated line."""
    tags, lost = ["O"] * len(words), 0
    for part in answer.split(";"):
        kind, colon, text = part.strip().partition(":")
        entity = text.split()
        if not colon or not entity:
            continue
        places = range(len(words) - len(entity) + 1)
        free = (i for i in places if words[i : i + len(entity)] == entity and {*tags[i : i + len(entity)]} == {"O"})
        at = next(free, None)
        if at is None or kind.strip() not in KINDS:
            lost += 1
            continue
        tags[at : at + len(entity)] = [f"B-{kind.strip()}"] + [f"I-{kind.strip()}"] * (len(entity) - 1)
    return tags, lost


class WNUT17Probe(WNUT17Data, Trained):
    """A linear probe of each word's first token (`fmjax.tasks.adaptation.probe_words`)."""

    name = "wnut17_probe"
    description = "entities of a sentence by a linear probe (wnut17_probe:COUNT): entity F1, default and strict"
    train = staticmethod(adaptation.probe_words)

    def fit(self, model, documents, seed):
        labels = [[self.tags.index(tag) for tag in d["tags"]] for d in documents]
        return self.train(model, [d["words"] for d in documents], labels, len(self.tags), seed)

    def requests(self, document):
        return [Apply("token_logits", tuple(document["words"]))]

    def statistics(self, document, answers):
        # The first of equal logits, so words without a token of their own are "O".
        best = [max(range(len(row)), key=row.__getitem__) for row in answers[0]]
        return self.counted(document, [self.tags[i] for i in best])


class WNUT17FineTune(WNUT17Probe):
    """All weights trained with a head on each word's first token."""

    name = "wnut17_finetune"
    description = "entities of a sentence, fine-tuned (wnut17_finetune:COUNT): entity F1, default and strict"
    train = staticmethod(adaptation.fine_tune_words)
