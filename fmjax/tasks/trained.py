"""Tasks that train on their training documents first, all of them or as many as the name says (`sst2_probe:64`)."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fmjax.errors import InputError
from fmjax.tasks.protocol import Task, TaskContext


class Trained(Task):
    """Base of those tasks.

    Args:
      count: number of training documents, drawn with the context's seed; those of a smaller number are among those of
        a larger one, so that a learning curve grows. None is all.
    """

    version = "2"
    uses = ("adapt",)

    def __init__(self, count: int | str | None = None):
        self.count = None
        if count is not None:
            self.name = f"{self.name}:{count}"
            if not str(count).isdigit() or int(count) < 1:
                raise InputError(f"task {self.name}: expected a number of training documents, got {count!r}")
            self.count = int(count)

    def training(self, context: TaskContext) -> Sequence[Any]:
        """All training documents, none of them among those of the evaluation."""
        raise NotImplementedError

    def chosen(self, context: TaskContext) -> list:
        """The training documents to train on, in an order that depends on the seed and not on that of the file.

        Raises InputError where there are too few.
        """
        found, drawn = Counter(), []
        for document in self.training(context):
            key = self.key(document)
            # Equal documents are told apart by how many came before, so that the order of the others does not matter.
            place = hashlib.sha256(f"{context.seed} {found[key]} {key}".encode()).digest()
            drawn.append((place, document))
            found[key] += 1
        drawn = [document for _, document in sorted(drawn, key=lambda one: one[0])]
        if self.count is not None and self.count > len(drawn):
            raise InputError(f"task {self.name}: there are only {len(drawn)} training documents")
        return drawn[: self.count]

    def fit(self, model, documents: list, seed: int):
        """The model trained on documents."""
        raise NotImplementedError

    def adapt(self, model, context):
        return self.fit(model, self.chosen(context), context.seed)
