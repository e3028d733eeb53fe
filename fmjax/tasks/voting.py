"""Any task of written answers with self-consistency: `NAME+vote`, and `NAME+vote:COUNT`."""

import dataclasses

from fmjax.errors import InputError
from fmjax.inference.voting import vote
from fmjax.tasks.protocol import Generate, Task

VOTE = "vote"
COUNT = 10


class Voted(Task):
    """A task whose answers are each drawn several times at temperature 0.7, and the one of most is taken (Wang et al.
    2022, https://arxiv.org/abs/2203.11171); beside its metrics `agreement`, the part of the draws that have it.

    What an answer is, says the task: `answer_of(text)`, None for a text without one. The first text with the answer of
    most stands for all. Its examples are the task's: those of gsm8k are solved step by step.

    Args:
      task: the task.
      count: draws of each answer.

    Raises InputError for a task that does not say what an answer is, or a count that is no number of at least 1.
    """

    temperature = 0.7

    def __init__(self, task: Task, count: int | str = COUNT):
        if not hasattr(task, "answer_of"):
            raise InputError(
                f"task {task.name}+{VOTE}: {task.name} does not say what of a text is its answer (answer_of(text)), by "
                "which texts could vote"
            )
        if not str(count).isdigit() or int(count) < 1:
            raise InputError(f"task {task.name}+{VOTE}:{count}: expected the number of draws, such as {COUNT}")
        self.task, self.count = task, int(count)
        self.name = f"{task.name}+{VOTE}" + (f":{self.count}" if self.count != COUNT else "")
        self.version = f"{task.version}.1"
        self.metrics = (*task.metrics, "agreement")
        self.description = f"{task.description}; the answer of most of {self.count} draws"
        for field in ("needs", "uses", "num_shots", "preamble", "separator", "examples_in_order", "labels", "positive"):
            setattr(self, field, getattr(task, field))

    def check(self):
        self.task.check()

    def documents(self, context):
        return self.task.documents(context)

    def examples(self, context):
        return self.task.examples(context)

    def example(self, document):
        return self.task.example(document)

    def example_group(self, document):
        return self.task.example_group(document)

    def preamble_of(self, document):
        return self.task.preamble_of(document)

    def cluster(self, document):
        return self.task.cluster(document)

    def key(self, document):
        return self.task.key(document)

    def record(self, document):
        return self.task.record(document)

    def adapt(self, model, context):
        return self.task.adapt(model, context)

    def details(self):
        return self.task.details()

    def asks(self, document):
        return self.task.asks(document)

    def requests(self, document):
        found = self.task.requests(document)
        if any(not isinstance(request, Generate) for request in found):
            raise InputError(f"task {self.name}: only what is generated can be drawn several times")
        return [
            dataclasses.replace(request, temperature=self.temperature, sample=number)
            for request in found
            for number in range(self.count)
        ]

    def statistics(self, document, answers):
        drawn = [answers[start : start + self.count] for start in range(0, len(answers), self.count)]
        votes = [vote(texts, self.task.answer_of) for texts in drawn]
        found = self.task.statistics(document, [texts[one.index] for texts, one in zip(drawn, votes)])
        return found | {"agreement": sum(one.count for one in votes) / len(answers)}

    @property
    def is_summable(self):
        return self.task.is_summable

    def reduce(self, totals):
        return self.task.reduce(totals) | {"agreement": totals["agreement"] / totals["documents"]}

    def reduce_documents(self, statistics):
        agreement = float(sum(statistics["agreement"]) / sum(statistics["documents"]))
        return self.task.reduce_documents(statistics) | {"agreement": agreement}
