"""Multiple choice by log-likelihood: the shared part of HellaSwag, PIQA, ARC, MMLU and their like."""

import dataclasses

import numpy as np

from fmjax.errors import DataError
from fmjax.tasks.calibration import softmax
from fmjax.tasks.protocol import Prediction, Score, Task


@dataclasses.dataclass(frozen=True)
class Choices:
    """A question with its options.

    Attributes:
      context: text before the answer, without a space at its end.
      options: what may follow, a delimiter in front of each left out.
      gold: number of the right one.
      contexts: of each option, where they differ (WinoGrande, whose options fill a gap in the middle); otherwise empty.
      group: what questions of one source share, for the standard errors; "" is nothing.
    """

    context: str
    options: tuple[str, ...]
    gold: int
    contexts: tuple[str, ...] = ()
    group: str = ""

    def __post_init__(self):
        if not 0 <= self.gold < len(self.options):
            raise DataError(f"the right answer has the number {self.gold}, and there are {len(self.options)} options")
        if self.contexts and len(self.contexts) != len(self.options):
            raise DataError(f"{len(self.contexts)} contexts for {len(self.options)} options")


class MultipleChoice(Task):
    """A task whose documents are `Choices`.

    `acc`: whether the right option has the highest log-likelihood, the first of equal ones counting as the highest;
    `acc_norm` and `acc_bytes`: the same of log-likelihoods divided by the option's length in characters and in UTF-8
    bytes, the delimiter left out, as in lm-evaluation-harness.

    Attributes:
      delimiter: between context and option.
    """

    metrics = ("acc", "acc_norm", "acc_bytes")
    delimiter = " "
    gap_in_context = True

    def requests(self, document: Choices):
        contexts = document.contexts or (document.context,) * len(document.options)
        return [Score(c, self.delimiter + option) for c, option in zip(contexts, document.options)]

    def example(self, document: Choices) -> str:
        context = document.contexts[document.gold] if document.contexts else document.context
        return context + self.delimiter + document.options[document.gold]

    def statistics(self, document: Choices, answers):
        likelihoods = np.asarray([answer.loglikelihood for answer in answers])
        characters = np.asarray([max(1, len(option)) for option in document.options])
        num_bytes = np.asarray([max(1, len(option.encode())) for option in document.options])
        found = {
            "acc": likelihoods,
            "acc_norm": likelihoods / characters,
            "acc_bytes": likelihoods / num_bytes,
        }
        return {name: float(np.argmax(values) == document.gold) for name, values in found.items()}

    def prediction(self, document: Choices, answers):
        """The number of the option that is likeliest by `acc`, and the softmax of the options' log-likelihoods."""
        found = softmax([answer.loglikelihood for answer in answers]).tolist()
        return Prediction(None, str(int(np.argmax(found))), {str(i): p for i, p in enumerate(found)})

    def key(self, document: Choices) -> str:
        return super().key(dataclasses.asdict(document))

    def record(self, document: Choices):
        return dataclasses.asdict(document)

    def cluster(self, document: Choices):
        return document.group or None


LETTERS = "ABCDEFGHIJ"


class LetteredChoice(MultipleChoice):
    """A task whose options stand in the question, "A. ...", and are answered by their letter (MMLU)."""

    metrics = ("acc",)

    def requests(self, document: Choices):
        return [Score(self.question(document), f" {LETTERS[i]}") for i in range(len(document.options))]

    def question(self, document: Choices) -> str:
        """The question with its lettered options, up to where the letter comes."""
        listed = "".join(f"{LETTERS[i]}. {option}\n" for i, option in enumerate(document.options))
        return f"{document.context}\n{listed}Answer:"

    def asks(self, document: Choices):
        return document.context  # with whatever options

    def example(self, document: Choices) -> str:
        return f"{self.question(document)} {LETTERS[document.gold]}"

    def statistics(self, document: Choices, answers):
        likelihoods = [answer.loglikelihood for answer in answers]
        return {"acc": float(np.argmax(likelihoods) == document.gold)}

    def reorder(self, document: Choices, order: list[int]) -> Choices:
        """The same question with its options in another order, for `+options`."""
        options = tuple(document.options[i] for i in order)
        return dataclasses.replace(document, options=options, gold=order.index(document.gold))
