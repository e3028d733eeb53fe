"""Tasks that train on their training documents first, all of them or as many as the name says (`sst2_probe:64`)."""

import hashlib
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
        """The training documents to train on. Raises InputError where there are too few."""
        found = self.training(context)
        if self.count is None:
            return list(found)
        if self.count > len(found):
            raise InputError(f"task {self.name}: there are only {len(found)} training documents")

        def place(index: int) -> bytes:
            return hashlib.sha256(f"{context.seed} {index} {self.key(found[index])}".encode()).digest()

        return [found[i] for i in sorted(range(len(found)), key=place)[: self.count]]

    def fit(self, model, documents: list, seed: int):
        """The model trained on documents."""
        raise NotImplementedError

    def adapt(self, model, context):
        return self.fit(model, self.chosen(context), context.seed)
